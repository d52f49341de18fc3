//! A search over every interleaving that the protocol can meet: the real `decide` against a small
//! world, breadth first.
//!
//! Two drivers (two pods), each acting on sight that may be stale; crashes between look and effect
//! and in the middle of one; effects whose answer is lost; clients that write whenever they are
//! let, one of them around the read-only default; a block lifted by hand; the source's operator
//! restarting a server unless frozen; a failover and a switchover of the source; the stream to the
//! target cut; Patroni taking its leader lock late, and demoting its leader without a DCS; a
//! promotion that takes its time and the restart after it; the deadline; an abort; an autoscaler,
//! and somebody who heeds no pause, starting the application; old poolers resumed by somebody or
//! restarted; Services turned, half turned, turned back; a controller that comes late to what was
//! scaled. Each disturbance happens once at most, at any moment, and so many of them together.
//!
//! After every step: S1 never two servers that accept writes; S2 every acknowledged write is on the
//! surviving side; S3 before the point of no return an end leaves the source serving and everything
//! restored; S4 after it nothing reopens the source, and an end is a whole cut; S5 nothing is
//! changed that was not recorded first; S7 clients are let through only to a primary whose restart
//! is over; S8 no pooler stays paused at an end; S9 a pause is lifted only where the leader holds
//! its lock. Then, with disturbances off, every state reaches an end. (S6, a dry run changes
//! nothing, holds by construction: it calls `observe` and nothing else; tests/it/cutover sees that
//! in the API server's audit log.)

mod driven;
mod effects;
mod events;
mod invariants;
mod mutants;
mod search;
mod world;

use crate::route::Route;
pub use driven::course;
use invariants::Invariant;
use mutants::Mutant;
use search::search;

/// Every journal that an undisturbed cut leaves on its way, by the Services and by the ConfigMap,
/// in their order; for other tests.
pub fn every_journal() -> Vec<crate::record::Record> {
    let records = [Route::Service, Route::Config].map(driven::records);
    // Both routes have the same facts; what differs is told for one beside the other.
    let [by_service, by_config] = records;
    let mut all = Vec::new();
    let mut others = by_service.into_iter();
    for record in by_config {
        all.push(record);
        all.extend(others.next());
    }
    all.extend(others);
    all
}

/// What a look shows before anything has happened, for other tests.
pub fn look() -> crate::snapshot::Snapshot {
    world::World::new(Route::Service, 0).look()
}

/// The limits of a cut in that world, for other tests.
pub fn limits() -> crate::decision::Limits {
    world::World::new(Route::Service, 0).limits()
}

/// A journal that has just been started, for other tests.
pub fn started() -> crate::record::Record {
    let world = world::World::new(Route::Config, 0);
    let record = world.recorded();
    match crate::decide::decide(
        &record,
        &world.look(),
        &crate::decide::Health::Ok,
        &world.limits(),
    ) {
        crate::decision::Decision::Record(fact) => record.with(fact),
        other => panic!("the first decision is {other:?}"),
    }
}

/// Disturbances of one search together.
#[cfg(test)]
const FAULT_BUDGET: u8 = 2;

/// `FAULT_BUDGET`, or fewer for a quick look: `SEARCH_FAULTS=1`, as `make check` sets it.
#[cfg(test)]
fn fault_budget() -> u8 {
    std::env::var("SEARCH_FAULTS").map_or(FAULT_BUDGET, |text| {
        text.parse().expect("SEARCH_FAULTS is a small number")
    })
}

#[test]
fn no_interleaving_breaks_an_invariant() {
    let budget = fault_budget();
    let mut states = 0;
    for route in [Route::Config, Route::Service] {
        let found = search(Mutant::None, route, budget);
        println!(
            "model, {route:?}: {} states, {} of them ends",
            found.states, found.ends
        );
        assert!(found.broken.is_none(), "{}", found.broken.unwrap());
        states += found.states;
    }
    assert!(
        states >= 100_000 || budget < FAULT_BUDGET,
        "the search saw only {states} states"
    );
}

/// A search that cannot fail proves nothing: without each guard it must find a trace, and the
/// invariant that the guard protects.
#[test]
fn without_any_guard_the_search_finds_what_breaks() {
    use Invariant::{Progress, S1, S2, S3, S4, S5, S7, S8, S9};
    for (mutant, invariants) in [
        (Mutant::NoFence, &[S1, S2][..]),
        (Mutant::NoCatchUp, &[S2]),
        (Mutant::NoCompareAndSwap, &[S1, S2, S3, S4, S5]),
        (Mutant::NoFrozenOperator, &[S1, S2, S4]),
        (Mutant::NoFrozenScaler, &[S4]),
        (Mutant::NoWaitForPods, &[S4]),
        (Mutant::NoVersions, &[S3, S4]),
        (Mutant::NoRecordOfTheFence, &[S5]),
        (Mutant::NoRecordOfThePromotion, &[S5]),
        (Mutant::NoRecordOfTheReturn, &[S1, S2, S3, S5]),
        (Mutant::NoRestartWait, &[S7, S4]),
        (Mutant::NoDoor, &[S7]),
        (Mutant::NoResumeOnReturn, &[S8]),
        (Mutant::NoLateResume, &[S8]),
        (Mutant::NoLeaderLock, &[S9]),
        (Mutant::NoElection, &[Progress]),
        (Mutant::NoReturnAtTheDeadline, &[Progress]),
    ] {
        for route in mutant.routes() {
            // As few disturbances as it takes: the trace is the shorter, and most searches the
            // smaller.
            let broken = (0..=FAULT_BUDGET)
                .find_map(|disturbances| search(mutant, *route, disturbances).broken);
            let broken = broken
                .unwrap_or_else(|| panic!("{mutant:?} on {route:?}: the search found nothing"));
            println!("{mutant:?} on {route:?}: {broken}\n");
            assert!(
                invariants.contains(&broken.invariant),
                "{mutant:?} broke {:?}, expected one of {invariants:?}",
                broken.invariant
            );
        }
    }
}
