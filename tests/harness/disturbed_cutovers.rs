//! Many real cuts on one stage, each killed, raced and fought in its own way, and each judged by
//! the ledger. `make test` does what must be covered for certain (tests/it/cutover/cuts.rs), `make
//! soak` what chance finds (tests/soak).
//!
//! In reading order: [`failpoints`] at which a cut can be disturbed, [`fault`]s that disturb, the
//! [`scenario`] of one cut, its [`runner`] with the pods that it takes, what a deed does
//! ([`inject`]), the [`judge`], [`reset`] for the next cut on the same stage, one deed at many
//! moments ([`sweep`]), and the [`statistics`] over all.

mod artifacts;
pub mod failpoints;
pub mod fault;
mod inject;
mod reset;
pub mod rollback;
pub mod runner;
pub mod scenario;
pub mod statistics;
pub mod sweep;
pub mod verdict;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    application::{Epoch, Settings},
    kubelet::Launch,
    migration::{Migration, NAMESPACE},
    objects::SERVICE,
    route::Route,
    setup::target_directory,
    source::{Dcs, SourceOptions},
    target::InstanceHandle,
};
use failpoints::Failpoints;
use runner::{CutoverRun, Runner};
use scenario::{Disturbance, Restart, Scenario};

/// Nothing that is waited for takes longer, on a busy machine and after the worst disturbance.
const LIMIT: Duration = Duration::from_secs(180);
/// The Services of the source that a cut turns.
const SERVICES: [&str; 2] = ["mastodon-postgresql", "mastodon-postgresql-repl"];
/// From the block to the point of no return; long for a pod, short for what never ends by itself.
const CUTOVER_SECONDS_MAX: &str = "40";
/// One cut of so many is followed by CloudNativePG's restart of the target, which takes seconds.
const RESTART_EVERY: usize = 3;

/// One stage, and the cuts on it, one after the other.
pub struct Worker {
    /// Source, target, application and the rest.
    pub migration: Migration,
    dcs: Dcs,
    target: InstanceHandle,
    settings: Settings,
    epoch: Epoch,
    /// The Services' selectors before any cut.
    selectors: BTreeMap<&'static str, Value>,
    /// The kind of target that waits for its cut; None after a cut.
    ready: Option<Restart>,
    cutovers: usize,
    failpoints: BTreeMap<Route, Failpoints>,
}

impl Worker {
    /// Everything up to a target that is ready for its first cut.
    ///
    /// # Errors
    /// A part does not come up.
    pub async fn start(dcs: Dcs) -> Result<Self> {
        let (epoch, settings) = (Epoch::now(), eight_client_settings());
        let options = SourceOptions {
            dcs,
            ..SourceOptions::default()
        };
        let migration = Migration::set_up_with(options, settings.clone(), epoch, |_| ()).await?;
        let target = migration.until_ready().await?;
        let mut selectors = BTreeMap::new();
        for name in SERVICES {
            selectors.insert(
                name,
                migration.objects().get(SERVICE, name).await?["spec"]["selector"].take(),
            );
        }
        Ok(Self {
            migration,
            dcs,
            target,
            settings,
            epoch,
            selectors,
            ready: Some(Restart::Happens),
            cutovers: 0,
            failpoints: BTreeMap::new(),
        })
    }

    /// One cut with all that disturbs it, judged.
    ///
    /// # Errors
    /// A promise is broken, or something does not come to its end; the text says which pods ran and
    /// what they said.
    pub async fn run(&mut self, scenario: &Scenario) -> Result<CutoverRun> {
        ensure!(scenario.dcs == self.dcs, "this stage is for {:?}", self.dcs);
        self.prepare(scenario).await?;
        self.cutovers += 1;
        let mut runner = Runner::begin(self, scenario).await?;
        let outcome = runner.run().await;
        runner.finish(outcome).await
    }

    /// The moments of a route's cut; the first time it takes a cut that nothing disturbs.
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

    /// Copies the logs of all parts, and the error that they are to explain, to target/cuts; says
    /// where they are.
    pub fn keep_logs(&self, name: &str, error: &anyhow::Error) -> String {
        let to = target_directory().join("cuts").join(name);
        let kept = artifacts::logs(self.migration.plane.instance().directory(), &to)
            .and_then(|()| Ok(std::fs::write(to.join("error"), format!("{error:?}"))?));
        match kept {
            Ok(()) => format!("logs: {}", to.display()),
            Err(error) => format!("no logs: {error:#}"),
        }
    }

    /// A cut with these disturbances; with CloudNativePG's restart and without in turn.
    pub fn scenario(&self, route: Route, disturbances: Vec<Disturbance>) -> Scenario {
        let follows = self.cutovers.is_multiple_of(RESTART_EVERY);
        let in_turn = if follows {
            Restart::Happens
        } else {
            Restart::Skipped
        };
        Scenario {
            // To take another target than the one that waits would leave unjudged what was written
            // since the last cut.
            restart: self.ready.unwrap_or(in_turn),
            disturbances,
            ..Scenario::undisturbed(self.dcs, route)
        }
    }

    /// A target of the kind that the scenario wants waits for its cut.
    async fn prepare(&mut self, scenario: &Scenario) -> Result<()> {
        if self.ready == Some(scenario.restart) {
            return Ok(());
        }
        self.reset(scenario.restart)
            .await
            .context("making the stage ready again")
    }

    /// A pod of a step by a route.
    fn pod(&self, step: &str, route: Route) -> Launch<'_> {
        let launch = self.migration.step(step).env("ROUTE", route.word());
        launch.env("CUTOVER_MAX_SECONDS", CUTOVER_SECONDS_MAX)
    }
}

/// guide.md's application with one pod more: eight clients, and the forgotten writer beside them.
fn eight_client_settings() -> Settings {
    let mut settings = Settings::mastodon(NAMESPACE);
    if let Some((_, replicas)) = settings.deployments.last_mut() {
        *replicas += 1;
    }
    settings
}
