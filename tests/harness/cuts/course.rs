//! The course of one cut: pod after pod, each disturbed or not, until one of them exits 0.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    LIMIT, Lane,
    deed::Deed,
    judge::{self, Judged},
    moments::{self, Moments},
    scenario::{Act, Scenario},
};
use crate::{
    kubelet::{Ended, Line, Running},
    standing::{self, Standing},
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
    pub story: String,
    /// How it ended.
    pub ended: Ended,
}

/// What one cut was.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Moments at which something was done.
    pub hit: Vec<String>,
    /// From the decision to go back to the first write that the source took again, for each attempt
    /// that went back.
    pub ways_back: Vec<Duration>,
    /// The ledger's.
    pub judged: Judged,
    /// The log of the pod that came to the end.
    pub log: Vec<Line>,
    /// From the first pod's start to the last one's end.
    pub took: Duration,
}

impl Cut {
    /// All of it in a line.
    pub fn line(&self, scenario: &Scenario) -> String {
        let (gap, took) = (self.judged.gap().as_secs_f64(), self.took.as_secs_f64());
        format!("{scenario}: gap {gap:.2} s, {took:.0} s, {}", self.story())
    }

    /// What happened, in a few words.
    pub fn story(&self) -> String {
        let pods: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!("{} → {}", pod.story, pod.ended.exit_code))
            .collect();
        pods.join("; ")
    }
}

/// A cut that is under way.
pub(super) struct Course<'a> {
    pub lane: &'a mut Lane,
    scenario: &'a Scenario,
    before: Standing,
    /// Another member may lead since.
    moved: bool,
    pods: Vec<Pod>,
    hit: Vec<String>,
    pub ways_back: Vec<Duration>,
    began: Instant,
}

impl<'a> Course<'a> {
    pub async fn begin(lane: &'a mut Lane, scenario: &'a Scenario) -> Result<Self> {
        let before = standing::standing(&lane.migration).await?;
        Ok(Self {
            lane,
            scenario,
            before,
            moved: false,
            pods: Vec::new(),
            hit: Vec::new(),
            ways_back: Vec::new(),
            began: Instant::now(),
        })
    }

    /// All disturbances, then undisturbed pods to the end.
    pub async fn run(&mut self) -> Result<()> {
        for act in &self.scenario.acts {
            if !self.finished().await? {
                let disturbed = self.disturbed(act).await;
                disturbed.with_context(|| format!("{}", act.deed))?;
            }
        }
        for _ in 0..QUIET_PODS_MAX {
            let launch = self
                .lane
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
    pub async fn judged(self, outcome: Result<()>) -> Result<Cut> {
        let story: Vec<String> = self
            .pods
            .iter()
            .map(|pod| format!("--- {}: {}", pod.story, pod.ended))
            .collect();
        let told = || format!("{}\n{}", self.scenario, story.join("\n"));
        outcome.with_context(told)?;
        let judged = judge::judge(self.lane).await.with_context(told)?;
        Ok(Cut {
            log: self
                .pods
                .last()
                .map(|pod| pod.ended.log.clone())
                .unwrap_or_default(),
            pods: self.pods,
            hit: self.hit,
            ways_back: self.ways_back,
            judged,
            took: self.began.elapsed(),
        })
    }

    async fn finished(&self) -> Result<bool> {
        Ok(self
            .lane
            .migration
            .journal()
            .await?
            .contains_key("finished"))
    }

    /// One pod, and what an act does to it.
    async fn disturbed(&mut self, act: &Act) -> Result<()> {
        let moments = self
            .lane
            .moments
            .get(&self.scenario.route)
            .cloned()
            .unwrap_or_default();
        self.moved |= act.deed.moves_the_leader();
        let launch = self.lane.pod("cutover", self.scenario.route);
        let launch = match act.deed.seconds_max() {
            Some(seconds) => launch.env("CUTOVER_MAX_SECONDS", seconds),
            None => launch,
        };
        let ends = match act.moment(&moments) {
            Some(moment) => {
                let pod = launch.env("FAILPOINT", &moment).start().await?;
                self.at_one(act.deed, &moment, &moments, pod).await?
            }
            None => {
                let pod = launch.env("FAILPOINT", "each").start().await?;
                self.at_each(act.deed, &moments, pod).await?
            }
        };
        self.lane.mend(act.deed).await.context("mending")?;
        let alone = if ends.len() == 1 {
            Alone::Yes
        } else {
            Alone::No
        };
        for (story, ended) in ends {
            self.ended(&story, ended, alone).await?;
        }
        Ok(())
    }

    /// It waits at the moment, unless it ends before; then the deed is done.
    async fn at_one(
        &mut self,
        deed: Deed,
        moment: &str,
        moments: &Moments,
        pod: Running,
    ) -> Result<Vec<(String, Ended)>> {
        let waits = moments::waits_at(Some(moment));
        if pod.says(&waits, LIMIT).await.is_err() {
            return Ok(vec![(format!("no {moment}"), pod.wait(LIMIT).await?)]);
        }
        self.hit.push(moment.to_owned());
        let story = format!("{deed} {moment}");
        let mut others = self
            .lane
            .strike(deed, &pod, moments.from(moment), self.scenario.route)
            .await?;
        others.insert(0, (story, pod.wait(LIMIT).await?));
        Ok(others)
    }

    /// It waits at every moment; at each that the deed is meant for, that is done.
    async fn at_each(
        &mut self,
        deed: Deed,
        moments: &Moments,
        pod: Running,
    ) -> Result<Vec<(String, Ended)>> {
        let (first, last) = deed.phases();
        let (mut from, mut struck) = (0, BTreeSet::new());
        while let Ok(line) = pod
            .says_next(&mut from, &moments::waits_at(None), LIMIT)
            .await
        {
            let moment = moments::named(&line.text).unwrap_or_default();
            // Once at each: an effect that is struck whenever it is tried is never performed.
            if (first..=last).contains(&moments.phase(&moment)) && struck.insert(moment.clone()) {
                self.lane
                    .strike(deed, &pod, Vec::new(), self.scenario.route)
                    .await?;
                self.hit.push(moment);
            } else {
                pod.go_on();
            }
        }
        Ok(vec![(
            format!("{deed} at each moment"),
            pod.wait(LIMIT).await?,
        )])
    }

    /// Judges a pod's end: its exit code, and after a return that everything is as it was.
    async fn ended(&mut self, story: &str, ended: Ended, alone: Alone) -> Result<()> {
        let code = ended.exit_code;
        let panicked = ended.text().contains("panicked");
        self.pods.push(Pod {
            story: story.to_owned(),
            ended,
        });
        ensure!(ENDS.contains(&code) && !panicked, "exit code {code}");
        let journal = self.lane.migration.journal().await?;
        // A rollback that finds nothing begun has nothing to do.
        let nothing_begun = story.starts_with("rollback") && !journal.contains_key("started");
        if code == 0
            && !nothing_begun
            && !journal.contains_key("finished")
            && !journal.contains_key("returned")
        {
            bail!("it exits 0, and nothing is finished");
        }
        if code == 3 && alone == Alone::Yes {
            let untouched = !journal.contains_key("started");
            let too_late = journal.contains_key("promotion") && story.contains("rollback");
            ensure!(
                untouched || too_late || journal.contains_key("returned"),
                "refused in the middle"
            );
        }
        if (code == 0 || code == 3) && journal.contains_key("returned") {
            self.returned(&journal["going-back"], journal.contains_key("blocked"))
                .await?;
        }
        Ok(())
    }

    /// The application runs on the source, and everything is as it was.
    pub async fn returned(&mut self, going_back: &Value, blocked: bool) -> Result<()> {
        if self.moved {
            // A failover takes Patroni's time, and the next attempt needs a leader and a target
            // that follows it.
            self.lane.migration.source.healthy().await?;
            // While no Service could be changed a pooler may have logged in at the old leader,
            // which is a standby now, and it keeps such a connection for an hour (server_lifetime):
            // that is mended by whoever runs it.
            self.lane.other_poolers().await?;
        }
        let lane = &self.lane;
        standing::runs_on_the_source(&lane.migration.application, &lane.migration.source, LIMIT)
            .await?;
        let now = standing::standing(&lane.migration).await?;
        let but = if self.moved { &OF_THE_LEADER[..] } else { &[] };
        let differences = standing::differences(&self.before, &now, but);
        ensure!(
            differences.is_empty(),
            "it went back, and not everything is as it was: {differences:#?}"
        );
        if blocked && let Some(way) = judge::way_back(lane, going_back)? {
            self.ways_back.push(way);
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
