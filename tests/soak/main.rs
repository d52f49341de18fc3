//! `make soak`: a thousand real cuts and more, each with what its seed says, two at a time on this machine. One line a cut; what
//! breaks a promise is told with the command that repeats it, and its logs are kept.
//!
//! | variable | |
//! |---|---|
//! | SEED | the first seed; 0 when it is not set |
//! | CUTS | so many seeds; 1000 when it is not set, or 1 when SEED is |

use std::{
    cell::RefCell,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use harness::{
    cuts::{
        Lane,
        course::Cut,
        scenario::{self, Scenario},
        tally::Tally,
    },
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
    broken.iter().for_each(|seed| println!("broken: {}", replay(*seed)));
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
    broken: RefCell<Vec<u64>>,
}

impl Soak {
    /// One lane for each DCS.
    async fn run(&self) -> Result<()> {
        harness::setup::Setup::ready().await?;
        let first = variable("SEED")?;
        let count = variable("CUTS")?.unwrap_or(if first.is_some() { 1 } else { CUTS });
        let first = first.unwrap_or(0);
        let of = |dcs: Dcs| (first..first + count).filter(move |seed| scenario::dcs(*seed) == dcs).collect();
        futures::try_join!(
            self.lane(Dcs::Endpoints, of(Dcs::Endpoints)),
            self.lane(Dcs::ConfigMaps, of(Dcs::ConfigMaps))
        )
        .map(drop)
    }

    async fn lane(&self, dcs: Dcs, seeds: Vec<u64>) -> Result<()> {
        let mut lane: Option<Lane> = None;
        let mut cuts = 0;
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
            let began = Instant::now();
            match self.cut(&mut stage, seed).await {
                Ok(cut) => {
                    println!(
                        "seed {seed}: gap {:.2} s, {:.0} s, {}",
                        cut.judged.gap().as_secs_f64(),
                        began.elapsed().as_secs_f64(),
                        story(seed, &cut)
                    );
                    lane = Some(stage);
                }
                Err(error) => {
                    self.broke(&stage, seed, &error);
                    drop(stage);
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(())
    }

    async fn cut(&self, lane: &mut Lane, seed: u64) -> Result<Cut> {
        let scenario = Scenario::of(seed);
        let (_, quiet) = lane.moments(scenario.route).await?;
        if let Some(quiet) = quiet {
            println!("quiet: gap {:.2} s, {}", quiet.judged.gap().as_secs_f64(), scenario.route.word());
            self.tally.borrow_mut().add(&quiet);
        }
        let cut = lane.run(&scenario).await?;
        self.tally.borrow_mut().add(&cut);
        Ok(cut)
    }

    fn broke(&self, lane: &Lane, seed: u64, error: &anyhow::Error) {
        let logs = logs(seed);
        let kept = lane
            .keep_logs(&logs)
            .and_then(|()| Ok(std::fs::write(logs.join("error"), format!("{error:?}"))?));
        println!("seed {seed}: BROKEN: {error:#}\nreplay: {}", replay(seed));
        match kept {
            Ok(()) => println!("logs: {}", logs.display()),
            Err(error) => println!("no logs: {error:#}"),
        }
        self.broken.borrow_mut().push(seed);
    }
}

fn story(seed: u64, cut: &Cut) -> String {
    format!("{}: {}", Scenario::of(seed), cut.story())
}

fn replay(seed: u64) -> String {
    format!("make soak SEED={seed}")
}

fn logs(seed: u64) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).with_file_name("target"), PathBuf::from);
    target.join(format!("soak/seed-{seed}"))
}

/// A number; None when it is not set or empty.
fn variable(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).with_context(|| format!("{name}={text:?} is no number"))
}
