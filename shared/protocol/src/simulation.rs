//! A search over the interleavings that the protocol can meet: the real `decide` against a small
//! world, breadth first; and a random walk through the same world.
//!
//! Two drivers (two pods) act on snapshots that may be stale. The disturbances:
//!
//! - Drivers: a crash between snapshot and effect or in the middle of an effect; an effect whose
//!   answer is lost; the deadline; an abort.
//! - Clients write whenever the source accepts writes; one overrides the read-only default.
//! - Source: an administrator lifts the block; the operator restarts a server unless it is
//!   suspended; a failover; a switchover; Patroni demotes its leader without a DCS; the leader's
//!   node is lost, with a standby that has everything or lacks a write; a crash while Patroni is
//!   paused; another database answers in its place.
//! - Silence: the leader's pod does not answer while its server runs, or no Patroni does, or the
//!   console of a pooler.
//! - Late effects: a stop that is not complete, while sessions still write; a setting of Patroni
//!   that reaches the server later.
//! - Target: the stream to it breaks; an instance that lacks the last records is promoted, falls
//!   behind or becomes the designated primary; it restarts, is promoted by others, loses its
//!   replica mode, is deleted, is another database, or answers at the address of a member of the
//!   source.
//! - Application: an autoscaler, or a client that ignores its suspension, starts it; a job of it
//!   starts.
//! - Poolers and Services: an old pooler is resumed by hand, restarted, or replaced by a pod while
//!   the old one terminates with its clients; it logs in at its server; it does not reach the
//!   target for a while; the Services are repointed halfway, too early, or restored by hand.
//! - The stored manifest is written again by a prepare-zalando that had begun before; the record is
//!   deleted.
//!
//! Further steps happen by themselves, at any later moment: Patroni takes its leader lock, a
//! promotion and the restart after it end, a controller reconciles what was scaled, Kubernetes
//! follows a changed Service, what was silent answers again. In a search each disturbance happens
//! at most once, at any moment, and at most two of a group are combined: all pairs of all
//! disturbances are too many, so the groups are searched one by one (`Group`). A walk combines up
//! to eight of them, each as often as the world permits it.
//!
//! After every step: S1 two servers never both accept writes, and the promotion is never recorded
//! on a snapshot of a source that runs; S2 every acknowledged write is on the surviving side; S3
//! before the point of no return an end leaves the source serving and everything restored; S4 after
//! it nothing reopens the source, and an end is a complete cutover; S5 nothing is changed that was
//! not recorded first; S7 client traffic is resumed only to a primary whose restart is over; S8 no
//! pooler stays paused at an end; S9 a pause is lifted only where the leader holds its lock; S10
//! the end of the downtime is recorded only after the pooler has reached the target, or the pods
//! are ready; S11 another database, or what a lost record was about, is never acted on; S12 a pause
//! interrupts no login that ends in time. Then, with disturbances off, every state reaches an end.
//! (S6, a dry run changes nothing, holds by construction: it calls `observe` and nothing else;
//! tests/it/cutover asserts that in the API server's audit log.)
//!
//! Each guard is removed once (`Mutant`), and a search must find what breaks. A guard is a kind of
//! a reason (`Guard`): `needed` says for each what it protects.

#[cfg(test)]
mod driven;
mod effects;
mod events;
mod guards;
mod invariants;
mod mutants;
#[cfg(test)]
mod needed;
mod search;
#[cfg(test)]
mod tests;
mod walk;
mod world;

#[cfg(test)]
use crate::route::Route;
#[cfg(test)]
pub use driven::course;
pub use walk::{Walked, walk};

/// Every journal that an undisturbed cutover writes, on the Service route and on the ConfigMap
/// route, in the order of writing; for other tests.
#[cfg(test)]
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
#[cfg(test)]
pub fn look() -> crate::snapshot::Snapshot {
    world::World::new(Route::Service, 0, 0).snapshot()
}

/// The limits of a cutover in that world, for other tests.
#[cfg(test)]
pub fn limits() -> crate::decision::Limits {
    world::World::new(Route::Service, 0, 0).limits()
}

/// A journal that has just been started, for other tests.
#[cfg(test)]
pub fn started() -> crate::record::Record {
    let world = world::World::new(Route::Config, 0, 0);
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
