//! `make soak`: ten million steps of random walks through the model of the protocol, then faults
//! that take too long for `make test`, injected at each step of a cutover, and then a thousand real
//! cutovers with faults derived from seeds, several in parallel. It prints one line per seed. For a
//! broken promise it prints the command that repeats it and keeps the logs.
//!
//! - `WALK`: only the random walks of this seed
//! - `SEED`: the first seed; skips the random walks and the slow faults at each step; default 0
//! - `CUTOVERS`: stop after this many cutovers, rollbacks after the block included; default 1000,
//!   or one if SEED is set; 0 runs only the slow faults at each step
//! - `FAULT`: only seeds with this fault, for example `MemberHangs`; skips the slow faults at each
//!   step
//! - `WORKERS`: environments in parallel; default 2, one for each DCS. Each one waits most of the
//!   time and needs 1 GB of memory
//! - `SOAK_TALLY`: the file to which each run adds a line ([`tally`]); the total of all lines is
//!   printed at the end; default soak.jsonl in the harness' cache

mod tally;
mod walk;

use std::{cell::RefCell, ops::Range, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    disturbed_cutovers::{
        Worker,
        runner::CutoverRun,
        scenario::{self, Scenario},
        statistics::Statistics,
        verdict::BrokenPromise,
    },
    route::Route,
    source::Dcs,
};

const CUTOVERS: u64 = 1_000;
const WORKERS: u64 = 2;
/// Cutovers in one environment: logs and WAL grow with them.
const WORKER_CUTOVERS: usize = 50;
/// Stop after this many failures.
const FAILURES_MAX: usize = 10;
/// Every fault that is chosen at random is in the scenario of one of these seeds.
const SEEDS_WITH_ALL_FAULTS: u64 = 500;
const REST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let soak = match Soak::from_environment() {
        Ok(soak) => soak,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    if let Some(outcome) = soak.walk() {
        return outcome;
    }
    let outcome = harness::interruptible(soak.run());
    println!("\n{}", soak.statistics.borrow());
    let broken = soak.broken.borrow();
    broken
        .iter()
        .for_each(|replay| println!("broken: {replay}"));
    let added = tally::add(soak.first, &soak.statistics.borrow(), &broken);
    match outcome.and(added) {
        Ok(()) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The settings, and the results so far.
struct Soak {
    /// The first seed.
    first: u64,
    /// Only seeds with a fault of this name.
    fault: Option<String>,
    seeds: Range<u64>,
    /// Stop after this many cutovers.
    cutovers: u64,
    workers: u64,
    /// Whether to start with the slow faults at each step.
    slow_faults: bool,
    /// Walk through the model from this seed only, and end.
    only_walk: Option<u64>,
    statistics: RefCell<Statistics>,
    /// Commands that repeat broken runs.
    broken: RefCell<Vec<String>>,
}

impl Soak {
    fn from_environment() -> Result<Self> {
        let (seed, cutovers) = (variable("SEED")?, variable("CUTOVERS")?);
        let first = seed.unwrap_or(0);
        let fault = std::env::var("FAULT").ok().filter(|name| !name.is_empty());
        if let Some(name) = &fault {
            let known = (0..SEEDS_WITH_ALL_FAULTS).any(|seed| Scenario::from_seed(seed).has(name));
            ensure!(known, "FAULT={name} is not a fault");
        }
        let last = if seed.is_some() && cutovers.is_none() {
            first + 1
        } else {
            u64::MAX
        };
        Ok(Self {
            first,
            slow_faults: seed.is_none() && fault.is_none(),
            fault,
            seeds: first..last,
            cutovers: cutovers.unwrap_or(CUTOVERS),
            workers: variable("WORKERS")?.unwrap_or(WORKERS),
            only_walk: variable("WALK")?,
            statistics: RefCell::default(),
            broken: RefCell::default(),
        })
    }

    /// Walks through the model, unless a seed of the cutovers is repeated; returns how the program
    /// ends if nothing else is to be done.
    fn walk(&self) -> Option<ExitCode> {
        if self.only_walk.is_none() && !self.slow_faults {
            return None;
        }
        if let Err(error) = walk::all(self.only_walk) {
            eprintln!("{error:#}");
            return Some(ExitCode::FAILURE);
        }
        self.only_walk.map(|_| ExitCode::SUCCESS)
    }

    /// Starts workers for each DCS in turn; those of one DCS share its seeds.
    async fn run(&self) -> Result<()> {
        harness::setup::Setup::ready().await?;
        let kinds = [
            (Dcs::Endpoints, Route::Service),
            (Dcs::ConfigMaps, Route::Config),
        ];
        let kinds = kinds.map(|(dcs, route)| (dcs, route, RefCell::new(self.seeds.clone())));
        let workers =
            kinds
                .iter()
                .cycle()
                .zip(0..self.workers)
                .map(|((dcs, route, seeds), number)| {
                    let slow_faults = self.slow_faults && number < kinds.len() as u64;
                    self.run_worker(*dcs, slow_faults.then_some(*route), seeds)
                });
        futures::future::try_join_all(workers).await.map(drop)
    }

    async fn run_worker(
        &self,
        dcs: Dcs,
        sweep: Option<Route>,
        seeds: &RefCell<Range<u64>>,
    ) -> Result<()> {
        let mut idle: Option<Worker> = None;
        let mut cutovers = 0;
        if let Some(route) = sweep {
            idle = self
                .sweep(
                    Worker::start_with_default_limits(dcs)
                        .await
                        .context("setting up the environment")?,
                    route,
                )
                .await;
        }
        while let Some(seed) = self.next_seed(dcs, seeds) {
            let mut worker = match idle.take().filter(|_| cutovers < WORKER_CUTOVERS) {
                Some(worker) => worker,
                None => {
                    cutovers = 0;
                    Worker::start_with_default_limits(dcs)
                        .await
                        .context("setting up the environment")?
                }
            };
            cutovers += 1;
            match self.cutover(&mut worker, seed).await {
                Ok(()) => idle = Some(worker),
                Err(error) => {
                    self.report_broken(
                        &worker,
                        &format!("seed-{seed}"),
                        format!("make soak SEED={seed}"),
                        &error,
                    );
                    drop(worker);
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(())
    }

    /// The next seed for a DCS, unless there were enough cutovers or failures.
    fn next_seed(&self, dcs: Dcs, seeds: &RefCell<Range<u64>>) -> Option<u64> {
        let enough = self.statistics.borrow().cutovers() as u64 >= self.cutovers
            || self.broken.borrow().len() >= FAILURES_MAX;
        if enough {
            return None;
        }
        let fault = self.fault.as_deref();
        seeds.borrow_mut().find(|seed| {
            scenario::dcs(*seed) == dcs
                && fault.is_none_or(|fault| Scenario::from_seed(*seed).has(fault))
        })
    }

    /// Runs the slow faults; returns the worker unless a promise was broken.
    async fn sweep(&self, mut worker: Worker, route: Route) -> Option<Worker> {
        let mut in_time = Ok(());
        let observe = |scenario: &Scenario, cutover: &CutoverRun| {
            let counted = self.count("each step", scenario, cutover);
            in_time = std::mem::replace(&mut in_time, Ok(())).and(counted);
        };
        let swept = worker.sweep(route, observe).await;
        match swept.and(in_time) {
            Ok(()) => Some(worker),
            Err(error) => {
                self.report_broken(
                    &worker,
                    &format!("each-step-{}", route.word()),
                    "make soak CUTOVERS=0".to_owned(),
                    &error,
                );
                None
            }
        }
    }

    async fn cutover(&self, worker: &mut Worker, seed: u64) -> Result<()> {
        let scenario = Scenario::from_seed(seed);
        let (_, undisturbed) = worker.failpoints(scenario.route).await?;
        if let Some(undisturbed) = undisturbed {
            self.count(
                "undisturbed",
                &Scenario::undisturbed(scenario.dcs, scenario.route),
                &undisturbed,
            )?;
        }
        let cutover = worker.run(&scenario).await?;
        self.count(&format!("seed {seed}"), &scenario, &cutover)
    }

    /// Adds a cutover to the statistics.
    ///
    /// # Errors
    /// A rollback took too long, without a cause that allows it.
    fn count(&self, name: &str, scenario: &Scenario, cutover: &CutoverRun) -> Result<()> {
        println!("{name}: {}", cutover.line(scenario));
        self.statistics.borrow_mut().add(cutover);
        for slow in cutover.rollbacks.iter().filter(|one| one.is_slow()) {
            println!("{name}: {slow}");
            ensure!(slow.cause().is_some(), "{slow}");
        }
        Ok(())
    }

    fn report_broken(&self, worker: &Worker, name: &str, replay: String, error: &anyhow::Error) {
        if let Some(BrokenPromise(verdict)) = error.downcast_ref() {
            self.statistics.borrow_mut().add_writes(verdict);
        }
        println!(
            "{name}: BROKEN: {error:#}\nreplay: {replay}\n{}",
            worker.keep_logs(name, error)
        );
        self.broken.borrow_mut().push(replay);
    }
}

/// A number from the environment; None if it is not set or empty.
fn variable(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .with_context(|| format!("{name}={text:?} is not a number"))
}
