//! Many real cutovers in one environment, each killed, raced or disturbed differently, and each
//! judged by the ledger. `make test` covers a fixed set (tests/it/cutover/disturbed.rs), and
//! `make soak` adds random ones (tests/soak).
//!
//! In reading order: [`failpoints`] at which a cutover can be disturbed, [`fault`]s, the
//! [`scenario`] of one cutover, its [`runner`] with all pods, how faults are injected ([`inject`]),
//! the [`verdict`], the [`reset`] before the next cutover, one fault at many failpoints
//! ([`sweep`]), [`rollback`]s and [their times](rollback_time), and [`statistics`] over all.

mod artifacts;
pub mod failpoints;
pub mod fault;
mod inject;
mod reset;
pub mod rollback;
pub mod rollback_time;
pub mod runner;
pub mod scenario;
pub mod statistics;
pub mod sweep;
pub mod verdict;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    application::{Epoch, Settings},
    kubelet::Launch,
    migration::{MANIFEST, Migration, NAMESPACE},
    objects::{CONFIG_MAP, SERVICE},
    route::Route,
    setup::target_directory,
    source::{Dcs, LogicalReader, SourceOptions},
    target::InstanceHandle,
};
use failpoints::Failpoints;
use runner::{CutoverRun, Runner};
use scenario::{Disturbance, Restart, Scenario};

/// Limit for every wait, on a busy machine and after the worst fault.
const LIMIT: Duration = Duration::from_secs(180);
/// The Services of the source that a cutover repoints.
const SERVICES: [&str; 2] = ["mastodon-postgresql", "mastodon-postgresql-repl"];
/// [`Limits::Short`]: seconds from the block to the point of no return; long for a pod, short for
/// waits that never end.
const CUTOVER_SECONDS_MAX: &str = "40";
/// Every third cutover is followed by CloudNativePG's restart of the target, which takes seconds.
const RESTART_EVERY: usize = 3;

/// The time limits of the cutovers in an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// Shorter than users have them, most of all where a fault ends only by a limit.
    Short,
    /// The defaults of the manifests, `CUTOVER_MAX_SECONDS` and `FENCE_MAX_SECONDS`.
    Default,
}

/// An environment and the cutovers in it, one after the other.
pub struct Worker {
    /// Source, target, application and everything else.
    pub migration: Migration,
    dcs: Dcs,
    limits: Limits,
    /// The reader of the logical slot that a fault has created.
    reader: Option<LogicalReader>,
    target: InstanceHandle,
    settings: Settings,
    epoch: Epoch,
    /// The Services' selectors before any cutover.
    selectors: BTreeMap<&'static str, Value>,
    /// The stored manifest as prepare-zalando wrote it.
    manifest: Value,
    /// The kind of target that is ready for a cutover; None after a cutover.
    ready: Option<Restart>,
    cutovers: usize,
    failpoints: BTreeMap<Route, Failpoints>,
}

impl Worker {
    /// Sets up an environment with a target that is ready for its first cutover, with short limits.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn start(dcs: Dcs) -> Result<Self> {
        let options = SourceOptions {
            dcs,
            ..SourceOptions::default()
        };
        Self::start_with(options, Limits::Short).await
    }

    /// Like [`Worker::start`], with the limits that users have, and with logical slots for one of
    /// the two kinds of DCS.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start_with_default_limits(dcs: Dcs) -> Result<Self> {
        let options = SourceOptions {
            dcs,
            wal_level: if dcs == fault::LOGICAL {
                "logical"
            } else {
                "hot_standby"
            },
            ..SourceOptions::default()
        };
        Self::start_with(options, Limits::Default).await
    }

    async fn start_with(options: SourceOptions, limits: Limits) -> Result<Self> {
        let (epoch, settings) = (Epoch::now(), eight_client_settings());
        let dcs = options.dcs;
        let migration = Migration::set_up_with(options, settings.clone(), epoch, |_| ()).await?;
        let target = migration.until_ready().await?;
        let mut selectors = BTreeMap::new();
        for name in SERVICES {
            selectors.insert(
                name,
                migration.objects().get(SERVICE, name).await?["spec"]["selector"].take(),
            );
        }
        let manifest = migration.objects().get(CONFIG_MAP, MANIFEST).await?;
        Ok(Self {
            manifest: json!({
                "metadata": {"annotations": manifest["metadata"]["annotations"]},
                "data": manifest["data"],
            }),
            migration,
            dcs,
            limits,
            reader: None,
            target,
            settings,
            epoch,
            selectors,
            ready: Some(Restart::Happens),
            cutovers: 0,
            failpoints: BTreeMap::new(),
        })
    }

    /// Runs one cutover with its disturbances and judges it.
    ///
    /// # Errors
    /// A promise is broken, or a pod or cutover does not end; the error lists the pods and their
    /// logs.
    pub async fn run(&mut self, scenario: &Scenario) -> Result<CutoverRun> {
        ensure!(
            scenario.dcs == self.dcs,
            "this environment is for {:?}",
            self.dcs
        );
        self.prepare(scenario).await?;
        self.cutovers += 1;
        let mut runner = Runner::begin(self, scenario).await?;
        let outcome = runner.run().await;
        runner.finish(outcome).await
    }

    /// The failpoints of a route's cutover. The first call runs an undisturbed cutover to find
    /// them.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn failpoints(&mut self, route: Route) -> Result<(Failpoints, Option<CutoverRun>)> {
        if let Some(known) = self.failpoints.get(&route) {
            return Ok((known.clone(), None));
        }
        let cutover = self.run(&Scenario::undisturbed(self.dcs, route)).await?;
        let failpoints = Failpoints::from_log(&cutover.log);
        self.failpoints.insert(route, failpoints.clone());
        Ok((failpoints, Some(cutover)))
    }

    /// Copies all logs, and the error that they explain, to target/cutovers; returns where they
    /// are.
    pub fn keep_logs(&self, name: &str, error: &anyhow::Error) -> String {
        let to = target_directory().join("cutovers").join(name);
        let kept = artifacts::logs(self.migration.plane.instance().directory(), &to)
            .and_then(|()| Ok(std::fs::write(to.join("error"), format!("{error:?}"))?));
        match kept {
            Ok(()) => format!("logs: {}", to.display()),
            Err(error) => format!("no logs: {error:#}"),
        }
    }

    /// A scenario with these disturbances; every third one with CloudNativePG's restart.
    pub fn scenario(&self, route: Route, disturbances: Vec<Disturbance>) -> Scenario {
        let restarts = self.cutovers.is_multiple_of(RESTART_EVERY);
        let in_turn = if restarts {
            Restart::Happens
        } else {
            Restart::Skipped
        };
        Scenario {
            // Replacing the ready target would leave writes since the last cutover unjudged.
            restart: self.ready.unwrap_or(in_turn),
            disturbances,
            ..Scenario::undisturbed(self.dcs, route)
        }
    }

    /// Makes sure that a target of the required kind is ready.
    async fn prepare(&mut self, scenario: &Scenario) -> Result<()> {
        if self.ready == Some(scenario.restart) {
            return Ok(());
        }
        self.reset(scenario.restart)
            .await
            .context("resetting the environment")
    }

    /// A pod of a step, with the route.
    fn pod(&self, step: &str, route: Route) -> Launch<'_> {
        let launch = self.migration.step(step).env("ROUTE", route.word());
        match self.limits {
            Limits::Short => launch.env("CUTOVER_MAX_SECONDS", CUTOVER_SECONDS_MAX),
            Limits::Default => launch,
        }
    }
}

/// The example application with one more pod: eight clients besides the unmanaged writer.
fn eight_client_settings() -> Settings {
    let mut settings = Settings::mastodon(NAMESPACE);
    if let Some((_, replicas)) = settings.deployments.last_mut() {
        *replicas += 1;
    }
    settings
}
