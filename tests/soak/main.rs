//! `make soak`: what takes too long for `make test`, done at each step of a cut, and then a thousand real cuts, each with what its seed
//! says, two at a time on this machine. One line a cut; what breaks a promise is told with the command that repeats it, and its logs
//! are kept.
//!
//! | variable | |
//! |---|---|
//! | SEED | the first seed, and only seeds; 0 when it is not set |
//! | CUTS | so many seeds; 1000 when it is not set, or 1 when SEED is; 0 is only what is done at each step |

use std::{cell::RefCell, process::ExitCode, time::Duration};

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
/// Cuts on one stage: logs and WAL grow with them.
const STAGE_CUTS: usize = 50;
/// After so many failures nothing new is learned.
const FAILURES_MAX: usize = 10;
const REST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let soak = Soak::default();
    let outcome = harness::interruptible(soak.run());
    println!("\n{}", soak.tally.borrow());
    let broken = soak.broken.borrow();
    broken.iter().for_each(|replay| println!("broken: {replay}"));
    match outcome {
        Ok(()) if broken.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was seen so far.
#[derive(Default)]
struct Soak {
    tally: RefCell<Tally>,
    /// Commands that repeat what broke a promise.
    broken: RefCell<Vec<String>>,
}

impl Soak {
    /// One lane for each DCS.
    async fn run(&self) -> Result<()> {
        harness::setup::Setup::ready().await?;
        let first = variable("SEED")?;
        let count = variable("CUTS")?.unwrap_or(if first.is_some() { 1 } else { CUTS });
        let sweeps = first.is_none();
        let first = first.unwrap_or(0);
        let of = |dcs: Dcs| (first..first + count).filter(move |seed| scenario::dcs(*seed) == dcs).collect();
        futures::try_join!(
            self.lane(Dcs::Endpoints, sweeps.then_some(Route::Service), of(Dcs::Endpoints)),
            self.lane(Dcs::ConfigMaps, sweeps.then_some(Route::Config), of(Dcs::ConfigMaps))
        )
        .map(drop)
    }

    async fn lane(&self, dcs: Dcs, sweep: Option<Route>, seeds: Vec<u64>) -> Result<()> {
        let mut lane: Option<Lane> = None;
        let mut cuts = 0;
        if let Some(route) = sweep {
            lane = self.sweep(Lane::stage(dcs).await.context("setting the stage")?, route).await;
        }
        for seed in seeds {
            if self.broken.borrow().len() >= FAILURES_MAX {
                break;
            }
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
                    self.broke(&stage, &format!("seed-{seed}"), format!("make soak SEED={seed}"), &error);
                    drop(stage);
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(())
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
            self.count("quiet", &Scenario::quiet(scenario.dcs, scenario.route), &quiet);
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
        println!("{name}: BROKEN: {error:#}\nreplay: {replay}\n{}", lane.keep_logs(name, error));
        self.broken.borrow_mut().push(replay);
    }
}

/// A number; None when it is not set or empty.
fn variable(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).with_context(|| format!("{name}={text:?} is no number"))
}
