//! The order of things, and nothing else: facts and one look in, one decision out. No clock, no
//! I/O.
//!
//! Every action may be repeated and may happen late. What must be undone one day is recorded before
//! it is done; what is irreversible happens only after its proof is recorded. `design.md` §4 tells
//! the protocol in words. Here are the beginning and the ends; the course is in `forward` (to the
//! point of no return), `after` (from there on) and `back`.

use crate::{checks::Verdict, failure::Failure, route::Route, wal::Timeline};

use crate::{
    completion as after, cutover as forward,
    decision::{Action, Decision, Limits},
    reason::{Contradiction, Refusal, Wait},
    record::{Fact, GoingBack, Journal, Start},
    rollback as back,
    snapshot::{Observation, PoolerState, Sight},
};

/// Whether this program can do its work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It can, as far as it knows.
    #[default]
    Ok,
    /// Its observations or effects keep failing, and waiting does not help: nobody must be left
    /// blocked because of, say, a missing verb. Past the point of no return this changes nothing.
    Failing(Failure),
}

impl Health {
    /// The failure, if there is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Ok => None,
            Self::Failing(failure) => Some(failure),
        }
    }
}

/// The next decision.
pub fn decide(journal: &Journal, seen: &Observation, health: &Health, limits: &Limits) -> Decision {
    let Some(start) = &journal.started else {
        return begin(seen, health, limits);
    };
    if journal.finished.is_some() {
        return late(start, seen).unwrap_or(Decision::Done);
    }
    if journal.returned.is_some() {
        return back::restore(journal, start, seen)
            .unwrap_or_else(|| Decision::Refuse(rolled_back(journal, health)));
    }
    if let Some(contradiction) = contradiction(journal, start, seen) {
        return Decision::Alarm(contradiction);
    }
    if let Some(promotion) = &journal.promotion {
        return after::after(journal, start, promotion, seen, limits);
    }
    if journal.going_back.is_some() {
        return back::back(journal, start, seen);
    }
    match back::why(journal, start, seen, health, limits) {
        Some(reason) => Decision::Record(Fact::GoingBack(GoingBack {
            at: seen.now,
            reason: reason.to_string(),
        })),
        None => forward::before(journal, start, seen, limits),
    }
}

/// Nothing is recorded yet: either everything is as it must be, or nothing is touched.
fn begin(seen: &Observation, health: &Health, limits: &Limits) -> Decision {
    if let Some(request) = &seen.abort {
        return Decision::Refuse(Refusal::AbortedBeforeStart(request.clone()));
    }
    if let Some(failure) = health.failure() {
        return Decision::Refuse(Refusal::FailingBeforeStart(failure.clone()));
    }
    if let Some(finding) = seen.against() {
        return match finding.verdict {
            Verdict::NotYet => Decision::Wait(Wait::CheckNotPassed(finding.clone())),
            _ => Decision::NotReady(finding.clone()),
        };
    }
    let (Sight::Answers(source), Sight::Answers(target), Sight::Answers(patroni)) =
        (&seen.source, &seen.target, &seen.patroni)
    else {
        return Decision::Wait(Wait::Unreachable(seen.unreachable()));
    };
    let Some(leader) = patroni.leader.clone() else {
        return Decision::Wait(Wait::SourceWithoutLeader);
    };
    let selectors = seen
        .services
        .iter()
        .map(|(name, service)| (name.clone(), service.selector.clone()));
    Decision::Record(Fact::Started(Box::new(Start {
        at: seen.now,
        source: source.identity,
        leader,
        target: target.identity,
        target_owes_restart: target.running.owes_restart(),
        route: route(limits, seen),
        replicas: seen.wanted(),
        config: seen.config.clone(),
        services: selectors.collect(),
        freezes: seen
            .freezes
            .iter()
            .map(|standing| standing.now.clone())
            .collect(),
        paused: patroni.paused,
        read_only: patroni.read_only.clone(),
    })))
}

/// The end of a cutover that has rolled back, with what this program itself failed at.
fn rolled_back(journal: &Journal, health: &Health) -> Refusal {
    let reason = journal.going_back.as_ref().map(|back| back.reason.clone());
    Refusal::RolledBack {
        reason: reason.unwrap_or_default(),
        failure: health.failure().cloned(),
    }
}

/// The way of ROUTE, or by the Services where the source has poolers, because then no client need
/// notice.
pub fn route(limits: &Limits, seen: &Observation) -> Route {
    Route::of(limits.route, !seen.poolers.is_empty())
}

/// After a finished cut: what another cutover has done late, on the sight of a cut that was not
/// finished. It would leave the application without pods, or its clients waiting for ever.
fn late(start: &Start, seen: &Observation) -> Option<Decision> {
    let held_back = !seen
        .poolers_that(|state| state != PoolerState::Serving)
        .is_empty();
    match start.route {
        Route::Config => seen
            .idle(&start.replicas)
            .then_some(Decision::Do(Action::ScaleUp)),
        Route::Service => held_back.then_some(Decision::Do(Action::ResumePoolers)),
    }
}

/// What the record and the sight cannot both be true of.
fn contradiction(journal: &Journal, start: &Start, seen: &Observation) -> Option<Contradiction> {
    if let Some(source) = seen.source.answer()
        && source.identity.system_identifier != start.source.system_identifier
    {
        return Some(Contradiction::SourceReplaced {
            found: source.identity.system_identifier,
            recorded: start.source.system_identifier,
        });
    }
    let target = seen.target.answer()?;
    if target.identity.system_identifier != start.target.system_identifier {
        return Some(Contradiction::TargetReplaced {
            found: target.identity.system_identifier,
            recorded: start.target.system_identifier,
        });
    }
    let promotion = journal.promotion.as_ref()?;
    let expected = Timeline(promotion.timeline.0 + 1);
    if !target.in_recovery && target.identity.timeline != expected {
        return Some(Contradiction::TargetOnWrongTimeline {
            found: target.identity.timeline,
            expected,
        });
    }
    None
}
