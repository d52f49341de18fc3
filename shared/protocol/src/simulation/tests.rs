//! The searches.

use super::{
    events::Group,
    invariants::Invariant::{self, Progress, S1, S2, S3, S4, S5, S8},
    mutants::Mutant,
    needed::{self, Needed},
    search::search,
    walk::{walk, walk_without},
};
use crate::route::Route;

/// Disturbances that one search may combine.
const FAULT_BUDGET: u8 = 2;

/// `FAULT_BUDGET`, or fewer for a quick search: `make check` sets `SEARCH_FAULTS=1`.
fn fault_budget() -> u8 {
    std::env::var("SEARCH_FAULTS").map_or(FAULT_BUDGET, |text| {
        text.parse().expect("SEARCH_FAULTS is a small number")
    })
}

#[test]
fn no_interleaving_breaks_an_invariant() {
    let budget = fault_budget();
    for route in [Route::Config, Route::Service] {
        let mut states = 0;
        for group in Group::SEARCHED {
            let found = search(Mutant::None, route, group, budget);
            println!(
                "model, {route:?}, {group:?}: {} states, {} of them ends",
                found.states, found.ends
            );
            assert!(found.broken.is_none(), "{}", found.broken.unwrap());
            states += found.states;
        }
        assert!(
            states >= 1_000_000 || budget < FAULT_BUDGET,
            "the searches reached only {states} states"
        );
    }
}

#[test]
fn no_random_walk_breaks_an_invariant() {
    const SEED: u64 = 1;
    let walked = walk(SEED, 200_000);
    println!(
        "{} steps, {} walks, {} ends",
        walked.steps, walked.walks, walked.ends
    );
    assert!(
        walked.broken.is_none(),
        "seed {SEED}: {}",
        walked.broken.unwrap()
    );
    assert!(walked.ends > 100);
}

/// A search that cannot fail proves nothing: with any one guard removed it must find a trace that
/// breaks an invariant which the guard protects.
fn finds(mutant: Mutant, group: Group, invariants: &[Invariant]) {
    let budget = fault_budget();
    for route in mutant.routes() {
        // Begin with few disturbances: that gives the shortest trace, and most searches stay small.
        let broken = (0..=budget)
            .find_map(|disturbances| search(mutant, *route, group, disturbances).broken);
        let Some(broken) = broken else {
            assert!(
                budget < FAULT_BUDGET,
                "{mutant:?} on {route:?}: the search found nothing"
            );
            continue;
        };
        println!("{mutant:?} on {route:?}: {broken}\n");
        assert!(
            invariants.contains(&broken.invariant),
            "{mutant:?} broke {:?}, expected one of {invariants:?}",
            broken.invariant
        );
    }
}

#[test]
fn without_the_guard_of_a_reason_the_search_finds_what_breaks() {
    for (guard, needed) in needed::all() {
        match needed {
            Needed::For(group, invariants) => finds(Mutant::Without(guard), group, invariants),
            Needed::Otherwise(why) => println!("{guard:?} is not for an invariant: {why}\n"),
        }
    }
}

#[test]
fn without_any_other_guard_the_search_finds_what_breaks() {
    for (mutant, invariants) in [
        (Mutant::NoFence, &[S1, S2][..]),
        (Mutant::NoCatchUp, &[S2]),
        (Mutant::NoCompareAndSwap, &[S1, S2, S3, S4, S5]),
        (Mutant::NoOperatorSuspension, &[S1, S2, S4]),
        (Mutant::NoScalerSuspension, &[S4]),
        (Mutant::NoVersions, &[S3, S4]),
        (Mutant::NoRecordOfTheFence, &[S5]),
        (Mutant::NoRecordOfThePromotion, &[S5]),
        (Mutant::NoRecordOfTheRollback, &[S1, S2, S3, S5]),
        (Mutant::NoResumeOnRollback, &[S8]),
        (Mutant::NoLateResume, &[S8]),
        (Mutant::NoElection, &[Progress]),
        (Mutant::NoManifestRewrite, &[S4]),
        (Mutant::NoLateManifestRewrite, &[S4]),
    ] {
        finds(mutant, Group::Acts, invariants);
    }
}

/// A walk that cannot fail proves nothing, either.
#[test]
fn without_a_guard_a_walk_finds_what_breaks() {
    let walked = walk_without(Mutant::NoCatchUp, 1, 200_000);
    assert!(walked.broken.is_some());
}
