//! A random walk over the same steps as the search: with more disturbances than a search can
//! combine, each as often as the world permits it.

use super::{
    events::Group,
    invariants::Broken,
    mutants::Mutant,
    search::{CALM, Decisions, Label, State, Step},
    world::World,
};
use crate::route::Route;

/// Disturbances of one walk, at most.
const DISTURBANCES: u8 = 8;
/// One step of this many is a disturbance, where one is possible.
const RARITY: u64 = 12;
/// Steps of one walk: what is not over by then is led to its end without disturbances.
const STEPS_MAX: u32 = 500;
/// What is remembered of earlier walks, at most.
const KNOWN_MAX: usize = 400_000;
const JOURNALS_MAX: usize = 1_000;

/// What random walks have met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Steps of all walks.
    pub steps: u64,
    /// Walks.
    pub walks: u64,
    /// Walks in which both drivers have ended.
    pub ends: u64,
    /// The invariant that does not hold, with the trace of the walk that breaks it.
    pub broken: Option<String>,
}

/// Walks until this number of steps is done or an invariant breaks. The same seed walks the same
/// way.
pub fn walk(seed: u64, steps: u64) -> Walked {
    walk_without(Mutant::None, seed, steps)
}

pub(super) fn walk_without(mutant: Mutant, seed: u64, steps: u64) -> Walked {
    let mut random = Random(seed);
    let mut walked = Walked::default();
    let mut decisions = Decisions::new(mutant);
    while walked.steps < steps && walked.broken.is_none() {
        if decisions.len() > KNOWN_MAX || World::journals() > JOURNALS_MAX {
            World::forget_journals();
            decisions = Decisions::new(mutant);
        }
        let mut trace = Vec::new();
        let walk = one(&mut decisions, &mut random, &mut walked.steps, &mut trace);
        walked.walks += 1;
        match walk {
            Ok(ended) => walked.ends += u64::from(ended),
            Err(broken) => walked.broken = Some(decisions.with_trace(&broken, &trace).to_string()),
        }
    }
    walked
}

/// One walk; returns whether both drivers have ended.
fn one(
    decisions: &mut Decisions,
    random: &mut Random,
    steps: &mut u64,
    trace: &mut Vec<Label>,
) -> Result<bool, Broken> {
    let route = [Route::Config, Route::Service][random.below(2)];
    let mut world = World::new(route, DISTURBANCES, Group::All.mask());
    world.repeats = true;
    let mut state = State::new(world);
    for _ in 0..STEPS_MAX {
        if state.ended() {
            return Ok(true);
        }
        let (disturbances, others): (Vec<Step>, Vec<Step>) = decisions
            .steps(&state)
            .into_iter()
            .partition(|step| step.disturbs);
        let disturbed = !disturbances.is_empty() && random.next().is_multiple_of(RARITY);
        let choices = if disturbed { disturbances } else { others };
        let step = &choices[random.below(choices.len())];
        *steps += 1;
        let next = step.state();
        // A driver may wait in many rounds.
        if next.as_ref() != Ok(&state) {
            trace.push(step.label);
        }
        state = next?;
    }
    trace.push(CALM);
    decisions.reaches_an_end(state).map(|()| false)
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
