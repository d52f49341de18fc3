//! `make soak`: what takes too long for `make test`, done at each step of a cut, and then a
//! thousand real cuts, each with what its seed says, several at a time on this machine. One line
//! for each seed; what breaks a promise is told with the command that repeats it, and its logs are
//! kept.
//!
//! | variable | |
//! |---|---|
//! | SEED | the first seed, and only seeds; 0 when it is not set |
//! | CUTOVERS | goes on until there were so many cuts, each that went back after the block being one; 1000 when it is not set, or when SEED is the one seed; 0 is only what is done at each step |
//! | WORKERS | so many stages at a time; 2 when it is not set, one for each DCS. Each waits most of the time, and takes 1 GB of memory |

use std::{cell::RefCell, ops::Range, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use harness::{
    disturbed_cutovers::{
        Worker,
        runner::CutoverRun,
        scenario::{self, Scenario},
        statistics::Statistics,
    },
    route::Route,
    source::Dcs,
};

const CUTOVERS: u64 = 1_000;
const WORKERS: u64 = 2;
/// Cuts on one stage: logs and WAL grow with them.
const WORKER_CUTOVERS: usize = 50;
/// After so many failures nothing new is learned.
const FAILURES_MAX: usize = 10;
const REST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let soak = match Soak::from_environment() {
        Ok(soak) => soak,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let outcome = harness::interruptible(soak.run());
    println!("\n{}", soak.statistics.borrow());
    let broken = soak.broken.borrow();
    broken
        .iter()
        .for_each(|replay| println!("broken: {replay}"));
    match outcome {
        Ok(()) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is wanted, and what was seen so far.
struct Soak {
    seeds: Range<u64>,
    /// Cuts until it is enough.
    cutovers: u64,
    workers: u64,
    /// What is done at each step comes first.
    slow_faults: bool,
    statistics: RefCell<Statistics>,
    /// Commands that repeat what broke a promise.
    broken: RefCell<Vec<String>>,
}

impl Soak {
    fn from_environment() -> Result<Self> {
        let (seed, cutovers) = (variable("SEED")?, variable("CUTOVERS")?);
        let first = seed.unwrap_or(0);
        let last = if seed.is_some() && cutovers.is_none() {
            first + 1
        } else {
            u64::MAX
        };
        Ok(Self {
            seeds: first..last,
            cutovers: cutovers.unwrap_or(CUTOVERS),
            workers: variable("WORKERS")?.unwrap_or(WORKERS),
            slow_faults: seed.is_none(),
            statistics: RefCell::default(),
            broken: RefCell::default(),
        })
    }

    /// Lanes for each DCS in turn; those of one DCS share its seeds.
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
                    Worker::start(dcs).await.context("setting the stage")?,
                    route,
                )
                .await;
        }
        while let Some(seed) = self.next_seed(dcs, seeds) {
            let mut worker = match idle.take().filter(|_| cutovers < WORKER_CUTOVERS) {
                Some(worker) => worker,
                None => {
                    cutovers = 0;
                    Worker::start(dcs).await.context("setting the stage")?
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

    /// The next seed for a DCS, as long as there is something to be learned.
    fn next_seed(&self, dcs: Dcs, seeds: &RefCell<Range<u64>>) -> Option<u64> {
        let enough = self.statistics.borrow().cutovers() as u64 >= self.cutovers
            || self.broken.borrow().len() >= FAILURES_MAX;
        if enough {
            return None;
        }
        seeds.borrow_mut().find(|seed| scenario::dcs(*seed) == dcs)
    }

    /// The stage, unless a promise was broken on it.
    async fn sweep(&self, mut worker: Worker, route: Route) -> Option<Worker> {
        let observe =
            |scenario: &Scenario, cutover: &CutoverRun| self.count("each step", scenario, cutover);
        match worker.sweep(route, observe).await {
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
                "quiet",
                &Scenario::undisturbed(scenario.dcs, scenario.route),
                &undisturbed,
            );
        }
        let cutover = worker.run(&scenario).await?;
        self.count(&format!("seed {seed}"), &scenario, &cutover);
        Ok(())
    }

    fn count(&self, name: &str, scenario: &Scenario, cutover: &CutoverRun) {
        println!("{name}: {}", cutover.line(scenario));
        self.statistics.borrow_mut().add(cutover);
    }

    fn report_broken(&self, worker: &Worker, name: &str, replay: String, error: &anyhow::Error) {
        println!(
            "{name}: BROKEN: {error:#}\nreplay: {replay}\n{}",
            worker.keep_logs(name, error)
        );
        self.broken.borrow_mut().push(replay);
    }
}

/// A number; None when it is not set or empty.
fn variable(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .with_context(|| format!("{name}={text:?} is no number"))
}
