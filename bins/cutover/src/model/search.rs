//! Breadth first over drivers and world, with the shortest trace to whatever breaks.

use std::collections::{HashSet, VecDeque};

use super::world::{Fuel, World};
use crate::{
    back::back,
    decide::{Action, Decision, decide},
    journal::{Fact, Journal, Promotion, Start},
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Driver {
    /// Will look next.
    Ready,
    /// Has decided on what it saw; the number of the decision tells states apart.
    Decided { read: u32, apps: u8, decision: usize },
    /// Has come to an end, or is not started.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    drivers: [Driver; 2],
}

/// A decision and the start it was taken with; a state holds only its number.
#[derive(PartialEq)]
struct Decided {
    decision: Decision,
    start: Option<Start>,
}

struct Search {
    mutant: Mutant,
    decisions: Vec<Decided>,
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
        decisions: Vec::new(),
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
                        drivers: state.drivers.clone(),
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
        match &state.drivers[driver] {
            &Driver::Ended => Vec::new(),
            &Driver::Ready => {
                let (decision, next) = self.look(state, driver);
                vec![(format!("the {name} cutover looks and decides: {decision}"), next)]
            }
            &Driver::Decided { read, apps, decision } => {
                let read = (read, apps);
                let doing = shown(&self.decisions[decision].decision);
                let mut next = vec![(
                    format!("the {name} cutover acts: {doing}"),
                    Ok(self.act(state, driver, read, decision, true)),
                )];
                let fuel = state.world.fuel;
                if fuel.lost_answers > 0 && fuel.together > 0 {
                    let mut lost = self.act(state, driver, read, decision, false);
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
        let (journal, seen) = (state.world.journal(), self.blinded(state.world.look()));
        let decision = self.mutated(&journal, &seen, decide(&journal, &seen, &World::limits()));
        let mut next = state.clone();
        let text = shown(&decision);
        let broken = match &decision {
            Decision::Done => next.world.cut().filter(|_| alone(&next, driver)),
            Decision::Refuse(_) | Decision::NotReady(_) if journal.started.is_some() => {
                next.world.restored().filter(|_| alone(&next, driver))
            }
            _ => None,
        };
        next.drivers[driver] = match &decision {
            Decision::Done | Decision::Refuse(_) | Decision::NotReady(_) | Decision::Alarm(_) => Driver::Ended,
            Decision::Wait(_) => Driver::Ready,
            Decision::Record(_) | Decision::Do(_) => Driver::Decided {
                read: state.world.version,
                apps: state.world.app_version,
                decision: self.number_of(Decided {
                    decision,
                    start: journal.started,
                }),
            },
        };
        (text, broken.map_or(Ok(next), Err))
    }

    fn number_of(&mut self, decided: Decided) -> usize {
        self.decisions.iter().position(|known| *known == decided).unwrap_or_else(|| {
            self.decisions.push(decided);
            self.decisions.len() - 1
        })
    }

    fn act(&self, state: &State, driver: usize, (read, apps): (u32, u8), decision: usize, answered: bool) -> State {
        let mut next = state.clone();
        let checked = self.mutant != Mutant::NoCompareAndSwap;
        let Decided { decision, start } = &self.decisions[decision];
        let fact = match decision {
            Decision::Record(fact) => Some(fact.clone()),
            Decision::Do(action) => start
                .as_ref()
                .and_then(|start| next.world.perform(action, start, apps))
                .filter(|_| answered),
            _ => None,
        };
        if let Some(fact) = fact {
            next.world.record(fact, read, checked);
        }
        next.drivers[driver] = Driver::Ready;
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
            // Time passes while one waits.
            state.world.late |= step.contains("Wait(");
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
