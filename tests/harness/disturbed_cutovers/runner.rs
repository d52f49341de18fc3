//! Runs one cutover: pod after pod, each disturbed or not, until one exits 0.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    LIMIT, Limits, Worker,
    failpoints::{self, Failpoints},
    fault::Fault,
    inject::ACCEPTED,
    rollback_time::RollbackTime,
    scenario::{Disturbance, Scenario},
    verdict::{self, Judgement},
};
use crate::{
    kubelet::{Ended, Line, RunningPod},
    snapshot::{self, Snapshot},
};

/// The most undisturbed pods until one must have exited 0.
const QUIET_PODS_MAX: usize = 6;
/// Allowed exit codes of a pod: done, not yet, refused, SIGKILL, SIGTERM before the program could
/// handle it. Never 2 or 4: no setting is wrong, and no fault requires manual intervention.
const ALLOWED_EXIT_CODES: [i32; 5] = [0, 1, 3, 137, 143];
/// Entries of a snapshot that a failover changes.
const CHANGED_BY_FAILOVER: [&str; 2] = ["leader", "server"];

/// A pod that has ended.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The fault and its failpoint.
    pub trace: String,
    /// How the pod ended.
    pub ended: Ended,
}

/// The result of one cutover.
#[derive(Clone, Debug)]
pub struct CutoverRun {
    /// All pods in order.
    pub pods: Vec<Pod>,
    /// Failpoints at which a fault was injected.
    pub reached: Vec<String>,
    /// The attempts that rolled back after the block.
    pub rollbacks: Vec<RollbackTime>,
    /// The ledger's judgement.
    pub judgement: Judgement,
    /// The log of the pod that finished.
    pub log: Vec<Line>,
    /// From the start of the first pod to the end of the last one.
    pub took: Duration,
}

impl CutoverRun {
    /// The result in one line.
    pub fn line(&self, scenario: &Scenario) -> String {
        let (gap, took) = (self.judgement.gap().as_secs_f64(), self.took.as_secs_f64());
        format!("{scenario}: gap {gap:.2} s, {took:.0} s, {}", self.trace())
    }

    /// Faults and exit codes of all pods.
    pub fn trace(&self) -> String {
        let pods: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!("{} → {}", pod.trace, pod.ended.exit_code))
            .collect();
        pods.join("; ")
    }
}

/// A cutover that is running.
pub(super) struct Runner<'a> {
    pub worker: &'a mut Worker,
    scenario: &'a Scenario,
    before: Snapshot,
    /// Whether another member may lead by now.
    leader_moved: bool,
    pods: Vec<Pod>,
    reached: Vec<String>,
    pub rollbacks: Vec<RollbackTime>,
    /// What was injected since the last rollback.
    faults: Vec<Fault>,
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
            faults: Vec::new(),
            began: Instant::now(),
        })
    }

    /// Runs all disturbances, then undisturbed pods until one exits 0.
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
        bail!("the cutover does not finish")
    }

    /// Judges the cutover and returns its result.
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

    /// Runs one pod and disturbs it.
    async fn disturbed(&mut self, disturbance: &Disturbance) -> Result<()> {
        let failpoints = self
            .worker
            .failpoints
            .get(&self.scenario.route)
            .cloned()
            .unwrap_or_default();
        self.leader_moved |= disturbance.fault.moves_the_leader();
        self.faults.push(disturbance.fault);
        let launch = self.worker.pod("cutover", self.scenario.route);
        let launch = match (disturbance.fault.seconds_max(), self.worker.limits) {
            (Some(seconds), Limits::Short) => launch.env("CUTOVER_MAX_SECONDS", seconds),
            _ => launch,
        };
        let launch = match disturbance.fault {
            Fault::LogicalReader => launch.env("ACCEPT", ACCEPTED),
            _ => launch,
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
            .context("undoing the fault")?;
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

    /// Waits until the pod reaches the failpoint and injects the fault; the pod may end before.
    async fn at_one(
        &mut self,
        fault: Fault,
        failpoint: &str,
        failpoints: &Failpoints,
        pod: RunningPod,
    ) -> Result<Vec<(String, Ended)>> {
        let waits = failpoints::waiting_line(Some(failpoint));
        if pod.wait_for_line(&waits, LIMIT).await.is_err() {
            return Ok(vec![(
                format!("did not reach {failpoint}"),
                pod.wait(LIMIT).await?,
            )]);
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

    /// The pod waits at every failpoint; the fault is injected at each one in the fault's phases.
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
            // Once at each failpoint: an effect that is disturbed at every attempt is never
            // performed.
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
            format!("{fault} at each failpoint"),
            pod.wait(LIMIT).await?,
        )])
    }

    /// Checks the end of a pod: its exit code, and after a rollback that everything is restored.
    async fn ended(&mut self, trace: &str, ended: Ended, alone: Alone) -> Result<()> {
        let code = ended.exit_code;
        let panicked = ended.text().contains("panicked");
        self.pods.push(Pod {
            trace: trace.to_owned(),
            ended,
        });
        ensure!(
            ALLOWED_EXIT_CODES.contains(&code) && !panicked,
            "exit code {code}"
        );
        let journal = self.worker.migration.journal().await?;
        // A rollback before any cutover has nothing to do.
        let nothing_started = trace.starts_with("rollback") && !journal.contains_key("started");
        if code == 0
            && !nothing_started
            && !journal.contains_key("finished")
            && !journal.contains_key("returned")
        {
            bail!("it exits 0, but the cutover is not finished");
        }
        if code == 3 && alone == Alone::Yes {
            let untouched = !journal.contains_key("started");
            let too_late = journal.contains_key("promotion") && trace.contains("rollback");
            ensure!(
                untouched || too_late || journal.contains_key("returned"),
                "refused after the cutover had begun"
            );
        }
        if (code == 0 || code == 3) && journal.contains_key("returned") {
            self.check_rolled_back(&journal["going-back"], journal.contains_key("blocked"))
                .await?;
        }
        Ok(())
    }

    /// Checks that the application runs on the source and that everything is restored.
    pub async fn check_rolled_back(&mut self, rollback_fact: &Value, blocked: bool) -> Result<()> {
        if self.leader_moved {
            // Wait for Patroni's failover: the next attempt needs a leader and a target that
            // follows it.
            self.worker.migration.source.healthy().await?;
            // While no Service could be changed, a pooler may have connected to the old leader, now
            // a standby, and keeps such a connection for an hour (server_lifetime). An
            // administrator would replace its pods.
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
            &CHANGED_BY_FAILOVER[..]
        } else {
            &[]
        };
        let differences = snapshot::differences(&self.before, &now, except);
        ensure!(
            differences.is_empty(),
            "it rolled back, but not everything is restored: {differences:#?}"
        );
        let faults = std::mem::take(&mut self.faults);
        if blocked && let Some(took) = verdict::rollback_time(worker, rollback_fact)? {
            let reason = rollback_fact["reason"].as_str().unwrap_or_default();
            if let [fault] = faults[..]
                && let Some(expected) = fault.rollback_reasons()
            {
                ensure!(
                    expected.iter().any(|text| reason.starts_with(text)),
                    "it rolled back because {reason}"
                );
            }
            self.rollbacks.push(RollbackTime {
                took,
                reason: reason.to_owned(),
                faults,
            });
        }
        Ok(())
    }
}

/// Whether the pod ran alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    Yes,
    No,
}
