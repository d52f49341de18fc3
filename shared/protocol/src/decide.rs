//! The order of the steps: a pure function from the record and one snapshot to the next decision,
//! without a clock and without I/O.
//!
//! Every action may be repeated and may happen late. Whatever a rollback has to undo is recorded
//! before it is done; an irreversible action happens only after its proof is recorded.
//! docs/protocol.md describes the protocol. This module decides the start and the ends. The steps
//! between them are in [`cutover`] (up to the point of no return), [`completion`] (past it) and
//! [`rollback`].

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    checks,
    completion::{self, services_repointed},
    controllers::{owners::GitOpsManaged, suspension::SUSPENDED},
    cutover,
    decision::{Action, Decision, Limits},
    failure::Failure,
    finding::{self, Verdict},
    reason::{Contradiction, Refusal, Wait, WaitKind},
    record::{Fact, Record, RollbackStarted, Start},
    rollback,
    route::Route,
    snapshot::{PoolerState, Reachability, Snapshot, kubernetes::StoredManifest},
};

/// Whether this program is able to do its work, as its driver has seen it so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Its observations or effects keep failing, for example because of a missing verb, and waiting
    /// does not help. Before the point of no return the cutover then rolls back, so that no client
    /// stays blocked; past it this changes nothing.
    pub failure: Option<Failure>,
    /// What the last observations have waited for without an interruption, and since when.
    pub waiting: Option<(WaitKind, Timestamp)>,
    /// How long the observations before this one have failed: the API server did not answer, and
    /// so it did not to the operators.
    pub interrupted: Option<Duration>,
}

/// The next decision that follows from the record and the latest snapshot.
pub fn decide(record: &Record, seen: &Snapshot, health: &Health, limits: &Limits) -> Decision {
    let Some(start) = &record.started else {
        return begin(seen, health, limits);
    };
    if record.finished.is_some() {
        return undo_late_action(start, seen, limits).unwrap_or(Decision::Done);
    }
    if record.rolled_back.is_some() {
        return rollback::restore(record, start, seen)
            .unwrap_or_else(|| Decision::Refuse(rolled_back(record, health)));
    }
    if let Some(contradiction) = contradiction(record, start, seen) {
        return Decision::Alarm(contradiction);
    }
    if let Some(promotion) = &record.promotion {
        return completion::after(record, start, promotion, seen, limits);
    }
    if record.rollback_started.is_some() {
        return rollback::back(record, start, seen);
    }
    match rollback::why(record, start, seen, health, limits) {
        Some(reason) => Decision::Record(Fact::RollbackStarted(RollbackStarted {
            at: seen.now,
            reason: reason.to_string(),
        })),
        None => cutover::before(record, start, seen, limits),
    }
}

/// Before the start is recorded: the cutover begins only when all checks pass.
fn begin(seen: &Snapshot, health: &Health, limits: &Limits) -> Decision {
    if let Some(request) = &seen.abort {
        return Decision::Refuse(Refusal::AbortedBeforeStart(request.clone()));
    }
    if let Some(failure) = &health.failure {
        return Decision::Refuse(Refusal::FailingBeforeStart(failure.clone()));
    }
    let suspended_by = seen
        .prechecks
        .as_ref()
        .and_then(|asked| asked.operator.as_deref());
    if suspended_by == Some(SUSPENDED) {
        return Decision::Alarm(Contradiction::MarksWithoutRecord);
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
        managed: managed(seen),
        paused: patroni.paused,
        read_only: patroni.read_only.clone(),
        restart_after_crash: patroni.restart_after_crash.clone(),
        accepted: findings
            .iter()
            .filter(|finding| finding.accepted || finding.verdict == Verdict::Decide)
            .map(ToString::to_string)
            .collect(),
    })))
}

/// The objects of the change that a GitOps controller applies, where they were looked for.
fn managed(seen: &Snapshot) -> Vec<GitOpsManaged> {
    let controllers = seen
        .prechecks
        .as_ref()
        .and_then(|one| one.controllers.as_ref());
    controllers.map_or_else(Vec::new, |found| found.managed.clone())
}

/// The end of a cutover that has rolled back, with this program's own failure, if there is one.
fn rolled_back(record: &Record, health: &Health) -> Refusal {
    let reason = record
        .rollback_started
        .as_ref()
        .map(|back| back.reason.clone());
    Refusal::RolledBack {
        reason: reason.unwrap_or_default(),
        failure: health.failure.clone(),
    }
}

/// The route that ROUTE selects. Without that setting it is the Services if the source has poolers,
/// because then clients only wait.
pub fn route(limits: &Limits, seen: &Snapshot) -> Route {
    Route::of(limits.route, !seen.poolers.is_empty())
}

/// Undoes a late action of another cutover run, which acted on a snapshot from before the cutover
/// was finished, or of the Zalando operator, which does not look at its suspension again before a
/// sync that was queued earlier. Such an action would leave the application without pods, its
/// clients waiting forever, or the Services at a source that is stopped. A pooler whose console
/// does not answer may be paused, so it is waited for. Also rewrites a stored manifest that
/// prepare-zalando has written late, because it had begun before the promotion was recorded.
fn undo_late_action(start: &Start, seen: &Snapshot, limits: &Limits) -> Option<Decision> {
    let paused = !seen
        .poolers_that(|state| state != PoolerState::Serving)
        .is_empty();
    let held_back = match start.route {
        Route::Config => seen.idle(&start.replicas).then_some(Action::ScaleUp),
        Route::Service if !services_repointed(seen, limits) => Some(Action::RepointServices),
        Route::Service => paused.then_some(Action::ResumePoolers),
    };
    let follows = seen.manifest == StoredManifest::Follows;
    let pods = seen.poolers_silent();
    let silent = start.route == Route::Service && !pods.is_empty();
    held_back
        .or(follows.then_some(Action::RewriteManifest))
        .map(Decision::Do)
        .or(silent.then_some(Decision::Wait(Wait::PoolersUnreachable { pods })))
}

/// The contradiction between the record and the snapshot, if there is one.
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
    if let Some(source) = seen.source.answer()
        && target.answers_as(source)
    {
        return Some(Contradiction::TargetAnswersAsSource);
    }
    // The proof is about the instance that was observed; what was promoted may be another one.
    let (left, proved) = (target.left(promotion.timeline), promotion.replayed);
    (!target.in_recovery && left != Some(proved)).then_some(Contradiction::PromotedElsewhere {
        timeline: target.identity.timeline,
        left,
        proved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Fenced, Promotion},
        simulation::{limits, look, started},
        snapshot::source::PostmasterStart,
        wal::{Lsn, Switch, Timeline},
    };

    /// A record past the point of no return, and a snapshot of the promoted target.
    fn promoted() -> (Record, Snapshot) {
        let mut seen = look();
        let promotion = Promotion {
            at: seen.now,
            shutdown_checkpoint: Lsn(0x400_0028),
            replayed: Lsn(0x400_00A0),
            timeline: Timeline(1),
            target_clock: seen.now,
        };
        seen.cluster.follows = false;
        if let Reachability::Up(target) = &mut seen.target {
            (target.in_recovery, target.identity.timeline) = (false, Timeline(2));
            target.history = vec![Switch {
                timeline: promotion.timeline,
                at: promotion.replayed,
            }];
        }
        let fenced = Fenced {
            at: seen.now,
            lsn: Lsn(0x400_0000),
            postmaster_start: PostmasterStart(0),
            reconnected: Vec::new(),
        };
        let record = started()
            .with(Fact::Blocked(seen.now))
            .with(Fact::Fenced(fenced))
            .with(Fact::Promotion(promotion));
        (record, seen)
    }

    fn next(record: &Record, seen: &Snapshot) -> Decision {
        decide(record, seen, &Health::default(), &limits())
    }

    #[test]
    fn a_promotion_elsewhere_is_a_contradiction() {
        let (record, mut seen) = promoted();
        assert!(!matches!(next(&record, &seen), Decision::Alarm(_)));
        for (history, left) in [
            (
                vec![Switch {
                    timeline: Timeline(1),
                    at: Lsn(0x400_0000),
                }],
                Some(Lsn(0x400_0000)),
            ),
            (Vec::new(), None),
        ] {
            if let Reachability::Up(target) = &mut seen.target {
                target.history = history;
            }
            assert_eq!(
                next(&record, &seen),
                Decision::Alarm(Contradiction::PromotedElsewhere {
                    timeline: Timeline(2),
                    left,
                    proved: Lsn(0x400_00A0),
                })
            );
        }
    }

    #[test]
    fn the_target_is_not_fenced_when_it_answers_as_the_source() {
        let (record, mut seen) = promoted();
        let (Reachability::Up(source), Reachability::Up(target)) =
            (&mut seen.source, &mut seen.target)
        else {
            panic!("both answer")
        };
        // Another actor has started the source, which must be stopped.
        assert!(source.primary);
        let run = source.run();
        source.identity = target.identity;
        let started = target.running.postmaster_start.as_microsecond();
        source.postmaster_start = PostmasterStart(started);
        assert_eq!(
            next(&record, &seen),
            Decision::Alarm(Contradiction::TargetAnswersAsSource)
        );
        // While the target does not answer for itself, it may be either.
        let target = std::mem::replace(
            &mut seen.target,
            Reachability::Unreachable(Failure::transient("restarting")),
        );
        suspended(&record, &mut seen);
        assert!(matches!(next(&record, &seen), Decision::Wait(_)));
        seen.target = target;
        if let Reachability::Up(source) = &mut seen.source {
            (source.identity.timeline, source.postmaster_start) =
                (run.timeline, run.postmaster_start);
        }
        assert_eq!(next(&record, &seen), Decision::Do(Action::Fence(run)));
    }

    /// Everything is as the cutover has left it: controllers suspended, Patroni paused.
    fn suspended(record: &Record, seen: &mut Snapshot) {
        let start = record.started.as_ref().unwrap();
        for state in &mut seen.suspensions {
            state.now.original = state.now.suspended.clone();
        }
        seen.suspensions.retain(|state| {
            let key = state.now.key();
            start
                .suspensions
                .iter()
                .any(|recorded| recorded.key() == key)
        });
        if let Reachability::Up(patroni) = &mut seen.patroni {
            (patroni.paused, patroni.read_only) = (Some(true), Some("on".into()));
            patroni.restart_after_crash = Some("off".into());
        }
    }

    #[test]
    fn a_service_that_is_turned_back_late_is_repointed() {
        let (record, mut seen) = promoted();
        let mut record = record.with(Fact::Finished(seen.now));
        record.started.as_mut().unwrap().route = Route::Service;
        seen.manifest = StoredManifest::Promoted;
        for (name, service) in &mut seen.services {
            service.selector = limits().services.get(name).cloned();
        }
        assert_eq!(next(&record, &seen), Decision::Done);
        seen.services.values_mut().next().unwrap().selector = None;
        assert_eq!(next(&record, &seen), Decision::Do(Action::RepointServices));
    }

    #[test]
    fn a_silent_pooler_may_have_been_paused_late_and_is_waited_for() {
        let (record, mut seen) = promoted();
        let mut record = record.with(Fact::Finished(seen.now));
        record.started.as_mut().unwrap().route = Route::Service;
        seen.manifest = StoredManifest::Promoted;
        for (name, service) in &mut seen.services {
            service.selector = limits().services.get(name).cloned();
        }
        seen.poolers[0].state = Reachability::Unreachable(Failure::transient("refused"));
        let pods = vec![seen.poolers[0].pod.clone()];
        let wait = Wait::PoolersUnreachable { pods };
        assert_eq!(next(&record, &seen), Decision::Wait(wait));
        seen.poolers[0].state = Reachability::Up(PoolerState::Paused);
        assert_eq!(next(&record, &seen), Decision::Do(Action::ResumePoolers));
    }
}
