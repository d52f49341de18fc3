//! A single real `drive` over the small world: from its start to its end, and with an effect that
//! the API server forbids.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use crate::{failure::Failure, route::Route};

use super::{effects::Versions, world::World as Small};
use crate::{
    decision::{Action, ActionKind},
    driver::{Direction, PollInterval, World, drive},
    reason::{Refusal, Stopped, Wait},
    record::{Fact, FactKind, Record, Start},
    snapshot::Snapshot,
};

struct Driven {
    world: Small,
    /// The API server forbids blocking writes; the first half of that effect takes place.
    forbidden: bool,
    records: Vec<Record>,
    /// The actions since the last fact.
    actions: Vec<ActionKind>,
    /// Each fact with the actions before it.
    facts: Vec<(FactKind, Vec<ActionKind>)>,
}

impl Driven {
    fn new(route: Route, forbidden: bool) -> Self {
        Self {
            world: Small::new(route, 0, 0),
            forbidden,
            records: vec![Record::default()],
            actions: Vec::new(),
            facts: Vec::new(),
        }
    }
}

impl World for Driven {
    async fn observe(&mut self) -> Result<(Record, Snapshot), Failure> {
        while let Some((_, next)) = self.world.spontaneous_transitions().into_iter().next() {
            self.world = next;
        }
        Ok(((*self.world.recorded()).clone(), self.world.snapshot()))
    }

    async fn prepare_start(&mut self, _start: &Start) -> Result<(), Failure> {
        Ok(())
    }

    async fn prepare_block(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn record(&mut self, fact: Fact) -> Result<Option<Record>, Failure> {
        let actions = std::mem::take(&mut self.actions);
        self.facts.push((fact.kind(), actions));
        self.world.record(&fact, self.world.version, true);
        self.records.push((*self.world.recorded()).clone());
        Ok(Some((*self.world.recorded()).clone()))
    }

    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>, Failure> {
        if self.forbidden && *action == Action::BlockWrites {
            self.world.set_block(true, true);
            return Err(forbidden());
        }
        self.actions.push(action.kind());
        let versions = Versions::of(&self.world);
        Ok(self.world.perform(action, start, Some(versions)))
    }

    async fn pause(&mut self, _missing: &Wait, _pace: PollInterval) {}

    fn stop_asked(&self) -> bool {
        false
    }

    fn direction(&self) -> Direction {
        Direction::Forward
    }
}

/// The API server's answer when the Role lacks a verb.
fn forbidden() -> Failure {
    Failure::config("deployments.apps is forbidden").hint("apply the step's manifests again")
}

/// The journals of an undisturbed cutover.
pub fn records(route: Route) -> Vec<Record> {
    let mut driven = Driven::new(route, false);
    let limits = driven.world.limits();
    complete(drive(&mut driven, &limits)).unwrap();
    driven.records
}

/// Each fact of an undisturbed cutover, with the actions before it.
pub fn course(route: Route) -> Vec<(FactKind, Vec<ActionKind>)> {
    let mut driven = Driven::new(route, false);
    let limits = driven.world.limits();
    complete(drive(&mut driven, &limits)).unwrap();
    driven.facts
}

/// The result of a future that is ready at once, as each of this world is.
fn complete<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the small world waits for nothing"),
    }
}

#[test]
fn undisturbed_cutover_completes_on_both_routes() {
    for route in [Route::Config, Route::Service] {
        let mut driven = Driven::new(route, false);
        let limits = driven.world.limits();
        complete(drive(&mut driven, &limits)).unwrap();
        assert_eq!(driven.world.broken_after_cutover(), None);
        assert_eq!(driven.world.broken(), None);
    }
}

#[test]
fn forbidden_block_is_rolled_back_and_leaves_no_client_blocked() {
    let mut driven = Driven::new(Route::Config, true);
    let limits = driven.world.limits();
    let stopped = complete(drive(&mut driven, &limits)).unwrap_err();
    let refusal = Refusal::RolledBack {
        reason: forbidden().to_string(),
        failure: Some(forbidden()),
    };
    assert_eq!(stopped, Stopped::Refused(refusal));
    assert_eq!(driven.world.broken_without_cutover(), None);
}
