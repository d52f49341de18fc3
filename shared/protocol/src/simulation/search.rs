//! Breadth first over drivers and world, with the shortest trace to whatever breaks.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

#[cfg(test)]
use super::events::Group;
use super::{
    effects::Versions,
    events::Disturbance,
    guards::Guard,
    invariants::{Broken, Invariant},
    mutants::Mutant,
    world::{World, number_of},
};
#[cfg(test)]
use crate::route::Route;
use crate::{
    decision::{Action, Decision},
    reason::{Contradiction, ContradictionKind, WaitKind},
    record::{FactKind, Record},
    snapshot::Snapshot,
};

/// Rounds in which a single driver must reach an end.
const ROUNDS_MAX: usize = 200;

/// More states than any search of these tests reaches: a search that does not end must not exhaust
/// the memory of the machine.
#[cfg(test)]
const STATES_MAX: usize = 5_000_000;

/// A multiplicative hash, as of rustc: the keys are no input of an adversary, and there are many.
#[derive(Default)]
pub struct Fast(u64);

impl Hasher for Fast {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

type Known<K> = HashSet<K, BuildHasherDefault<Fast>>;
type Numbers<K, V> = HashMap<K, V, BuildHasherDefault<Fast>>;

/// The result of a search.
#[cfg(test)]
pub struct Found {
    pub states: usize,
    pub ends: usize,
    /// The invariant that does not hold, with the shortest trace that breaks it.
    pub broken: Option<Broken>,
}

/// A driver between its snapshot and its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Driver {
    /// Takes a snapshot next.
    Ready,
    /// The same, and it has seen a cutover that was under way.
    Knows,
    /// Is about to act on what it observed.
    Decided(Observed),
    /// Has ended.
    Ended,
}

/// What a driver acts on: the numbers of its record and snapshot, and the versions that its writes
/// carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Observed {
    record: usize,
    snapshot: usize,
    /// It has waited for longer than a server may be away.
    waited: bool,
    read: u32,
    versions: Versions,
}

impl Observed {
    fn key(&self) -> (usize, usize, bool) {
        (self.record, self.snapshot, self.waited)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub world: World,
    pub drivers: [Driver; 2],
}

impl State {
    /// Two drivers that begin.
    pub fn new(world: World) -> Self {
        Self {
            world,
            drivers: [Driver::Ready; 2],
        }
    }

    /// Both drivers have ended.
    pub fn ended(&self) -> bool {
        self.drivers.iter().all(|driver| *driver == Driver::Ended)
    }
}

/// A step that can happen, and the state after it.
pub struct Step {
    /// Its description, for the trace.
    pub label: Label,
    /// It is a disturbance.
    pub disturbs: bool,
    /// A driver has observed and waits.
    waits: bool,
    pub next: Result<State, Broken>,
}

/// A step in few bytes; [`Decisions::text`] makes a line of the trace of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// What happens without the drivers.
    Happens(&'static str),
    /// What a driver does, and the decision that it does it by.
    Driver(usize, &'static str, Option<Observed>),
}

impl Step {
    fn new(label: Label, next: State) -> Self {
        Self {
            label,
            disturbs: false,
            waits: false,
            next: Ok(next),
        }
    }

    fn disturbing(self) -> Self {
        Self {
            disturbs: true,
            ..self
        }
    }

    /// The state after it.
    ///
    /// # Errors
    /// The invariant that it breaks.
    pub fn state(&self) -> Result<State, Broken> {
        let state = self.next.clone()?;
        state.world.broken().map_or(Ok(state), Err)
    }
}

/// Snapshots and decisions that are known already.
pub struct Decisions {
    mutant: Mutant,
    snapshots: Vec<Snapshot>,
    numbers: Numbers<World, usize>,
    decisions: Numbers<(usize, usize, bool), Rc<Decision>>,
    /// The journals that are written by a decision.
    written: Numbers<(usize, (usize, usize, bool)), usize>,
    /// Worlds from which a single driver is known to reach an end.
    ending: Known<World>,
}

#[cfg(test)]
struct Search {
    parents: Vec<(u32, Label)>,
    states: Vec<State>,
}

/// Searches everything that can happen with at most this number of disturbances of a group.
#[cfg(test)]
pub fn search(mutant: Mutant, route: Route, group: Group, disturbances: u8) -> Found {
    let first = State::new(World::new(route, disturbances, group.mask()));
    let mut decisions = Decisions::new(mutant);
    let mut known: Known<State> = Known::default();
    known.insert(first);
    let mut search = Search {
        parents: vec![(0, Label::Happens(""))],
        states: vec![first],
    };
    let (mut ends, mut index) = (0, 0);
    while index < search.states.len() {
        assert!(
            search.states.len() < STATES_MAX,
            "{mutant:?} on {route:?} does not end"
        );
        for step in decisions.steps(&search.states[index]) {
            let mut next = match step.state() {
                Ok(next) => next,
                Err(broken) => {
                    return search.failed(&decisions, ends, index, step.label, &broken);
                }
            };
            // The two drivers are interchangeable.
            next.drivers.sort_unstable();
            if known.insert(next) {
                ends += usize::from(next.ended());
                search.states.push(next);
                let parent = u32::try_from(index).unwrap_or(u32::MAX);
                search.parents.push((parent, step.label));
            }
        }
        index += 1;
    }
    for index in 0..search.states.len() {
        if let Err(broken) = decisions.reaches_an_end(search.states[index]) {
            return search.failed(&decisions, ends, index, CALM, &broken);
        }
    }
    Found {
        states: search.states.len(),
        ends,
        broken: None,
    }
}

#[cfg(test)]
impl Search {
    fn failed(
        &self,
        decisions: &Decisions,
        ends: usize,
        mut index: usize,
        last: Label,
        broken: &Broken,
    ) -> Found {
        let mut steps = vec![last];
        while index != 0 {
            let (parent, step) = &self.parents[index];
            steps.push(*step);
            index = *parent as usize;
        }
        steps.reverse();
        Found {
            states: self.states.len(),
            ends,
            broken: Some(decisions.with_trace(broken, &steps)),
        }
    }
}

/// The last line of a trace to a state from which no end is reached.
pub const CALM: Label = Label::Happens("from here on without disturbances");

impl Decisions {
    pub fn new(mutant: Mutant) -> Self {
        Self {
            mutant,
            snapshots: Vec::new(),
            numbers: Numbers::default(),
            decisions: Numbers::default(),
            written: Numbers::default(),
            ending: Known::default(),
        }
    }

    /// What is broken, with the steps that lead to it.
    pub fn with_trace(&self, broken: &Broken, steps: &[Label]) -> Broken {
        let numbered = (1..).zip(steps);
        let line = |(n, step): (usize, &Label)| format!("  {n}. {}", self.text(*step));
        let trace: Vec<String> = numbered.map(line).collect();
        let how = format!("{}\n{}", broken.how, trace.join("\n"));
        Broken::new(broken.invariant, how)
    }

    /// A line of a trace.
    fn text(&self, label: Label) -> String {
        let (driver, how, observed) = match label {
            Label::Happens(name) => return name.to_owned(),
            Label::Driver(driver, how, observed) => (driver, how, observed),
        };
        let name = ["first", "second"][driver];
        let decision = observed.and_then(|observed| self.decisions.get(&observed.key()));
        let decision = decision.map_or_else(String::new, |decision| format!(": {decision}"));
        format!("the {name} cutover {how}{decision}")
    }

    /// How much is known.
    pub fn len(&self) -> usize {
        self.numbers.len() + self.decisions.len() + self.ending.len()
    }

    /// Everything that can happen next; an end that breaks an invariant is an error.
    pub fn steps(&mut self, state: &State) -> Vec<Step> {
        let drivers = state.drivers;
        let step = |(name, world): (&'static str, World)| {
            Step::new(Label::Happens(name), State { world, drivers })
        };
        let spontaneous = state.world.spontaneous_transitions().into_iter().map(step);
        let disturbances = state.world.disturbances().into_iter();
        let disturbances = disturbances.map(step).map(Step::disturbing);
        let mut next: Vec<Step> = spontaneous.chain(disturbances).collect();
        for driver in 0..2 {
            next.extend(self.driver_steps(state, driver));
        }
        next
    }

    fn driver_steps(&mut self, state: &State, driver: usize) -> Vec<Step> {
        let observed = match state.drivers[driver] {
            Driver::Ended => return Vec::new(),
            Driver::Ready | Driver::Knows => return self.observations(state, driver),
            Driver::Decided(observed) => observed,
        };
        let decision = self.decision(&state.world, observed);
        let label = |how| Label::Driver(driver, how, Some(observed));
        let acts = self.act(state, driver, observed, true);
        let mut next = vec![Step::new(label("acts"), acts)];
        if state.world.may(Disturbance::LostAnswer) {
            let mut lost = self.act(state, driver, observed, false);
            lost.world.consume(Disturbance::LostAnswer);
            next.push(Step::new(label("acts and the answer is lost"), lost).disturbing());
        }
        if state.world.may(Disturbance::Crash) {
            let mut crashed = *state;
            crashed.drivers[driver] = Driver::Ready;
            crashed.world.consume(Disturbance::Crash);
            let how = "is killed before it acts, and started again";
            next.push(Step::new(Label::Driver(driver, how, None), crashed).disturbing());
        }
        if matches!(
            *decision,
            Decision::Do(Action::RepointServices | Action::RestoreServices)
        ) && state.world.may(Disturbance::HalfDone)
        {
            let mut half = self.act(state, driver, observed, false);
            half.world.repointed = match half.world.repointed {
                0 => state.world.repointed.min(1),
                _ => state.world.repointed.max(1),
            };
            half.world.consume(Disturbance::HalfDone);
            next.push(Step::new(label("is killed in the middle of it"), half).disturbing());
        }
        next.extend(self.late_effect(state, driver, observed));
        next
    }

    /// The effect, which the server shows late or not completely.
    fn late_effect(&mut self, state: &State, driver: usize, observed: Observed) -> Option<Step> {
        let decision = self.decision(&state.world, observed);
        let Decision::Do(action) = &*decision else {
            return None;
        };
        let block = Action::ReapplyBlock;
        let lateness = match action {
            Action::BlockWrites | Action::UnblockWrites | Action::DisableCrashRestart => {
                Disturbance::LateBlock
            }
            action if *action == block => Disturbance::LateBlock,
            Action::Fence(_) => Disturbance::SlowFence,
            _ => return None,
        };
        if !state.world.may(lateness) {
            return None;
        }
        let mut late = self.act(state, driver, observed, true);
        let how = match lateness {
            Disturbance::SlowFence if state.world.serves() && !late.world.source_up => {
                late.world.stop_slowly(&state.world);
                "acts, and the server does not end yet"
            }
            Disturbance::LateBlock if !late.world.as_reloaded(&state.world) => {
                late.world.not_reloaded(&state.world);
                "acts, and its setting has not reached the server yet"
            }
            _ => return None,
        };
        late.world.consume(lateness);
        Some(Step::new(Label::Driver(driver, how, Some(observed)), late).disturbing())
    }

    /// What a driver decides now, and what it decides if it has waited for long.
    fn observations(&mut self, state: &State, driver: usize) -> Vec<Step> {
        let (observed, decision, next) = self.observe(state, driver, false);
        let how = "observes and decides";
        let mut steps = vec![Step {
            label: Label::Driver(driver, how, Some(observed)),
            disturbs: false,
            waits: matches!(*decision, Decision::Wait(_)),
            next,
        }];
        let limited = |wait| {
            use WaitKind as Kind;
            let kind = Kind::from(wait);
            kind == Kind::SourceUnreachable
                || kind == Kind::SourceGone
                || kind == Kind::TargetUnreachable
                || kind == Kind::PatroniMembersUnreachable
        };
        if let Decision::Wait(wait) = &*decision
            && limited(wait)
        {
            let (observed, decision, next) = self.observe(state, driver, true);
            if !matches!(*decision, Decision::Wait(_)) {
                let how = "has waited and decides";
                steps.push(Step {
                    label: Label::Driver(driver, how, Some(observed)),
                    disturbs: false,
                    waits: false,
                    next,
                });
            }
        }
        steps
    }

    fn observe(
        &mut self,
        state: &State,
        driver: usize,
        waited: bool,
    ) -> (Observed, Rc<Decision>, Result<State, Broken>) {
        let world = &state.world;
        let snapshot = match self.numbers.get(&world.visible()) {
            Some(snapshot) => *snapshot,
            None => {
                self.snapshots
                    .push(self.mutant.without_guard(world.snapshot()));
                self.numbers
                    .insert(world.visible(), self.snapshots.len() - 1);
                self.snapshots.len() - 1
            }
        };
        let observed = Observed {
            record: world.record,
            snapshot,
            waited,
            read: world.version,
            versions: Versions::of(world),
        };
        let decision = self.remembering(state.drivers[driver], world, observed);
        let mut next = *state;
        next.world.judge(&decision);
        if state.drivers[driver] == Driver::Knows
            && world.has(|record| record.started.is_none())
            && !matches!(*decision, Decision::Alarm(_))
        {
            let how = "a driver begins again although its record was lost";
            return (observed, decision, Err(Broken::new(Invariant::S11, how)));
        }
        let broken = match &*decision {
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
        next.drivers[driver] = match &*decision {
            Decision::Done | Decision::Refuse(_) | Decision::NotReady(_) | Decision::Alarm(_) => {
                Driver::Ended
            }
            Decision::Wait(_) => rest(world, world.record),
            Decision::Record(_) | Decision::Do(_) => Driver::Decided(observed),
        };
        (observed, decision, broken.map_or(Ok(next), Err))
    }

    /// The decision of a driver that ends when it has lost its record, as `drive` does.
    fn remembering(&mut self, driver: Driver, world: &World, observed: Observed) -> Rc<Decision> {
        let forgets = Mutant::Without(Guard::Contradiction(ContradictionKind::RecordLost));
        let lost = driver == Driver::Knows && world.has(|record| record.started.is_none());
        if lost && self.mutant != forgets {
            let last = FactKind::Started;
            return Rc::new(Decision::Alarm(Contradiction::RecordLost { last }));
        }
        self.decision(world, observed)
    }

    fn decision(&mut self, world: &World, observed: Observed) -> Rc<Decision> {
        let (mutant, snapshots) = (self.mutant, &self.snapshots);
        let decide = || {
            Rc::new(mutant.decide(
                &World::journal_of(observed.record),
                &snapshots[observed.snapshot],
                observed.waited,
                world,
            ))
        };
        self.decisions
            .entry(observed.key())
            .or_insert_with(decide)
            .clone()
    }

    /// Like `drive`: after a recorded fact the driver decides again on the same snapshot, after an
    /// effect it takes a new snapshot.
    fn act(&mut self, state: &State, driver: usize, observed: Observed, answered: bool) -> State {
        let mut next = *state;
        let current = self.numbers.get(&state.world.visible()) == Some(&observed.snapshot)
            && state.world.record == observed.record;
        let checked = self.mutant != Mutant::NoCompareAndSwap;
        let decision = self.decision(&state.world, observed);
        if current {
            next.world.judge(&decision);
        }
        match &*decision {
            Decision::Record(fact) => {
                let known = &mut self.written;
                let number = |world: &World| {
                    let write = || number_of(world.recorded().with(fact.clone()));
                    *known
                        .entry((world.record, observed.key()))
                        .or_insert_with(write)
                };
                let read = observed.read;
                let written = next.world.record_as(fact, read, checked, number);
                let after = Observed {
                    record: next.world.record,
                    read: next.world.version,
                    waited: false,
                    ..observed
                };
                next.drivers[driver] = rest(&next.world, after.record);
                let continues = |decision: Rc<Decision>| {
                    matches!(*decision, Decision::Record(_) | Decision::Do(_))
                };
                if written && answered && continues(self.decision(&state.world, after)) {
                    next.drivers[driver] = Driver::Decided(after);
                }
            }
            Decision::Do(action) => {
                let journal = World::journal_of(observed.record);
                let start = journal.started.as_ref();
                if self.numbers.get(&state.world.visible()) == Some(&observed.snapshot) {
                    next.world.led_by_its_leader(action);
                }
                let versions = (self.mutant != Mutant::NoVersions).then_some(observed.versions);
                let left = start
                    .and_then(|start| next.world.perform(action, start, versions))
                    .filter(|_| answered);
                if self.mutant.waits_for_no_crash_setting() {
                    next.world.stops_applied = state.world.stops_applied;
                }
                if let Some(fact) = left {
                    next.world.record(&fact, observed.read, checked);
                }
                next.drivers[driver] = rest(&state.world, observed.record);
            }
            _ => next.drivers[driver] = rest(&state.world, observed.record),
        }
        next
    }

    /// Checks that a single driver reaches an end when nothing disturbs it.
    ///
    /// # Errors
    /// It does not, or it breaks an invariant on its way.
    pub fn reaches_an_end(&mut self, mut state: State) -> Result<(), Broken> {
        if state.ended() || state.world.waits_for_a_person() {
            return Ok(());
        }
        state.world.fault_budget = 0;
        state.drivers = [Driver::Ready, Driver::Ended];
        let (mut trail, mut worlds, mut waited) = (Vec::new(), Vec::new(), false);
        for _ in 0..ROUNDS_MAX {
            while let Some((_, world)) = state.world.spontaneous_transitions().into_iter().next() {
                state.world = world;
            }
            let ready = !matches!(state.drivers[0], Driver::Decided(_));
            if ready && self.ending.contains(&state.world) {
                self.ending.extend(worlds);
                return Ok(());
            }
            let Some(step) = self.driver_steps(&state, 0).into_iter().next() else {
                self.ending.extend(worlds);
                return Ok(());
            };
            if ready {
                worlds.push(state.world);
            }
            state = step.state()?;
            // Time passes while the driver waits or retries the same action.
            let first_wait = step.waits && !waited;
            waited |= step.waits;
            state.world.clock += u8::from(first_wait || trail.len() % 60 == 59);
            trail.push(step.label);
        }
        let last = trail[trail.len() - 3..]
            .iter()
            .map(|label| self.text(*label));
        let last: Vec<String> = last.collect();
        Err(Broken::new(
            Invariant::Progress,
            format!("no end is reached; the last decisions: {last:?}"),
        ))
    }
}

/// A driver between two rounds. What it has seen matters only where a record can be lost.
fn rest(world: &World, record: usize) -> Driver {
    let loses = world.allowed & Disturbance::RecordDeleted.bit() != 0;
    if loses && World::journal_has(record, Record::under_way) {
        Driver::Knows
    } else {
        Driver::Ready
    }
}

/// Whether the other driver has ended. The invariants of an end apply only then, because the other
/// driver may still change the state.
fn alone(state: &State, driver: usize) -> bool {
    matches!(state.drivers[1 - driver], Driver::Ended)
}
