//! Random walks through the model of the protocol, from seeds: what a search cannot exhaust.

use anyhow::{Result, bail};
use protocol::simulation::{Walked, walk};

/// Steps of all walks together, at least.
const STEPS: u64 = 10_000_000;
/// Steps of one seed: enough for thousands of walks.
const STEPS_OF_A_SEED: u64 = 500_000;

/// Walks from every seed until there are enough steps, or from this one only.
///
/// # Errors
/// An invariant is broken: the seed, and the trace that leads to it.
pub fn all(only: Option<u64>) -> Result<()> {
    let mut sum = Walked::default();
    for seed in only.unwrap_or(0).. {
        let walked = walk(seed, STEPS_OF_A_SEED);
        if let Some(broken) = walked.broken {
            bail!("walk {seed}: BROKEN: {broken}\nreplay: make soak WALK={seed}");
        }
        sum.steps += walked.steps;
        sum.walks += walked.walks;
        sum.ends += walked.ends;
        println!(
            "walk {seed}: {} steps so far, {} walks, {} of them to the end of both drivers",
            sum.steps, sum.walks, sum.ends
        );
        if only.is_some() || sum.steps >= STEPS {
            break;
        }
    }
    Ok(())
}
