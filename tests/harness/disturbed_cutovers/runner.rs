//! The course of one cut: pod after pod, each disturbed or not, until one of them exits 0.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    LIMIT, Worker,
    failpoints::{self, Failpoints},
    fault::Fault,
    scenario::{Disturbance, Scenario},
    verdict::{self, Judgement},
};
use crate::{
    kubelet::{Ended, Line, RunningPod},
    snapshot::{self, Snapshot},
};

/// Pods after the last disturbance until one must have exited 0.
const QUIET_PODS_MAX: usize = 6;
/// What a pod's container may end with: done, not yet, refused, SIGKILL, SIGTERM before the program
/// could hear it. Never 2 or 4: nothing here is a wrong setting, and nothing is to be mended by a
/// person.
const ENDS: [i32; 5] = [0, 1, 3, 137, 143];
/// As in the source's own standing; a failover changes both.
const OF_THE_LEADER: [&str; 2] = ["leader", "server"];

/// A pod that has ended.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What was done to it, and where.
    pub trace: String,
    /// How it ended.
    pub ended: Ended,
}

/// What one cut was.
#[derive(Clone, Debug)]
pub struct CutoverRun {
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Moments at which something was done.
    pub reached: Vec<String>,
    /// From the decision to go back to the first write that the source took again, for each attempt
    /// that went back.
    pub rollbacks: Vec<Duration>,
    /// The ledger's.
    pub judgement: Judgement,
    /// The log of the pod that came to the end.
    pub log: Vec<Line>,
    /// From the first pod's start to the last one's end.
    pub took: Duration,
}

impl CutoverRun {
    /// All of it in a line.
    pub fn line(&self, scenario: &Scenario) -> String {
        let (gap, took) = (self.judgement.gap().as_secs_f64(), self.took.as_secs_f64());
        format!("{scenario}: gap {gap:.2} s, {took:.0} s, {}", self.trace())
    }

    /// What happened, in a few words.
    pub fn trace(&self) -> String {
        let pods: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!("{} → {}", pod.trace, pod.ended.exit_code))
            .collect();
        pods.join("; ")
    }
}

/// A cut that is under way.
pub(super) struct Runner<'a> {
    pub worker: &'a mut Worker,
    scenario: &'a Scenario,
    before: Snapshot,
    /// Another member may lead since.
    leader_moved: bool,
    pods: Vec<Pod>,
    reached: Vec<String>,
    pub rollbacks: Vec<Duration>,
    began: Instant,
}

impl<'a> Runner<'a> {
    pub async fn begin(worker: &'a mut Worker, scenario: &'a Scenario) -> Result<Self> {
        let before = snapshot::take(&worker.migration).await?;
        Ok(Self {
            worker,
            scenario,
            before,
            leader_moved: false,
            pods: Vec::new(),
            reached: Vec::new(),
            rollbacks: Vec::new(),
            began: Instant::now(),
        })
    }

    /// All disturbances, then undisturbed pods to the end.
    pub async fn run(&mut self) -> Result<()> {
        for disturbance in &self.scenario.disturbances {
            if !self.finished().await? {
                let disturbed = self.disturbed(disturbance).await;
                disturbed.with_context(|| format!("{}", disturbance.fault))?;
            }
        }
        for _ in 0..QUIET_PODS_MAX {
            let launch = self
                .worker
                .pod("cutover", self.scenario.route)
                .env("FAILPOINT", "*");
            let ended = launch.run(LIMIT).await?;
            let code = ended.exit_code;
            self.ended("undisturbed", ended, Alone::Yes).await?;
            if code == 0 {
                return Ok(());
            }
        }
        bail!("the cut does not come to its end")
    }

    /// What became of it: judged whether or not it came to its end.
    pub async fn finish(self, outcome: Result<()>) -> Result<CutoverRun> {
        let trace: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!("--- {}: {}", pod.trace, pod.ended))
            .collect();
        let describe = || format!("{}\n{}", self.scenario, trace.join("\n"));
        outcome.with_context(describe)?;
        let judgement = verdict::judge(self.worker).await.with_context(describe)?;
        Ok(CutoverRun {
            log: self
                .pods
                .last()
                .map(|pod| pod.ended.log.clone())
                .unwrap_or_default(),
            pods: self.pods,
            reached: self.reached,
            rollbacks: self.rollbacks,
            judgement,
            took: self.began.elapsed(),
        })
    }

    async fn finished(&self) -> Result<bool> {
        Ok(self
            .worker
            .migration
            .journal()
            .await?
            .contains_key("finished"))
    }

    /// One pod, and what an act does to it.
    async fn disturbed(&mut self, disturbance: &Disturbance) -> Result<()> {
        let failpoints = self
            .worker
            .failpoints
            .get(&self.scenario.route)
            .cloned()
            .unwrap_or_default();
        self.leader_moved |= disturbance.fault.moves_the_leader();
        let launch = self.worker.pod("cutover", self.scenario.route);
        let launch = match disturbance.fault.seconds_max() {
            Some(seconds) => launch.env("CUTOVER_MAX_SECONDS", seconds),
            None => launch,
        };
        let ends = match disturbance.failpoint(&failpoints) {
            Some(failpoint) => {
                let pod = launch.env("FAILPOINT", &failpoint).start().await?;
                self.at_one(disturbance.fault, &failpoint, &failpoints, pod)
                    .await?
            }
            None => {
                let pod = launch.env("FAILPOINT", "each").start().await?;
                self.at_each(disturbance.fault, &failpoints, pod).await?
            }
        };
        self.worker
            .undo_fault(disturbance.fault)
            .await
            .context("mending")?;
        let alone = if ends.len() == 1 {
            Alone::Yes
        } else {
            Alone::No
        };
        for (trace, ended) in ends {
            self.ended(&trace, ended, alone).await?;
        }
        Ok(())
    }

    /// It waits at the moment, unless it ends before; then the deed is done.
    async fn at_one(
        &mut self,
        fault: Fault,
        failpoint: &str,
        failpoints: &Failpoints,
        pod: RunningPod,
    ) -> Result<Vec<(String, Ended)>> {
        let waits = failpoints::waiting_line(Some(failpoint));
        if pod.wait_for_line(&waits, LIMIT).await.is_err() {
            return Ok(vec![(format!("no {failpoint}"), pod.wait(LIMIT).await?)]);
        }
        self.reached.push(failpoint.to_owned());
        let trace = format!("{fault} {failpoint}");
        let mut others = self
            .worker
            .inject(fault, &pod, failpoints.from(failpoint), self.scenario.route)
            .await?;
        others.insert(0, (trace, pod.wait(LIMIT).await?));
        Ok(others)
    }

    /// It waits at every moment; at each that the deed is meant for, that is done.
    async fn at_each(
        &mut self,
        fault: Fault,
        failpoints: &Failpoints,
        pod: RunningPod,
    ) -> Result<Vec<(String, Ended)>> {
        let (first, last) = fault.phases();
        let (mut from, mut injected) = (0, BTreeSet::new());
        while let Ok(line) = pod
            .wait_for_next_line(&mut from, &failpoints::waiting_line(None), LIMIT)
            .await
        {
            let failpoint = failpoints::failpoint_in(&line.text).unwrap_or_default();
            // Once at each: an effect that is struck whenever it is tried is never performed.
            if (first..=last).contains(&failpoints.phase(&failpoint))
                && injected.insert(failpoint.clone())
            {
                self.worker
                    .inject(fault, &pod, Vec::new(), self.scenario.route)
                    .await?;
                self.reached.push(failpoint);
            } else {
                pod.release_failpoint();
            }
        }
        Ok(vec![(
            format!("{fault} at each moment"),
            pod.wait(LIMIT).await?,
        )])
    }

    /// Judges a pod's end: its exit code, and after a return that everything is as it was.
    async fn ended(&mut self, trace: &str, ended: Ended, alone: Alone) -> Result<()> {
        let code = ended.exit_code;
        let panicked = ended.text().contains("panicked");
        self.pods.push(Pod {
            trace: trace.to_owned(),
            ended,
        });
        ensure!(ENDS.contains(&code) && !panicked, "exit code {code}");
        let journal = self.worker.migration.journal().await?;
        // A rollback that finds nothing begun has nothing to do.
        let nothing_begun = trace.starts_with("rollback") && !journal.contains_key("started");
        if code == 0
            && !nothing_begun
            && !journal.contains_key("finished")
            && !journal.contains_key("returned")
        {
            bail!("it exits 0, and nothing is finished");
        }
        if code == 3 && alone == Alone::Yes {
            let untouched = !journal.contains_key("started");
            let too_late = journal.contains_key("promotion") && trace.contains("rollback");
            ensure!(
                untouched || too_late || journal.contains_key("returned"),
                "refused in the middle"
            );
        }
        if (code == 0 || code == 3) && journal.contains_key("returned") {
            self.check_rolled_back(&journal["going-back"], journal.contains_key("blocked"))
                .await?;
        }
        Ok(())
    }

    /// The application runs on the source, and everything is as it was.
    pub async fn check_rolled_back(&mut self, rollback_fact: &Value, blocked: bool) -> Result<()> {
        if self.leader_moved {
            // A failover takes Patroni's time, and the next attempt needs a leader and a target
            // that follows it.
            self.worker.migration.source.healthy().await?;
            // While no Service could be changed a pooler may have logged in at the old leader,
            // which is a standby now, and it keeps such a connection for an hour (server_lifetime):
            // that is mended by whoever runs it.
            self.worker.replace_poolers().await?;
        }
        let worker = &self.worker;
        snapshot::runs_on_the_source(
            &worker.migration.application,
            &worker.migration.source,
            LIMIT,
        )
        .await?;
        let now = snapshot::take(&worker.migration).await?;
        let except = if self.leader_moved {
            &OF_THE_LEADER[..]
        } else {
            &[]
        };
        let differences = snapshot::differences(&self.before, &now, except);
        ensure!(
            differences.is_empty(),
            "it went back, and not everything is as it was: {differences:#?}"
        );
        if blocked && let Some(way) = verdict::rollback_time(worker, rollback_fact)? {
            self.rollbacks.push(way);
        }
        Ok(())
    }
}

/// Whether a pod was the only one of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    Yes,
    No,
}
