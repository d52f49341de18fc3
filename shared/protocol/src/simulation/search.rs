//! Breadth first over drivers and world, with the shortest trace to whatever breaks.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::route::Route;

use super::{
    effects::Versions,
    events::Disturbance,
    invariants::{Broken, Invariant},
    mutants::Mutant,
    world::World,
};
use crate::{
    decision::{Action, Decision},
    snapshot::Snapshot,
};

/// Rounds in which a single driver must reach an end.
const ROUNDS_MAX: usize = 200;

/// More states than any search of these tests reaches: a search that does not end must not exhaust
/// the memory of the machine.
const STATES_MAX: usize = 5_000_000;

/// The result of a search.
pub struct Found {
    pub states: usize,
    pub ends: usize,
    /// The invariant that does not hold, with the shortest trace that breaks it.
    pub broken: Option<Broken>,
}

/// A driver between its snapshot and its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Driver {
    /// Takes a snapshot next.
    Ready,
    /// Is about to act on what it observed.
    Decided(Observed),
    /// Has ended.
    Ended,
}

/// What a driver acts on: the numbers of its record and snapshot, and the versions that its writes
/// carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Observed {
    record: usize,
    snapshot: usize,
    read: u32,
    versions: Versions,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    drivers: [Driver; 2],
}

/// A step that can happen, and the state after it.
struct Step {
    /// Its description, for the trace.
    text: String,
    /// A driver has observed and waits.
    waits: bool,
    next: Result<State, Broken>,
}

impl Step {
    fn new(text: String, next: State) -> Self {
        Self {
            text,
            waits: false,
            next: Ok(next),
        }
    }
}

struct Search {
    mutant: Mutant,
    snapshots: Vec<Snapshot>,
    numbers: HashMap<World, usize>,
    decisions: HashMap<(usize, usize), Decision>,
    parents: Vec<(usize, String)>,
    states: Vec<State>,
    known: HashSet<State>,
    /// Worlds from which a single driver is known to reach an end.
    ending: HashSet<World>,
}

/// Searches everything that can happen with at most `disturbances` disturbances.
pub fn search(mutant: Mutant, route: Route, disturbances: u8) -> Found {
    let first = State {
        world: World::new(route, disturbances),
        drivers: [Driver::Ready, Driver::Ready],
    };
    let mut search = Search {
        mutant,
        snapshots: Vec::new(),
        numbers: HashMap::new(),
        decisions: HashMap::new(),
        parents: vec![(0, String::new())],
        states: vec![first.clone()],
        known: [first].into(),
        ending: HashSet::new(),
    };
    let mut queue = VecDeque::from([0]);
    let mut ends = 0;
    while let Some(index) = queue.pop_front() {
        assert!(
            search.states.len() < STATES_MAX,
            "{mutant:?} on {route:?} does not end"
        );
        let state = search.states[index].clone();
        for Step { text, next, .. } in search.steps(&state) {
            let mut next = match next {
                Ok(next) => next,
                Err(broken) => return search.failed(ends, index, &text, &broken),
            };
            if let Some(broken) = next.world.broken() {
                return search.failed(ends, index, &text, &broken);
            }
            // The two drivers are interchangeable.
            next.drivers.sort_unstable();
            if !search.known.contains(&next) {
                ends += usize::from(next.drivers.iter().all(|driver| *driver == Driver::Ended));
                queue.push_back(search.states.len());
                search.known.insert(next.clone());
                search.states.push(next);
                search.parents.push((index, text));
            }
        }
    }
    for index in 0..search.states.len() {
        if let Err(broken) = search.reaches_an_end(index) {
            return search.failed(ends, index, "from here on without disturbances", &broken);
        }
    }
    Found {
        states: search.states.len(),
        ends,
        broken: None,
    }
}

impl Search {
    fn failed(&self, ends: usize, mut index: usize, last: &str, broken: &Broken) -> Found {
        let mut steps = vec![last.to_owned()];
        while index != 0 {
            let (parent, step) = &self.parents[index];
            steps.push(step.clone());
            index = *parent;
        }
        steps.reverse();
        let trace: Vec<String> = steps
            .iter()
            .enumerate()
            .map(|(n, step)| format!("  {}. {step}", n + 1))
            .collect();
        Found {
            states: self.states.len(),
            ends,
            broken: Some(Broken::new(
                broken.invariant,
                format!("{}\n{}", broken.how, trace.join("\n")),
            )),
        }
    }

    /// Everything that can happen next; an end that breaks an invariant is an error.
    fn steps(&mut self, state: &State) -> Vec<Step> {
        let transitions = state
            .world
            .spontaneous_transitions()
            .into_iter()
            .chain(state.world.disturbances());
        let mut next: Vec<Step> = transitions
            .map(|(name, world)| {
                let drivers = state.drivers;
                Step::new(name.to_owned(), State { world, drivers })
            })
            .collect();
        for driver in 0..2 {
            next.extend(self.driver_steps(state, driver));
        }
        next
    }

    fn driver_steps(&mut self, state: &State, driver: usize) -> Vec<Step> {
        let name = ["first", "second"][driver];
        let observed = match state.drivers[driver] {
            Driver::Ended => return Vec::new(),
            Driver::Ready => {
                let (decision, next) = self.observe(state, driver);
                return vec![Step {
                    text: format!("the {name} cutover observes and decides: {decision}"),
                    waits: matches!(decision, Decision::Wait(_)),
                    next,
                }];
            }
            Driver::Decided(observed) => observed,
        };
        let decision = self.decision(&state.world, observed);
        let doing = &decision;
        let mut next = vec![Step::new(
            format!("the {name} cutover acts: {doing}"),
            self.act(state, driver, observed, true),
        )];
        if state.world.may(Disturbance::LostAnswer) {
            let mut lost = self.act(state, driver, observed, false);
            lost.world.consume(Disturbance::LostAnswer);
            next.push(Step::new(
                format!("the {name} cutover acts and the answer is lost: {doing}"),
                lost,
            ));
        }
        if state.world.may(Disturbance::Crash) {
            let mut crashed = state.clone();
            crashed.drivers[driver] = Driver::Ready;
            crashed.world.consume(Disturbance::Crash);
            next.push(Step::new(
                format!("the {name} cutover is killed before it acts, and started again"),
                crashed,
            ));
        }
        if matches!(
            decision,
            Decision::Do(Action::RepointServices | Action::RestoreServices)
        ) && state.world.may(Disturbance::HalfDone)
        {
            let mut half = self.act(state, driver, observed, false);
            half.world.repointed = match half.world.repointed {
                0 => state.world.repointed.min(1),
                _ => state.world.repointed.max(1),
            };
            half.world.consume(Disturbance::HalfDone);
            next.push(Step::new(
                format!("the {name} cutover is killed in the middle of it: {doing}"),
                half,
            ));
        }
        next
    }

    fn observe(&mut self, state: &State, driver: usize) -> (Decision, Result<State, Broken>) {
        let world = &state.world;
        let snapshot = match self.numbers.get(&world.visible()) {
            Some(snapshot) => *snapshot,
            None => {
                self.snapshots.push(
                    self.mutant
                        .without_guard(world.snapshot(), &self.states[0].world),
                );
                self.numbers
                    .insert(world.visible(), self.snapshots.len() - 1);
                self.snapshots.len() - 1
            }
        };
        let observed = Observed {
            record: world.record,
            snapshot,
            read: world.version,
            versions: Versions::of(world),
        };
        let decision = self.decision(world, observed);
        let mut next = state.clone();
        let broken = match &decision {
            Decision::Done => next
                .world
                .broken_after_cutover()
                .filter(|_| alone(&next, driver)),
            Decision::Refuse(_) | Decision::NotReady(_)
                if world.has(|record| record.started.is_some()) =>
            {
                next.world
                    .broken_without_cutover()
                    .filter(|_| alone(&next, driver))
            }
            _ => None,
        };
        next.drivers[driver] = match &decision {
            Decision::Done | Decision::Refuse(_) | Decision::NotReady(_) | Decision::Alarm(_) => {
                Driver::Ended
            }
            Decision::Wait(_) => Driver::Ready,
            Decision::Record(_) | Decision::Do(_) => Driver::Decided(observed),
        };
        (decision, broken.map_or(Ok(next), Err))
    }

    fn decision(&mut self, world: &World, observed: Observed) -> Decision {
        let (mutant, snapshots) = (self.mutant, &self.snapshots);
        let decide = || {
            mutant.decide(
                &World::journal_of(observed.record),
                &snapshots[observed.snapshot],
                world,
            )
        };
        self.decisions
            .entry((observed.record, observed.snapshot))
            .or_insert_with(decide)
            .clone()
    }

    /// Like `drive`: after a recorded fact the driver decides again on the same snapshot, after an
    /// effect it takes a new snapshot.
    fn act(&mut self, state: &State, driver: usize, observed: Observed, answered: bool) -> State {
        let mut next = state.clone();
        let checked = self.mutant != Mutant::NoCompareAndSwap;
        next.drivers[driver] = Driver::Ready;
        match self.decision(&state.world, observed) {
            Decision::Record(fact) => {
                let written = next.world.record(fact, observed.read, checked);
                let after = Observed {
                    record: next.world.record,
                    read: next.world.version,
                    ..observed
                };
                let continues =
                    |decision: Decision| matches!(decision, Decision::Record(_) | Decision::Do(_));
                if written && answered && continues(self.decision(&state.world, after)) {
                    next.drivers[driver] = Driver::Decided(after);
                }
            }
            Decision::Do(action) => {
                let start = World::journal_of(observed.record).started;
                if self.numbers.get(&state.world.visible()) == Some(&observed.snapshot) {
                    next.world.led_by_its_leader(&action);
                }
                let versions = (self.mutant != Mutant::NoVersions).then_some(observed.versions);
                let left = start
                    .and_then(|start| next.world.perform(&action, &start, versions))
                    .filter(|_| answered);
                if let Some(fact) = left {
                    next.world.record(fact, observed.read, checked);
                }
            }
            _ => {}
        }
        next
    }

    /// Checks that a single driver reaches an end when nothing disturbs it.
    fn reaches_an_end(&mut self, index: usize) -> Result<(), Broken> {
        let mut state = self.states[index].clone();
        if state.drivers.iter().all(|driver| *driver == Driver::Ended) {
            return Ok(());
        }
        state.world.fault_budget = 0;
        state.drivers = [Driver::Ready, Driver::Ended];
        let (mut trail, mut worlds, mut waited) = (Vec::new(), Vec::new(), false);
        for _ in 0..ROUNDS_MAX {
            while let Some((_, world)) = state.world.spontaneous_transitions().into_iter().next() {
                state.world = world;
            }
            let ready = state.drivers[0] == Driver::Ready;
            if ready && self.ending.contains(&state.world) {
                self.ending.extend(worlds);
                return Ok(());
            }
            let Some(step) = self.driver_steps(&state, 0).into_iter().next() else {
                self.ending.extend(worlds);
                return Ok(());
            };
            if ready {
                worlds.push(state.world.clone());
            }
            state = step.next?;
            if let Some(broken) = state.world.broken() {
                return Err(broken);
            }
            // Time passes while the driver waits or retries the same action.
            let first_wait = step.waits && !waited;
            waited |= step.waits;
            state.world.clock += u8::from(first_wait || trail.len() % 60 == 59);
            trail.push(step.text);
        }
        let last = &trail[trail.len() - 3..];
        Err(Broken::new(
            Invariant::Progress,
            format!("no end is reached; the last decisions: {last:?}"),
        ))
    }
}

/// Whether the other driver has ended. The invariants of an end apply only then, because the other
/// driver may still change the state.
fn alone(state: &State, driver: usize) -> bool {
    matches!(state.drivers[1 - driver], Driver::Ended)
}
