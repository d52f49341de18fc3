//! A search over every interleaving that the protocol can meet: the real `decide` against a small world, breadth first.
//!
//! Two drivers (two pods), each acting on sight that may be stale; crashes between look and effect; effects whose answer is lost;
//! clients that write whenever they are let, one of them around the read-only default; a block lifted by hand; the source's operator
//! restarting a server unless frozen; a failover of the source; the stream to the target cut; a promotion that takes its time and the
//! restart after it; the deadline; an abort. Each disturbance happens a bounded number of times, at any moment.
//!
//! After every step: S1 never two servers that accept writes; S2 every acknowledged write is on the surviving side; S3 before the
//! point of no return an end leaves the source serving and everything restored; S4 after it nothing reopens the source for good;
//! S7 traffic goes only to a primary whose restart is over. Then, with disturbances off, every state reaches an end.

mod driven;
mod search;
mod world;

use search::{Mutant, search};

#[test]
fn no_interleaving_breaks_an_invariant() {
    let found = search(Mutant::None, 2);
    println!("model: {} states, {} of them ends", found.states, found.ends);
    assert!(found.broken.is_none(), "{}", found.broken.unwrap());
    assert!(found.states >= 100_000, "the search saw only {} states", found.states);
}

/// A search that cannot fail proves nothing: without each guard it must find a trace, and the invariant that the guard protects.
#[test]
fn without_any_guard_the_search_finds_what_breaks() {
    for (mutant, invariants) in [
        (Mutant::NoFence, &["S1", "S2"][..]),
        (Mutant::NoProof, &["S2"]),
        (Mutant::NoCompareAndSwap, &["S1", "S2", "S3"]),
        (Mutant::NoFreeze, &["S1", "S2", "S4"]),
        (Mutant::NoRestartWait, &["S7", "S4"]),
        (Mutant::NoRecordOfTheReturn, &["S1", "S2", "S3"]),
        (Mutant::NoReturnAtTheDeadline, &["progress"]),
    ] {
        let broken = search(mutant, 2)
            .broken
            .unwrap_or_else(|| panic!("{mutant:?}: the search found nothing"));
        let named = broken.split(':').next().unwrap_or_default().to_owned();
        println!("{mutant:?}: {broken}\n");
        assert!(
            invariants.contains(&named.as_str()),
            "{mutant:?} broke {named}, expected one of {invariants:?}"
        );
    }
}
