//! The order of things, and nothing else: facts and one look in, one decision out. No clock, no
//! I/O.
//!
//! Every action may be repeated and may happen late. What must be undone one day is recorded before
//! it is done; what is irreversible happens only after its proof is recorded. docs/protocol.md
//! describes the protocol. Here are the beginning and the ends; the course is in `forward` (to the
//! point of no return), `after` (from there on) and `back`.

use crate::{
    checks,
    failure::Failure,
    finding::{self, Verdict},
    route::Route,
    wal::Timeline,
};

use crate::{
    completion as after, cutover as forward,
    decision::{Action, Decision, Limits},
    reason::{Contradiction, Refusal, Wait},
    record::{Fact, Record, RollbackStarted, Start},
    rollback as back,
    snapshot::{PoolerState, Reachability, Snapshot},
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
pub fn decide(record: &Record, seen: &Snapshot, health: &Health, limits: &Limits) -> Decision {
    let Some(start) = &record.started else {
        return begin(seen, health, limits);
    };
    if record.finished.is_some() {
        return late(start, seen).unwrap_or(Decision::Done);
    }
    if record.rolled_back.is_some() {
        return back::restore(record, start, seen)
            .unwrap_or_else(|| Decision::Refuse(rolled_back(record, health)));
    }
    if let Some(contradiction) = contradiction(record, start, seen) {
        return Decision::Alarm(contradiction);
    }
    if let Some(promotion) = &record.promotion {
        return after::after(record, start, promotion, seen, limits);
    }
    if record.rollback_started.is_some() {
        return back::back(record, start, seen);
    }
    match back::why(record, start, seen, health, limits) {
        Some(reason) => Decision::Record(Fact::RollbackStarted(RollbackStarted {
            at: seen.now,
            reason: reason.to_string(),
        })),
        None => forward::before(record, start, seen, limits),
    }
}

/// Nothing is recorded yet: either everything is as it must be, or nothing is touched.
fn begin(seen: &Snapshot, health: &Health, limits: &Limits) -> Decision {
    if let Some(request) = &seen.abort {
        return Decision::Refuse(Refusal::AbortedBeforeStart(request.clone()));
    }
    if let Some(failure) = health.failure() {
        return Decision::Refuse(Refusal::FailingBeforeStart(failure.clone()));
    }
    let findings = checks::all(seen, limits);
    if let Some(finding) = finding::gravest(&findings) {
        return match finding.verdict {
            Verdict::NotYet => Decision::Wait(Wait::CheckNotPassed(finding.clone())),
            _ => Decision::NotReady(finding.clone()),
        };
    }
    let (Reachability::Up(source), Reachability::Up(target), Reachability::Up(patroni)) =
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
        target_pending_restart: target.running.pending_restart_after_promotion(),
        route: route(limits, seen),
        replicas: seen.wanted(),
        config: seen.config.clone(),
        services: selectors.collect(),
        suspensions: seen
            .suspensions
            .iter()
            .map(|standing| standing.now.clone())
            .collect(),
        paused: patroni.paused,
        read_only: patroni.read_only.clone(),
        accepted: findings
            .iter()
            .filter(|finding| finding.accepted)
            .map(ToString::to_string)
            .collect(),
    })))
}

/// The end of a cutover that has rolled back, with what this program itself failed at.
fn rolled_back(record: &Record, health: &Health) -> Refusal {
    let reason = record
        .rollback_started
        .as_ref()
        .map(|back| back.reason.clone());
    Refusal::RolledBack {
        reason: reason.unwrap_or_default(),
        failure: health.failure().cloned(),
    }
}

/// The way of ROUTE, or by the Services where the source has poolers, because then no client need
/// notice.
pub fn route(limits: &Limits, seen: &Snapshot) -> Route {
    Route::of(limits.route, !seen.poolers.is_empty())
}

/// After a finished cut: what another cutover has done late, on the sight of a cut that was not
/// finished. It would leave the application without pods, or its clients waiting for ever.
fn late(start: &Start, seen: &Snapshot) -> Option<Decision> {
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
fn contradiction(record: &Record, start: &Start, seen: &Snapshot) -> Option<Contradiction> {
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
    let promotion = record.promotion.as_ref()?;
    let expected = Timeline(promotion.timeline.0 + 1);
    if !target.in_recovery && target.identity.timeline != expected {
        return Some(Contradiction::TargetOnWrongTimeline {
            found: target.identity.timeline,
            expected,
        });
    }
    None
}
