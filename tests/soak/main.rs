//! `make soak`: what takes too long for `make test`, done at each step of a cut, and then a
//! thousand real cuts, each with what its seed says, several at a time on this machine. One line
//! for each seed; what breaks a promise is told with the command that repeats it, and its logs are
//! kept.
//!
//! | variable | |
//! |---|---|
//! | SEED | the first seed, and only seeds; 0 when it is not set |
//! | CUTS | goes on until there were so many cuts, each that went back after the block being one; 1000 when it is not set, or when SEED is the one seed; 0 is only what is done at each step |
//! | LANES | so many stages at a time; 2 when it is not set, one for each DCS. Each waits most of the time, and takes 1 GB of memory |

use std::{cell::RefCell, ops::Range, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use harness::{
    cuts::{
        Lane,
        course::Cut,
        scenario::{self, Scenario},
        tally::Tally,
    },
    route::Route,
    source::Dcs,
};

const CUTS: u64 = 1_000;
const LANES: u64 = 2;
/// Cuts on one stage: logs and WAL grow with them.
const STAGE_CUTS: usize = 50;
/// After so many failures nothing new is learned.
const FAILURES_MAX: usize = 10;
const REST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let soak = match Soak::wanted() {
        Ok(soak) => soak,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let outcome = harness::interruptible(soak.run());
    println!("\n{}", soak.tally.borrow());
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
    cuts: u64,
    lanes: u64,
    /// What is done at each step comes first.
    sweeps: bool,
    tally: RefCell<Tally>,
    /// Commands that repeat what broke a promise.
    broken: RefCell<Vec<String>>,
}

impl Soak {
    fn wanted() -> Result<Self> {
        let (seed, cuts) = (variable("SEED")?, variable("CUTS")?);
        let first = seed.unwrap_or(0);
        let last = if seed.is_some() && cuts.is_none() {
            first + 1
        } else {
            u64::MAX
        };
        Ok(Self {
            seeds: first..last,
            cuts: cuts.unwrap_or(CUTS),
            lanes: variable("LANES")?.unwrap_or(LANES),
            sweeps: seed.is_none(),
            tally: RefCell::default(),
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
        let lanes = kinds
            .iter()
            .cycle()
            .zip(0..self.lanes)
            .map(|((dcs, route, seeds), number)| {
                let sweeps = self.sweeps && number < kinds.len() as u64;
                self.lane(*dcs, sweeps.then_some(*route), seeds)
            });
        futures::future::try_join_all(lanes).await.map(drop)
    }

    async fn lane(
        &self,
        dcs: Dcs,
        sweep: Option<Route>,
        seeds: &RefCell<Range<u64>>,
    ) -> Result<()> {
        let mut lane: Option<Lane> = None;
        let mut cuts = 0;
        if let Some(route) = sweep {
            lane = self
                .sweep(Lane::stage(dcs).await.context("setting the stage")?, route)
                .await;
        }
        while let Some(seed) = self.next(dcs, seeds) {
            let mut stage = match lane.take().filter(|_| cuts < STAGE_CUTS) {
                Some(stage) => stage,
                None => {
                    cuts = 0;
                    Lane::stage(dcs).await.context("setting the stage")?
                }
            };
            cuts += 1;
            match self.cut(&mut stage, seed).await {
                Ok(()) => lane = Some(stage),
                Err(error) => {
                    self.broke(
                        &stage,
                        &format!("seed-{seed}"),
                        format!("make soak SEED={seed}"),
                        &error,
                    );
                    drop(stage);
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(())
    }

    /// The next seed for a DCS, as long as there is something to be learned.
    fn next(&self, dcs: Dcs, seeds: &RefCell<Range<u64>>) -> Option<u64> {
        let enough = self.tally.borrow().cuts() as u64 >= self.cuts
            || self.broken.borrow().len() >= FAILURES_MAX;
        if enough {
            return None;
        }
        seeds.borrow_mut().find(|seed| scenario::dcs(*seed) == dcs)
    }

    /// The stage, unless a promise was broken on it.
    async fn sweep(&self, mut stage: Lane, route: Route) -> Option<Lane> {
        let seen = |scenario: &Scenario, cut: &Cut| self.count("each step", scenario, cut);
        match stage.sweep(route, seen).await {
            Ok(()) => Some(stage),
            Err(error) => {
                self.broke(
                    &stage,
                    &format!("each-step-{}", route.word()),
                    "make soak CUTS=0".to_owned(),
                    &error,
                );
                None
            }
        }
    }

    async fn cut(&self, lane: &mut Lane, seed: u64) -> Result<()> {
        let scenario = Scenario::of(seed);
        let (_, quiet) = lane.moments(scenario.route).await?;
        if let Some(quiet) = quiet {
            self.count(
                "quiet",
                &Scenario::quiet(scenario.dcs, scenario.route),
                &quiet,
            );
        }
        let cut = lane.run(&scenario).await?;
        self.count(&format!("seed {seed}"), &scenario, &cut);
        Ok(())
    }

    fn count(&self, name: &str, scenario: &Scenario, cut: &Cut) {
        println!("{name}: {}", cut.line(scenario));
        self.tally.borrow_mut().add(cut);
    }

    fn broke(&self, lane: &Lane, name: &str, replay: String, error: &anyhow::Error) {
        println!(
            "{name}: BROKEN: {error:#}\nreplay: {replay}\n{}",
            lane.keep_logs(name, error)
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
