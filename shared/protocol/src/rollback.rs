//! The rollback before the point of no return: its reasons and the order of its steps.

use std::time::Duration;

use jiff::SignedDuration;

use crate::{
    decide::Health,
    decision::{Action, Decision, Limits},
    quantity::elapsed,
    reason::{Contradiction, Progress, Refusal, RollbackReason, Server, Since, Wait, WaitKind},
    record::{Fact, Record, Start},
    route::Route,
    snapshot::{PatroniState, PoolerState, Snapshot, kubernetes::ServiceState},
};

/// Whether a rollback is possible, by the record alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollbackAvailability {
    /// No cutover has begun: the application runs on the source.
    Nothing,
    /// A cutover has begun and has not reached the point of no return.
    Possible,
    /// The promotion is recorded: why a rollback is no longer possible.
    TooLate(Refusal),
}

/// Whether a rollback is possible according to this record.
pub fn rollback_availability(record: &Record) -> RollbackAvailability {
    if record.started.is_none() {
        return RollbackAvailability::Nothing;
    }
    let Some(promotion) = &record.promotion else {
        return RollbackAvailability::Possible;
    };
    let progress = match (&record.promoted, &record.finished) {
        (None, _) => Progress::Promoting,
        (Some(_), None) => Progress::Promoted,
        (Some(_), Some(_)) => Progress::Finished,
    };
    RollbackAvailability::TooLate(Refusal::PastPointOfNoReturn {
        recorded: promotion.at,
        progress,
    })
}

/// How long to wait for Patroni's loop, which runs every loop_wait (10 s in Spilo). A change that
/// it has not made after this time is not expected any more.
const LOOP_MAX: SignedDuration = SignedDuration::from_secs(20);
/// How long Patroni itself lets a leader recover before it elects another one
/// (primary_start_timeout).
const STARTING_MAX: SignedDuration = SignedDuration::from_secs(300);

/// How long a server may be unreachable while clients wait: longer than one observation waits for
/// it, and shorter than an unpaused Patroni would need to replace it.
const UNREACHABLE_MAX: Duration = Duration::from_secs(5);

/// The reason to roll back now, if there is one.
pub fn why(
    record: &Record,
    start: &Start,
    seen: &Snapshot,
    health: &Health,
    limits: &Limits,
) -> Option<RollbackReason> {
    if let Some(request) = &seen.abort {
        return Some(RollbackReason::AbortRequested(request.clone()));
    }
    if let Some(failure) = &health.failure {
        return Some(RollbackReason::PermanentFailure(failure.clone()));
    }
    if seen.cluster.missing {
        return Some(RollbackReason::TargetDeleted);
    }
    if !seen.cluster.follows {
        return Some(RollbackReason::TargetReplicaModeEnded);
    }
    if let Some(source) = seen.source.answer()
        && source.primary
        && source.identity.timeline != start.source.timeline
    {
        return Some(RollbackReason::SourceFailedOver {
            timeline: source.identity.timeline,
            recorded: start.source.timeline,
        });
    }
    if let Some(leader) = seen
        .patroni
        .answer()
        .and_then(|patroni| patroni.leader.as_ref())
        && *leader != start.leader
    {
        return Some(RollbackReason::LeaderChanged {
            leader: leader.clone(),
            recorded: start.leader.clone(),
        });
    }
    if seen.held() == Some(true) && seen.source.answer().is_some_and(|source| !source.primary) {
        return Some(RollbackReason::LeaderDemoted);
    }
    if let Some(target) = seen.target.answer()
        && !target.in_recovery
    {
        return Some(RollbackReason::TargetPromoted);
    }
    if let Some(reason) = futile(record, seen, health, limits) {
        return Some(reason);
    }
    let (since, began) = match record.blocked {
        Some(blocked) => (Since::Block, blocked),
        None => (Since::Start, start.at),
    };
    let elapsed = elapsed(began, seen.now);
    (elapsed >= limits.cutover_max).then_some(RollbackReason::DeadlineExceeded {
        since,
        seconds: elapsed.as_secs(),
    })
}

/// Why waiting is futile while clients wait: a server that the next step needs is gone, the API
/// server was, or the source's server does not end. Patroni is paused and starts or replaces none
/// of them.
fn futile(
    record: &Record,
    seen: &Snapshot,
    health: &Health,
    limits: &Limits,
) -> Option<RollbackReason> {
    record.blocked?;
    // The promotion is another controller's, which waits after such an interruption before it asks
    // the API server again: half a minute and more, against a second for the rollback.
    if let Some(interrupted) = health.interrupted
        && interrupted >= UNREACHABLE_MAX
    {
        return Some(RollbackReason::ApiServerLost {
            seconds: interrupted.as_secs(),
        });
    }
    if let Some(fenced) = &record.fenced {
        let elapsed = elapsed(fenced.at, seen.now);
        let seconds = elapsed.as_secs();
        let reason = || match health.waiting {
            Some((kind, _)) if of_instances(kind) => RollbackReason::InstancesNotInStep { seconds },
            _ => RollbackReason::NotFencedInTime {
                seconds,
                unreachable: silent(seen),
            },
        };
        return (elapsed >= limits.fence_max).then(reason);
    }
    let (kind, since) = health.waiting?;
    let elapsed = elapsed(since, seen.now);
    let seconds = elapsed.as_secs();
    let reason = match kind {
        kind if of_instances(kind) => {
            return (elapsed >= limits.fence_max)
                .then_some(RollbackReason::InstancesNotInStep { seconds });
        }
        WaitKind::SourceUnreachable | WaitKind::SourceGone => RollbackReason::ServerLost {
            server: Server::Source,
            seconds,
        },
        WaitKind::TargetUnreachable => RollbackReason::ServerLost {
            server: Server::Target,
            seconds,
        },
        WaitKind::PatroniMembersUnreachable => RollbackReason::MembersSilent {
            members: silent(seen),
            seconds,
        },
        _ => return None,
    };
    (elapsed >= UNREACHABLE_MAX).then_some(reason)
}

/// The wait is for further instances of the target, or for its switchover.
fn of_instances(kind: WaitKind) -> bool {
    matches!(
        kind,
        WaitKind::InstancesBehind | WaitKind::TargetSwitchingOver
    )
}

/// The members of the source whose Patroni does not answer.
fn silent(seen: &Snapshot) -> Vec<String> {
    let patroni = seen.patroni.answer();
    patroni.map_or_else(Vec::new, |patroni| patroni.silent.clone())
}

/// The next step of the rollback. The order gives the application its database back soonest.
pub fn back(record: &Record, start: &Start, seen: &Snapshot) -> Decision {
    if let Some(step) = restore(record, start, seen) {
        return step;
    }
    match seen.not_ready(&start.replicas) {
        Some(missing) if record.blocked.is_some() && start.route == Route::Config => {
            Decision::Wait(missing)
        }
        _ => Decision::Record(Fact::RolledBack(seen.now)),
    }
}

/// The next change that is still to be undone. Also asked after the rollback: another cutover run
/// may have acted late, on a stale snapshot.
pub fn restore(record: &Record, start: &Start, seen: &Snapshot) -> Option<Decision> {
    // Before the block only the fields that suspend controllers were changed, and what a crash
    // leads to.
    let step = if record.blocked.is_some() {
        reopen(record, start, seen)
    } else {
        restart_after_crash(record, start, seen)
    };
    if step.is_some() {
        return step;
    }
    let suspension = seen.unlike(start, |_| true)?;
    Some(Decision::Do(Action::ResumeController(suspension.key())))
}

/// Restores what a crash of the source leads to, where nothing else of it was changed.
fn restart_after_crash(record: &Record, start: &Start, seen: &Snapshot) -> Option<Decision> {
    let Some(patroni) = seen.patroni.answer() else {
        let failure = seen.patroni.failure().cloned();
        let wait = Wait::RollbackPatroniUnreachable(failure);
        return record.suspended.is_some().then_some(Decision::Wait(wait));
    };
    (patroni.restart_after_crash != start.restart_after_crash)
        .then_some(Decision::Do(Action::UnblockWrites))
}

/// Restores the source's server, then its writes, then the route to it and the application.
fn reopen(record: &Record, start: &Start, seen: &Snapshot) -> Option<Decision> {
    let Some(patroni) = seen.patroni.answer() else {
        let failure = seen.patroni.failure().cloned();
        return Some(Decision::Wait(Wait::RollbackPatroniUnreachable(failure)));
    };
    let waited = waited(record, seen);
    if seen.source.answer().is_none() && patroni.paused == Some(true) {
        let step = unreachable_source(patroni, start, waited);
        if let Some(step) = step.or_else(|| unsafe_election(record, seen, patroni)) {
            return Some(step);
        }
    }
    let restored = patroni.paused == start.paused
        && patroni.read_only == start.read_only
        && patroni.restart_after_crash == start.restart_after_crash;
    if !restored {
        return Some(
            match unsettled(patroni, seen).filter(|_| waited < LOOP_MAX) {
                Some(wait) => Decision::Wait(wait),
                None => Decision::Do(Action::UnblockWrites),
            },
        );
    }
    match seen.source.answer() {
        Some(source) if source.primary && !source.read_only => {}
        // Patroni never applies a change that arrives while it starts a server (reload_config in
        // Patroni's postgresql/config.py): a lifted block stays in force until the next start.
        Some(source)
            if source.primary
                && start.read_only.as_deref() != Some("on")
                && waited >= LOOP_MAX * 2 =>
        {
            return Some(Decision::Do(Action::RestartSource));
        }
        _ => {
            return Some(Decision::Wait(Wait::RollbackSourceNotWritable));
        }
    }
    match start.route {
        Route::Config => application(start, seen),
        Route::Service => services_and_poolers(start, seen, waited),
    }
}

/// Time since the rollback began, or since the postmaster started if that was later.
fn waited(record: &Record, seen: &Snapshot) -> SignedDuration {
    let began = record
        .rollback_started
        .as_ref()
        .map_or(seen.now, |back| back.at);
    let started = seen
        .source
        .answer()
        .and_then(|source| source.postmaster_start.began())
        // By the source's clock, which may be ahead.
        .map(|started| started.min(seen.now));
    seen.now
        .duration_since(started.map_or(began, |started| began.max(started)))
}

/// The next step for a server that does not answer while Patroni is paused; None when only an
/// election can help.
///
/// A paused Patroni promotes no other member, so a restart brings the same server back on the same
/// timeline. A restart does not help a server that Patroni has demoted without its DCS, because it
/// stays a standby, or one whose node is lost. For these the pause is lifted, and Patroni elects a
/// leader; a member that is behind another one cannot win (_is_healthiest_node in Patroni's ha.py).
fn unreachable_source(
    patroni: &PatroniState,
    start: &Start,
    waited: SignedDuration,
) -> Option<Decision> {
    if patroni.primaries.is_empty() {
        // It was restarted as a standby a moment ago, and another restart would end the session
        // that is being opened.
        if patroni.standbys.contains(&start.leader) {
            return (waited < LOOP_MAX).then_some(Decision::Wait(Wait::RollbackSourceStarting));
        }
        if patroni.answering.contains(&start.leader) {
            return Some(Decision::Do(Action::RestartSource));
        }
        let leader = start.leader.clone();
        return (waited < LOOP_MAX)
            .then_some(Decision::Wait(Wait::RollbackLeaderUnreachable { leader }));
    }
    // When the pause is lifted and the leader lock is not held, Patroni stops a server that is
    // starting. Patroni may also have answered later than the server was asked.
    let limit = if patroni.starting {
        STARTING_MAX
    } else {
        LOOP_MAX
    };
    (waited < limit).then_some(Decision::Wait(Wait::RollbackSourceStarting))
}

/// The alarm in place of an election that would lose acknowledged writes: a lagging member wins it
/// when no better one answers (maximum_lag_on_failover), although the target may have everything.
fn unsafe_election(record: &Record, seen: &Snapshot, patroni: &PatroniState) -> Option<Decision> {
    // A leader that runs as a primary by its own Patroni stays the leader.
    if !patroni.primaries.is_empty() {
        return None;
    }
    // A client that overrides the block may have written behind the marker, and the target may have
    // it.
    let positions = [
        record.marker.as_ref().map(|marker| marker.lsn),
        record.fenced.as_ref().map(|fenced| fenced.lsn),
        seen.target.answer().and_then(|target| target.replay.replay),
    ];
    let needed = positions.into_iter().flatten().max()?;
    let received = patroni.received.values().max().copied();
    (received < Some(needed)).then_some(Decision::Alarm(Contradiction::ElectionWouldLoseWrites {
        received,
        needed,
    }))
}

/// What Patroni's loop has still to do before the block is lifted. If the pause is lifted while the
/// leader lock is not held, the members race for it, and data that the new leader has not received
/// is lost. A block that reaches the server only after it was lifted would stop resumed clients.
fn unsettled(patroni: &PatroniState, seen: &Snapshot) -> Option<Wait> {
    if patroni.unlocked {
        return Some(Wait::RollbackLeaderLockNotHeld);
    }
    let open = seen
        .source
        .answer()
        .is_some_and(|source| source.primary && !source.read_only);
    (open && patroni.read_only.as_deref() == Some("on")).then_some(Wait::RollbackBlockNotApplied)
}

/// Restores the application's ConfigMap, then its replicas.
fn application(start: &Start, seen: &Snapshot) -> Option<Decision> {
    // Other keys may have been added to the settings since.
    let as_before = |(key, before): (&String, &Option<String>)| {
        seen.config.values.get(key).is_none_or(|now| now == before)
    };
    if !start.config.values.iter().all(as_before) {
        return Some(Decision::Do(Action::RestoreConfig));
    }
    seen.idle(&start.replicas)
        .then_some(Decision::Do(Action::ScaleUp))
}

/// Restores the Services, if another actor has repointed them, then resumes the poolers.
///
/// A pooler that is resumed before the Service leads to the primary is refused and tries again only
/// after its server_login_retry, or logs in at a former primary and stays there for its
/// server_lifetime. That is not waited for without a limit, unless another primary answers there: a
/// target that another actor has promoted would take writes that the source never gets.
fn services_and_poolers(
    start: &Start,
    seen: &Snapshot,
    waited: SignedDuration,
) -> Option<Decision> {
    let changed = |(name, now): (&String, &ServiceState)| {
        let before = start.services.get(name);
        before.is_some_and(|before| *before != now.selector) || !now.leftovers.is_empty()
    };
    if seen.services.iter().any(changed) {
        return Some(Decision::Do(Action::RestoreServices));
    }
    if !seen
        .poolers_that(|state| state != PoolerState::Serving)
        .is_empty()
    {
        let overdue = waited >= LOOP_MAX && !serves_another_primary(seen);
        return Some(if serves_source(seen) || overdue {
            Decision::Do(Action::ResumePoolers)
        } else {
            Decision::Wait(Wait::RollbackServiceNotBack(
                seen.service_answer.failure().cloned(),
            ))
        });
    }
    let pods = seen.poolers_silent();
    (!pods.is_empty()).then_some(Decision::Wait(Wait::RollbackPoolersUnreachable { pods }))
}

/// The source's primary answers behind its Service.
fn serves_source(seen: &Snapshot) -> bool {
    let (Some(behind), Some(source)) = (seen.service_answer.answer(), seen.source.answer()) else {
        return false;
    };
    behind.primary && behind.identity == source.identity
}

/// A primary that is not the source answers behind its Service.
fn serves_another_primary(seen: &Snapshot) -> bool {
    let behind = seen.service_answer.answer();
    behind.is_some_and(|behind| behind.primary) && !serves_source(seen)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        controllers::suspension::{Suspension, SuspensionState},
        failure::Failure,
        record::{Fenced, Promotion, RollbackStarted},
        simulation::{limits, look, started},
        snapshot::{Reachability, source::PostmasterStart},
        wal::{Lsn, Timeline},
    };

    /// A snapshot of a source that is blocked and whose server runs.
    fn blocked(change: impl FnOnce(&mut PatroniState, &mut bool)) -> Snapshot {
        let mut seen = look();
        if let (Reachability::Up(patroni), Reachability::Up(source)) =
            (&mut seen.patroni, &mut seen.source)
        {
            (patroni.paused, patroni.read_only, source.read_only) =
                (Some(true), Some("on".into()), true);
            patroni.restart_after_crash = Some("off".into());
            source.restarts_after_crash = false;
            change(patroni, &mut source.read_only);
        }
        seen
    }

    /// A record of a block and of a rollback that began at the same time.
    fn rollback_started(at: Timestamp) -> Record {
        let reason = "a test".into();
        started()
            .with(Fact::Blocked(at))
            .with(Fact::RollbackStarted(RollbackStarted { at, reason }))
    }

    #[test]
    fn the_pause_is_lifted_when_patronis_loop_has_run_or_is_overdue() {
        let begun = rollback_started(look().now);
        let next = |seen: &Snapshot| back(&begun, begun.started.as_ref().unwrap(), seen);
        let unblocks = |seen: &Snapshot| next(seen) == Decision::Do(Action::UnblockWrites);
        assert!(unblocks(&blocked(|_, _| ())));
        for mut late in [
            blocked(|patroni, _| patroni.unlocked = true),
            blocked(|_, read_only| *read_only = false),
        ] {
            assert!(matches!(
                next(&late),
                Decision::Wait(Wait::RollbackLeaderLockNotHeld | Wait::RollbackBlockNotApplied)
            ));
            late.now += LOOP_MAX;
            assert!(unblocks(&late));
        }
    }

    #[test]
    fn a_server_that_patroni_has_demoted_is_left_to_an_election() {
        let mut seen = blocked(|patroni, _| patroni.primaries.clear());
        let begun = started().with(Fact::Blocked(seen.now));
        let start = begun.started.as_ref().unwrap();
        assert_eq!(
            why(&begun, start, &seen, &Health::default(), &limits()),
            None,
            "it is a primary"
        );
        if let Reachability::Up(source) = &mut seen.source {
            source.primary = false;
        }
        assert_eq!(
            why(&begun, start, &seen, &Health::default(), &limits()),
            Some(RollbackReason::LeaderDemoted)
        );
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::UnblockWrites)
        );
        seen.source = Reachability::Unreachable(Failure::transient("connection refused"));
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::RestartSource)
        );
        // It runs again, and the session to it is still being opened.
        if let Reachability::Up(patroni) = &mut seen.patroni {
            patroni.standbys = vec![start.leader.clone()];
        }
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Wait(Wait::RollbackSourceStarting)
        );
    }

    #[test]
    fn a_leader_whose_node_is_lost_is_left_to_an_election() {
        let mut seen = blocked(|patroni, _| {
            patroni.primaries.clear();
            patroni.answering.retain(|member| member != "a");
        });
        seen.source = Reachability::Unreachable(Failure::transient("no route to host"));
        let begun = rollback_started(seen.now);
        let start = begun.started.as_ref().unwrap();
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Wait(Wait::RollbackLeaderUnreachable { leader: "a".into() })
        );
        seen.now += LOOP_MAX;
        let needed = seen.target.answer().and_then(|target| target.replay.replay);
        let needed = needed.expect("the target has replayed something");
        let lossy =
            |received| Decision::Alarm(Contradiction::ElectionWouldLoseWrites { received, needed });
        let received = |seen: &mut Snapshot, lsn| {
            if let Reachability::Up(patroni) = &mut seen.patroni {
                patroni.received = [("b".to_owned(), lsn)].into();
            }
        };
        if let Reachability::Up(patroni) = &mut seen.patroni {
            patroni.received.clear();
        }
        assert_eq!(back(&begun, start, &seen), lossy(None));
        let behind = Lsn(needed.0 - 1);
        received(&mut seen, behind);
        assert_eq!(back(&begun, start, &seen), lossy(Some(behind)));
        received(&mut seen, needed);
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::UnblockWrites)
        );
    }

    #[test]
    fn a_primary_that_patroni_reports_is_not_lost_although_it_was_not_reached() {
        let mut seen = blocked(|patroni, _| patroni.received.clear());
        seen.source = Reachability::Unreachable(Failure::transient("connection refused"));
        let begun = rollback_started(seen.now);
        let start = begun.started.as_ref().unwrap();
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Wait(Wait::RollbackSourceStarting)
        );
        seen.now += LOOP_MAX;
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::UnblockWrites)
        );
    }

    #[test]
    fn a_server_that_starts_is_waited_for() {
        let mut seen = blocked(|patroni, _| (patroni.starting, patroni.unlocked) = (true, true));
        seen.source =
            Reachability::Unreachable(Failure::transient("the database system is starting up"));
        let begun = rollback_started(seen.now);
        let start = begun.started.as_ref().unwrap();
        seen.now += LOOP_MAX;
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Wait(Wait::RollbackSourceStarting)
        );
        seen.now += STARTING_MAX;
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::UnblockWrites)
        );
    }

    #[test]
    fn a_server_that_is_gone_while_clients_wait_is_not_waited_for() {
        let mut seen = blocked(|_, _| ());
        let begun = started().with(Fact::Blocked(seen.now));
        let start = begun.started.clone().unwrap();
        let health = |kind| Health {
            waiting: Some((kind, begun.blocked.unwrap())),
            ..Health::default()
        };
        let why = |record: &Record, seen: &Snapshot, kind| {
            super::why(record, &start, seen, &health(kind), &limits())
        };
        assert_eq!(why(&begun, &seen, WaitKind::SourceUnreachable), None);
        seen.now += SignedDuration::from_secs(5);
        for (kind, server) in [
            (WaitKind::SourceUnreachable, Server::Source),
            (WaitKind::TargetUnreachable, Server::Target),
        ] {
            let lost = RollbackReason::ServerLost { server, seconds: 5 };
            assert_eq!(why(&begun, &seen, kind), Some(lost));
        }
        if let Reachability::Up(patroni) = &mut seen.patroni {
            patroni.silent = vec!["b".into()];
        }
        assert_eq!(
            why(&begun, &seen, WaitKind::PatroniMembersUnreachable),
            Some(RollbackReason::MembersSilent {
                members: vec!["b".into()],
                seconds: 5,
            })
        );
        assert_eq!(
            why(&begun, &seen, WaitKind::TargetBehindMarker),
            None,
            "it may catch up"
        );
        assert_eq!(why(&begun, &seen, WaitKind::InstancesBehind), None);
        let mut later = seen.clone();
        later.now = begun.blocked.unwrap() + SignedDuration::try_from(limits().fence_max).unwrap();
        assert!(matches!(
            why(&begun, &later, WaitKind::InstancesBehind),
            Some(RollbackReason::InstancesNotInStep { .. })
        ));
        let interrupted = |seconds| Health {
            interrupted: Some(Duration::from_secs(seconds)),
            ..Health::default()
        };
        let after = |seconds, record: &Record| {
            super::why(record, &start, &seen, &interrupted(seconds), &limits())
        };
        let lost = RollbackReason::ApiServerLost { seconds: 20 };
        assert_eq!(after(20, &begun), Some(lost));
        assert_eq!(after(4, &begun), None);
        assert_eq!(after(20, &started()), None, "no client waits");

        let fenced = begun.with(Fact::Fenced(Fenced {
            at: begun.blocked.unwrap(),
            lsn: Lsn(1),
            postmaster_start: PostmasterStart(0),
            reconnected: Vec::new(),
        }));
        assert_eq!(why(&fenced, &seen, WaitKind::SourceUnreachable), None);
        seen.now += SignedDuration::try_from(limits().fence_max).unwrap();
        assert!(matches!(
            why(&fenced, &seen, WaitKind::SourceUnreachable),
            Some(RollbackReason::NotFencedInTime { .. })
        ));
        assert!(matches!(
            why(&fenced, &seen, WaitKind::InstancesBehind),
            Some(RollbackReason::InstancesNotInStep { .. })
        ));
    }

    #[test]
    fn poolers_are_resumed_when_the_service_leads_to_the_source() {
        let mut seen = look();
        seen.poolers[0].state = Reachability::Up(PoolerState::Paused);
        let begun = rollback_started(seen.now);
        let mut start = begun.started.clone().unwrap();
        start.route = Route::Service;
        assert_eq!(
            back(&begun, &start, &seen),
            Decision::Do(Action::ResumePoolers)
        );
        let Reachability::Up(answer) = seen.service_answer else {
            panic!("the source answers behind its Service")
        };
        let mut standby = answer;
        standby.primary = false;
        let refused = Reachability::Unreachable(Failure::transient("connection refused"));
        for elsewhere in [Reachability::Up(standby), refused] {
            seen.service_answer = elsewhere;
            assert!(matches!(
                back(&begun, &start, &seen),
                Decision::Wait(Wait::RollbackServiceNotBack(_))
            ));
        }
        seen.now += LOOP_MAX;
        assert_eq!(
            back(&begun, &start, &seen),
            Decision::Do(Action::ResumePoolers)
        );
        let mut another = answer;
        another.identity.timeline = Timeline(2);
        seen.service_answer = Reachability::Up(another);
        assert!(
            matches!(back(&begun, &start, &seen), Decision::Wait(_)),
            "clients would write to a target that was promoted by others"
        );
    }

    #[test]
    fn a_lifted_block_that_stays_in_force_is_ended_by_a_restart() {
        let mut seen = look();
        if let Reachability::Up(source) = &mut seen.source {
            source.read_only = true;
        }
        let begun = rollback_started(seen.now);
        let start = begun.started.as_ref().unwrap();
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Wait(Wait::RollbackSourceNotWritable)
        );
        seen.now += LOOP_MAX * 2;
        assert_eq!(
            back(&begun, start, &seen),
            Decision::Do(Action::RestartSource)
        );
        // After a restart the wait counts from the postmaster start.
        if let Reachability::Up(source) = &mut seen.source {
            source.postmaster_start = PostmasterStart(seen.now.as_microsecond());
        }
        assert!(matches!(back(&begun, start, &seen), Decision::Wait(_)));
    }

    #[test]
    fn the_mark_of_the_cutover_is_removed_last() {
        let mut seen = look();
        let reason = "a test".into();
        let begun = started().with(Fact::RollbackStarted(RollbackStarted {
            at: seen.now,
            reason,
        }));
        let start = begun.started.as_ref().unwrap();
        let standing = |suspension: &Suspension| SuspensionState {
            now: Suspension {
                original: suspension.suspended.clone(),
                ..suspension.clone()
            },
            version: Some(String::new()),
        };
        seen.suspensions = start.suspensions.iter().map(standing).collect();
        let keys: Vec<String> = start.suspensions.iter().map(Suspension::key).collect();
        assert!(keys.len() > 1 && keys[0].starts_with("postgresql"));
        for (number, key) in keys.iter().enumerate().rev() {
            assert_eq!(
                back(&begun, start, &seen),
                Decision::Do(Action::ResumeController(key.clone()))
            );
            seen.suspensions[number].now = start.suspensions[number].clone();
        }
    }

    #[test]
    fn rollback_is_possible_until_the_promotion_is_recorded() {
        let (none, begun) = (Record::default(), started());
        assert_eq!(rollback_availability(&none), RollbackAvailability::Nothing);
        assert_eq!(
            rollback_availability(&begun),
            RollbackAvailability::Possible
        );
        let promotion = Promotion {
            at: Timestamp::UNIX_EPOCH,
            shutdown_checkpoint: "0/4000028".parse().unwrap(),
            replayed: "0/40000A0".parse().unwrap(),
            timeline: Timeline(1),
            target_clock: Timestamp::UNIX_EPOCH,
        };
        let RollbackAvailability::TooLate(refusal) =
            rollback_availability(&begun.with(Fact::Promotion(promotion)))
        else {
            panic!("past the point of no return")
        };
        assert_eq!(
            refusal.to_string(),
            "a rollback is no longer possible: the promotion was recorded at 1970-01-01 00:00:00 \
             UTC (point of no return)"
        );
        assert_eq!(
            refusal,
            Refusal::PastPointOfNoReturn {
                recorded: Timestamp::UNIX_EPOCH,
                progress: Progress::Promoting,
            }
        );
    }
}
