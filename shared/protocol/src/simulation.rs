//! A search over every interleaving that the protocol can meet: the real `decide` against a small
//! world, breadth first.
//!
//! Two drivers (two pods) act on snapshots that may be stale. The disturbances:
//!
//! - Drivers: a crash between snapshot and effect or in the middle of an effect; an effect whose
//!   answer is lost; the deadline; an abort.
//! - Clients write whenever the source accepts writes; one overrides the read-only default.
//! - Source: an administrator lifts the block; the operator restarts a server unless it is
//!   suspended; a failover; a switchover; Patroni demotes its leader without a DCS; the leader's
//!   node is lost, with a standby that has everything or lacks a write.
//! - Target: the stream to it breaks; an instance that lacks the last records is promoted.
//! - Application: an autoscaler, or a client that ignores its suspension, starts it.
//! - Poolers and Services: an old pooler is resumed by hand or restarted, or does not reach the
//!   target for a while; the Services are repointed halfway, or restored by hand.
//! - The stored manifest is written again by a prepare-zalando that had begun before.
//!
//! Further steps happen by themselves, at any later moment: Patroni takes its leader lock, a
//! promotion and the restart after it end, a controller reconciles what was scaled. Each
//! disturbance happens at most once, at any moment, and a search has a budget of disturbances.
//!
//! After every step: S1 two servers never both accept writes; S2 every acknowledged write is on the
//! surviving side; S3 before the point of no return an end leaves the source serving and everything
//! restored; S4 after it nothing reopens the source, and an end is a complete cutover; S5 nothing
//! is changed that was not recorded first; S7 client traffic is resumed only to a primary whose
//! restart is over; S8 no pooler stays paused at an end; S9 a pause is lifted only where the leader
//! holds its lock; S10 the end of the downtime is recorded only after the pooler has reached the
//! target. Then, with disturbances off, every state reaches an end. (S6, a dry run changes
//! nothing, holds by construction: it calls `observe` and nothing else; tests/it/cutover asserts
//! that in the API server's audit log.)

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

/// Every journal that an undisturbed cutover writes, on the Service route and on the ConfigMap
/// route, in the order of writing; for other tests.
pub fn every_journal() -> Vec<crate::record::Record> {
    let records = [Route::Service, Route::Config].map(driven::records);
    // Both routes have the same facts, so the journals of the two routes alternate.
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

/// A snapshot from before anything has happened, for other tests.
pub fn look() -> crate::snapshot::Snapshot {
    world::World::new(Route::Service, 0).snapshot()
}

/// The limits of a cutover in that world, for other tests.
pub fn limits() -> crate::decision::Limits {
    world::World::new(Route::Service, 0).limits()
}

/// A journal that has just been started, for other tests.
pub fn started() -> crate::record::Record {
    let world = world::World::new(Route::Config, 0);
    let record = world.recorded();
    match crate::decide::decide(
        &record,
        &world.snapshot(),
        &crate::decide::Health::default(),
        &world.limits(),
    ) {
        crate::decision::Decision::Record(fact) => record.with(fact),
        other => panic!("the first decision is {other:?}"),
    }
}

/// Disturbances that one search may combine.
#[cfg(test)]
const FAULT_BUDGET: u8 = 2;

/// `FAULT_BUDGET`, or fewer for a quick search: `make check` sets `SEARCH_FAULTS=1`.
#[cfg(test)]
fn fault_budget() -> u8 {
    std::env::var("SEARCH_FAULTS").map_or(FAULT_BUDGET, |text| {
        text.parse().expect("SEARCH_FAULTS is a small number")
    })
}

#[test]
fn no_interleaving_breaks_an_invariant() {
    let budget = fault_budget();
    for route in [Route::Config, Route::Service] {
        let found = search(Mutant::None, route, budget);
        println!(
            "model, {route:?}: {} states, {} of them ends",
            found.states, found.ends
        );
        assert!(found.broken.is_none(), "{}", found.broken.unwrap());
        assert!(
            found.states >= 1_000_000 || budget < FAULT_BUDGET,
            "the search reached only {} states",
            found.states
        );
    }
}

/// A search that cannot fail proves nothing: with any one guard removed it must find a trace that
/// breaks an invariant which the guard protects.
#[test]
fn without_any_guard_the_search_finds_what_breaks() {
    use Invariant::{Progress, S1, S2, S3, S4, S5, S7, S8, S9, S10};
    let budget = fault_budget();
    for (mutant, invariants) in [
        (Mutant::NoFence, &[S1, S2][..]),
        (Mutant::NoCatchUp, &[S2]),
        (Mutant::NoCompareAndSwap, &[S1, S2, S3, S4, S5]),
        (Mutant::NoOperatorSuspension, &[S1, S2, S4]),
        (Mutant::NoScalerSuspension, &[S4]),
        (Mutant::NoWaitForPods, &[S4]),
        (Mutant::NoVersions, &[S3, S4]),
        (Mutant::NoRecordOfTheFence, &[S5]),
        (Mutant::NoRecordOfThePromotion, &[S5]),
        (Mutant::NoRecordOfTheRollback, &[S1, S2, S3, S5]),
        (Mutant::NoRestartWait, &[S7, S4]),
        (Mutant::NoServiceWait, &[S7]),
        (Mutant::NoEvidence, &[S10]),
        (Mutant::NoResumeOnRollback, &[S8]),
        (Mutant::NoLateResume, &[S8]),
        (Mutant::NoLeaderLock, &[S9]),
        (Mutant::NoElection, &[Progress]),
        (Mutant::NoManifestRewrite, &[S4]),
        (Mutant::NoLateManifestRewrite, &[S4]),
        (Mutant::NoRollbackAtTheDeadline, &[Progress]),
        (Mutant::NoHistory, &[S2]),
        (Mutant::NoElectionCheck, &[S2]),
    ] {
        for route in mutant.routes() {
            // Begin with few disturbances: that gives the shortest trace, and most searches stay
            // small.
            let broken =
                (0..=budget).find_map(|disturbances| search(mutant, *route, disturbances).broken);
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
}
