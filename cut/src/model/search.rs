//! Breadth first over drivers and world, with the shortest trace to whatever breaks.

use std::collections::{HashSet, VecDeque};

use super::world::{Fuel, World};
use crate::{
    back::back,
    decide::decide,
    decision::{Action, Decision},
    journal::{Fact, Journal, Promotion},
    observation::Observation,
};

/// A guard taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    NoFence,
    NoProof,
    NoCompareAndSwap,
    NoFreeze,
    NoRestartWait,
    NoRecordOfTheReturn,
    NoReturnAtTheDeadline,
}

/// What a search saw.
pub struct Found {
    pub states: usize,
    pub ends: usize,
    /// The invariant's name, a colon, and the shortest trace in words.
    pub broken: Option<String>,
}

/// A driver between its look and its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Driver {
    /// Will look next.
    Ready,
    /// Is about to act on what it saw.
    Decided(Sight),
    /// Has come to an end, or is not started.
    Ended,
}

/// What a driver goes by: numbers of the record and the look, and the versions that its writes carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Sight {
    journal: usize,
    look: usize,
    read: u32,
    apps: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    drivers: [Driver; 2],
}

struct Search {
    mutant: Mutant,
    looks: Vec<Observation>,
    parents: Vec<(usize, String)>,
    states: Vec<State>,
    known: HashSet<State>,
    /// Worlds from which a driver alone has been seen to reach an end.
    ending: HashSet<World>,
}

/// Searches everything that can happen with so many disturbances.
pub fn search(mutant: Mutant, disturbances: u8) -> Found {
    let fuel = Fuel {
        together: disturbances,
        writes: 1,
        stubborn: 1,
        lifts: 1,
        operator: 1,
        failovers: 1,
        cuts: 1,
        crashes: 1,
        lost_answers: 1,
        ticks: 1,
        aborts: 1,
    };
    let first = State {
        world: World::new(fuel),
        drivers: [Driver::Ready, Driver::Ready],
    };
    let mut search = Search {
        mutant,
        looks: Vec::new(),
        parents: vec![(0, String::new())],
        states: vec![first.clone()],
        known: [first].into(),
        ending: HashSet::new(),
    };
    let mut queue = VecDeque::from([0]);
    let mut ends = 0;
    while let Some(index) = queue.pop_front() {
        let state = search.states[index].clone();
        for (step, next) in search.steps(&state) {
            let next = match next {
                Ok(next) => next,
                Err(broken) => return search.failed(ends, index, &step, &broken),
            };
            if let Some(broken) = next.world.broken() {
                return search.failed(ends, index, &step, &broken);
            }
            let mut next = next;
            // The two are alike: which of them is where makes no difference.
            next.drivers.sort_unstable();
            if !search.known.contains(&next) {
                ends += usize::from(next.drivers.iter().all(|driver| *driver == Driver::Ended));
                queue.push_back(search.states.len());
                search.known.insert(next.clone());
                search.states.push(next);
                search.parents.push((index, step));
            }
        }
    }
    for index in 0..search.states.len() {
        if let Err(broken) = search.comes_to_an_end(index) {
            return search.failed(ends, index, "then nothing disturbs any more", &broken);
        }
    }
    Found {
        states: search.states.len(),
        ends,
        broken: None,
    }
}

impl Search {
    fn failed(&self, ends: usize, mut index: usize, last: &str, broken: &str) -> Found {
        let mut steps = vec![last.to_owned()];
        while index != 0 {
            let (parent, step) = &self.parents[index];
            steps.push(step.clone());
            index = *parent;
        }
        steps.reverse();
        let trace: Vec<String> = steps.iter().enumerate().map(|(n, step)| format!("  {}. {step}", n + 1)).collect();
        Found {
            states: self.states.len(),
            ends,
            broken: Some(format!("{broken}\n{}", trace.join("\n"))),
        }
    }

    /// Everything that can happen next; an end that breaks a promise is an error.
    fn steps(&mut self, state: &State) -> Vec<(String, Result<State, String>)> {
        let mut next: Vec<(String, Result<State, String>)> = state
            .world
            .events(true)
            .into_iter()
            .map(|(name, world)| {
                (
                    name.to_owned(),
                    Ok(State {
                        world,
                        drivers: state.drivers,
                    }),
                )
            })
            .collect();
        for driver in 0..2 {
            next.extend(self.driver_steps(state, driver));
        }
        next
    }

    fn driver_steps(&mut self, state: &State, driver: usize) -> Vec<(String, Result<State, String>)> {
        let name = ["first", "second"][driver];
        match state.drivers[driver] {
            Driver::Ended => Vec::new(),
            Driver::Ready => {
                let (decision, next) = self.look(state, driver);
                vec![(format!("the {name} cutover looks and decides: {decision}"), next)]
            }
            Driver::Decided(sight) => {
                let doing = shown(&self.decision(sight));
                let mut next = vec![(
                    format!("the {name} cutover acts: {doing}"),
                    Ok(self.act(state, driver, sight, true)),
                )];
                let fuel = state.world.fuel;
                if fuel.lost_answers > 0 && fuel.together > 0 {
                    let mut lost = self.act(state, driver, sight, false);
                    lost.world.fuel.lost_answers -= 1;
                    lost.world.fuel.together -= 1;
                    next.push((format!("the {name} cutover acts and the answer is lost: {doing}"), Ok(lost)));
                }
                if fuel.crashes > 0 && fuel.together > 0 {
                    let mut crashed = state.clone();
                    crashed.drivers[driver] = Driver::Ready;
                    crashed.world.fuel.crashes -= 1;
                    crashed.world.fuel.together -= 1;
                    next.push((
                        format!("the {name} cutover is killed before it acts, and started again"),
                        Ok(crashed),
                    ));
                }
                next
            }
        }
    }

    fn look(&mut self, state: &State, driver: usize) -> (String, Result<State, String>) {
        let seen = self.blinded(state.world.look());
        let look = self.looks.iter().position(|known| *known == seen).unwrap_or_else(|| {
            self.looks.push(seen);
            self.looks.len() - 1
        });
        let sight = Sight {
            journal: state.world.journal,
            look,
            read: state.world.version,
            apps: state.world.app_version,
        };
        let decision = self.decision(sight);
        let mut next = state.clone();
        let broken = match &decision {
            Decision::Done => next.world.cut().filter(|_| alone(&next, driver)),
            Decision::Refuse(_) | Decision::NotReady(_) if state.world.journal().started.is_some() => {
                next.world.restored().filter(|_| alone(&next, driver))
            }
            _ => None,
        };
        next.drivers[driver] = match &decision {
            Decision::Done | Decision::Refuse(_) | Decision::NotReady(_) | Decision::Alarm(_) => Driver::Ended,
            Decision::Wait(_) => Driver::Ready,
            Decision::Record(_) | Decision::Do(_) => Driver::Decided(sight),
        };
        (shown(&decision), broken.map_or(Ok(next), Err))
    }

    fn decision(&self, sight: Sight) -> Decision {
        let (journal, seen) = (World::journal_of(sight.journal), &self.looks[sight.look]);
        let decision = decide(&journal, seen, &World::limits());
        self.mutated(&journal, seen, decision)
    }

    /// As `drive::follow`: what was recorded leads to the next decision on the same look, an effect to a new look.
    fn act(&self, state: &State, driver: usize, sight: Sight, answered: bool) -> State {
        let mut next = state.clone();
        let checked = self.mutant != Mutant::NoCompareAndSwap;
        next.drivers[driver] = Driver::Ready;
        match self.decision(sight) {
            Decision::Record(fact) => {
                let written = next.world.record(fact, sight.read, checked);
                let after = Sight {
                    journal: next.world.journal,
                    read: next.world.version,
                    ..sight
                };
                if written && answered && matches!(self.decision(after), Decision::Record(_) | Decision::Do(_)) {
                    next.drivers[driver] = Driver::Decided(after);
                }
            }
            Decision::Do(action) => {
                let start = World::journal_of(sight.journal).started;
                let left = start
                    .and_then(|start| next.world.perform(&action, &start, sight.apps))
                    .filter(|_| answered);
                if let Some(fact) = left {
                    next.world.record(fact, sight.read, checked);
                }
            }
            _ => {}
        }
        next
    }

    /// From here on nothing disturbs and one driver runs alone: it must come to an end.
    fn comes_to_an_end(&mut self, index: usize) -> Result<(), String> {
        let mut state = self.states[index].clone();
        if state.drivers.iter().all(|driver| *driver == Driver::Ended) {
            return Ok(());
        }
        state.drivers = [Driver::Ready, Driver::Ended];
        let (mut trail, mut worlds) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            while let Some((_, world)) = state.world.events(false).into_iter().next() {
                state.world = world;
            }
            let ready = state.drivers[0] == Driver::Ready;
            let Some((step, next)) = (if ready && self.ending.contains(&state.world) {
                None
            } else {
                self.driver_steps(&state, 0).into_iter().next()
            }) else {
                self.ending.extend(worlds);
                return Ok(());
            };
            if ready {
                worlds.push(state.world.clone());
            }
            state = next?;
            // Time passes while one waits, or tries the same thing again and again.
            state.world.clock +=
                u8::from(step.contains("Wait(") && !trail.iter().any(|t: &String| t.contains("Wait(")) || trail.len() % 60 == 59);
            trail.push(step);
        }
        Err(format!(
            "progress: no end is reached; the last decisions: {:?}",
            &trail[trail.len() - 3..]
        ))
    }

    fn blinded(&self, mut seen: Observation) -> Observation {
        match self.mutant {
            Mutant::NoFreeze => seen.controller = Some(shared::kubernetes::zalando::FROZEN.to_owned()),
            Mutant::NoRestartWait => {
                if let crate::observation::Sight::Answers(target) = &mut seen.target {
                    target.running.archive_mode = "on".into();
                    target.running.postmaster_start = seen.now;
                    target.running.now = seen.now - jiff::SignedDuration::from_secs(1);
                }
            }
            Mutant::NoReturnAtTheDeadline => seen.now = World::new(self.states[0].world.fuel).look().now,
            _ => {}
        }
        seen
    }

    fn mutated(&self, journal: &Journal, seen: &Observation, decision: Decision) -> Decision {
        let promotion = || {
            let start = journal.started.as_ref()?;
            let target = seen.target.answer()?;
            Some(Decision::Record(Fact::Promotion(Promotion {
                at: seen.now,
                shutdown_checkpoint: target.control.checkpoint,
                replayed: target.replay.replay?,
                timeline: start.source.timeline,
                target_clock: target.running.now,
            })))
        };
        let instead = match (self.mutant, &decision) {
            (Mutant::NoFence, Decision::Do(Action::Fence(_) | Action::Restartpoint)) if !journal.past_return() => promotion(),
            (Mutant::NoProof, Decision::Do(Action::Restartpoint)) => promotion(),
            (Mutant::NoRecordOfTheReturn, Decision::Record(Fact::GoingBack(_))) => {
                journal.started.as_ref().map(|start| back(journal, start, seen))
            }
            _ => None,
        };
        instead.unwrap_or(decision)
    }
}

/// Nobody else is in the middle of something: what another driver is about to do is not this one's end.
fn alone(state: &State, driver: usize) -> bool {
    matches!(state.drivers[1 - driver], Driver::Ended)
}

/// A decision in a few words.
fn shown(decision: &Decision) -> String {
    let text = match decision {
        Decision::Record(fact) => format!("record {fact:?}"),
        other => format!("{other:?}"),
    };
    text.chars().take(80).collect()
}
