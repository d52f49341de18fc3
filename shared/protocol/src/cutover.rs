//! The steps from the start to the point of no return.

use crate::{
    calm, checks,
    decision::{Action, Decision, Limits},
    finding, instances, proof,
    quantity::elapsed,
    reason::Wait,
    record::{Fact, Fenced, Promotion, Record, Start},
    route::Route,
    snapshot::{PoolerState, Reachability, Snapshot},
};

/// The next step before the point of no return, while there is no reason to roll back.
pub fn before(record: &Record, start: &Start, seen: &Snapshot, limits: &Limits) -> Decision {
    if let Some(suspension) = seen.unsuspended(start, |_| true) {
        return Decision::Do(Action::SuspendController(suspension.key()));
    }
    if record.suspended.is_none() {
        return Decision::Record(Fact::Suspended(seen.now));
    }
    if record.blocked.is_none()
        && let Some(step) = stop_on_crash(seen)
    {
        return step;
    }
    if record.checkpointed.is_none() {
        return Decision::Do(Action::Checkpoint);
    }
    let Some(blocked) = record.blocked else {
        let findings = checks::all(seen, limits);
        return match (finding::gravest(&findings), &seen.jobs[..]) {
            (Some(finding), _) => Decision::Wait(Wait::CheckNotPassed(finding.clone())),
            (None, []) => match calm::awaited(record, start, seen, limits) {
                Some(wait) => Decision::Wait(wait),
                None => Decision::Record(Fact::Blocked(seen.now)),
            },
            (None, jobs) => Decision::Wait(Wait::ApplicationJobsRunning {
                jobs: jobs.to_vec(),
            }),
        };
    };
    let waited = elapsed(blocked, seen.now);
    let patient = record.marker.is_none() && waited < limits.pause_max;
    if let Some(step) = pause(start, seen, patient) {
        return step;
    }
    if record.fenced.is_none() {
        return block(record, start, seen);
    }
    fence(record, start, seen)
}

/// A server that crashes is to stay stopped: PostgreSQL ends a crash recovery with a checkpoint in
/// the form of a shutdown checkpoint, which could be taken for the proof of a clean stop
/// (CreateCheckPoint in src/backend/access/transam/xlog.c). Set before clients wait, because
/// Patroni may need one of its loops to apply it.
fn stop_on_crash(seen: &Snapshot) -> Option<Decision> {
    let configured = seen.patroni.answer()?.stops_on_crash();
    if !configured {
        return Some(Decision::Do(Action::DisableCrashRestart));
    }
    restarts_after_crash(seen).map(Decision::Wait)
}

/// The setting has not reached the server.
fn restarts_after_crash(seen: &Snapshot) -> Option<Wait> {
    let restarts = seen.source.answer()?.restarts_after_crash;
    restarts.then_some(Wait::CrashRestartEnabled)
}

/// Pauses the old poolers, also those that another actor has resumed: their clients wait. The block
/// ends a transaction that does not end in time.
pub fn pause(start: &Start, seen: &Snapshot, patient: bool) -> Option<Decision> {
    if start.route == Route::Config {
        return None;
    }
    if !seen
        .poolers_that(|state| state == PoolerState::Serving)
        .is_empty()
    {
        return Some(Decision::Do(Action::PausePoolers));
    }
    let busy = seen.poolers_that(|state| matches!(state, PoolerState::Pausing(_)));
    let pods: Vec<String> = busy.into_iter().chain(seen.poolers_silent()).collect();
    (patient && !pods.is_empty()).then_some(Decision::Wait(Wait::PoolersPausing { pods }))
}

/// The block stands, the sessions are ended, the target has caught up; then the fence is recorded.
fn block(record: &Record, start: &Start, seen: &Snapshot) -> Decision {
    if seen.held() == Some(false) || (start.route == Route::Config && !seen.emptied()) {
        return Decision::Do(Action::BlockWrites);
    }
    // Whether the setting has reached the server yet is not waited for: what is still written is
    // behind the marker and before the fence, and the proof covers it.
    if seen.held().is_none() || !seen.source.answer().is_some_and(|source| source.primary) {
        return Decision::Wait(Wait::SourceUnreachable(seen.unreachable()));
    }
    let Some(marker) = &record.marker else {
        return Decision::Do(Action::EndSessions);
    };
    match &seen.target {
        Reachability::Unreachable(failure) => {
            Decision::Wait(Wait::TargetUnreachable(failure.clone()))
        }
        Reachability::Up(target) if target.replay.replay < Some(marker.lsn) => {
            Decision::Wait(Wait::TargetBehindMarker {
                replayed: target.replay.replay,
                marker: marker.lsn,
            })
        }
        // An instance that lags far behind, and a member that does not say afterwards whether its
        // server runs, are met before the source is stopped.
        Reachability::Up(target) => instances::awaited(&seen.cluster, target, marker.lsn)
            .or_else(|| silent_members(seen))
            .map(Decision::Wait)
            .or_else(|| stop(record, seen))
            .unwrap_or(Decision::Wait(Wait::SourceGone)),
    }
}

/// Members of the source whose Patroni does not answer: their servers may run as primaries.
fn silent_members(seen: &Snapshot) -> Option<Wait> {
    let members = &seen.patroni.answer()?.silent;
    (!members.is_empty()).then(|| Wait::PatroniMembersUnreachable {
        members: members.clone(),
    })
}

/// The source is to be stopped: first its position and this run of it are recorded, then it is
/// done.
fn stop(record: &Record, seen: &Snapshot) -> Option<Decision> {
    let source = seen.source.answer()?;
    let (true, Some(lsn)) = (source.primary, source.insert) else {
        return None;
    };
    if let Some(wait) = restarts_after_crash(seen) {
        return Some(Decision::Wait(wait));
    }
    if record
        .fenced
        .as_ref()
        .is_some_and(|fenced| fenced.postmaster_start == source.postmaster_start)
    {
        return Some(Decision::Do(Action::Fence(source.run())));
    }
    Some(Decision::Record(Fact::Fenced(Fenced {
        at: seen.now,
        lsn,
        postmaster_start: source.postmaster_start,
        reconnected: seen.reconnected.clone(),
    })))
}

/// The source is stopped, and the target proves that nothing is missing; then the promotion is
/// recorded.
fn fence(record: &Record, start: &Start, seen: &Snapshot) -> Decision {
    if seen.held() == Some(false) {
        // Without the pause Patroni starts again what is stopped.
        return Decision::Do(Action::ReapplyBlock);
    }
    if let Some(step) = stop(record, seen) {
        return step;
    }
    if let Some(primary) = seen.source_primary() {
        // Stopping needs an SQL session; a member whose REST API still says running is on its way
        // down.
        return Decision::Wait(Wait::SourceStillPrimary(primary));
    }
    let (Some(fenced), Reachability::Up(target)) = (&record.fenced, &seen.target) else {
        return Decision::Wait(Wait::Unreachable(seen.unreachable()));
    };
    if seen.patroni.answer().is_none() {
        return Decision::Wait(Wait::Unreachable(seen.unreachable()));
    }
    if let Some(wait) = silent_members(seen) {
        return Decision::Wait(wait);
    }
    let proved = proof::clean_stop(
        &target.control,
        &target.replay,
        fenced.lsn,
        start.source.timeline,
        target.segment_bytes,
    );
    let Ok(replayed) = proved else {
        return Decision::Do(Action::Restartpoint);
    };
    match instances::awaited(&seen.cluster, target, replayed) {
        Some(wait) => Decision::Wait(wait),
        None => Decision::Record(Fact::Promotion(Promotion {
            at: seen.now,
            shutdown_checkpoint: target.control.checkpoint,
            replayed,
            timeline: start.source.timeline,
            target_clock: target.running.now,
        })),
    }
}
