//! Past the point of no return: only forward.

use crate::route::Route;

use crate::{
    cutover as forward,
    decision::{Action, Decision, Limits},
    reason::Wait,
    record::{Fact, Promoted, Promotion, Record, Start},
    snapshot::{PoolerState, Reachability, Snapshot, TargetState},
};

/// The next step after the promotion was recorded.
pub fn after(
    record: &Record,
    start: &Start,
    promotion: &Promotion,
    seen: &Snapshot,
    limits: &Limits,
) -> Decision {
    if let Some(suspension) = seen.unsuspended(start, |suspension| {
        suspension.permanent || record.serving.is_none()
    }) {
        return Decision::Do(Action::SuspendController(suspension.key()));
    }
    if seen.held() == Some(false) {
        // Without the pause Patroni would promote another member of the source.
        return Decision::Do(Action::ReapplyBlock);
    }
    if let Some(source) = seen.source.answer()
        && source.primary
    {
        // Somebody started it: it must not serve anybody ever again.
        return Decision::Do(Action::Fence(source.postmaster_start));
    }
    if seen.cluster.follows {
        return Decision::Do(Action::Promote);
    }
    if record.routed.is_none()
        && let Some(step) = forward::pause(start, seen, false)
    {
        return step;
    }
    // Kubernetes takes its time to turn a Service, and the paused poolers let nobody through
    // meanwhile.
    let held_back = !seen.poolers.is_empty();
    if start.route == Route::Service
        && (held_back || record.promoted.is_some())
        && !turned(seen, limits)
    {
        return Decision::Do(Action::RepointServices);
    }
    let Some(promoted) = &record.promoted else {
        return primary(promotion, start, seen);
    };
    let step = match start.route {
        Route::Config => by_config(record, start, seen, limits),
        Route::Service => by_service(record, promoted, seen),
    };
    step.unwrap_or_else(|| settle(record, start, seen))
}

/// Primary, restarted, and a write proved.
fn primary(promotion: &Promotion, start: &Start, seen: &Snapshot) -> Decision {
    let target = match &seen.target {
        Reachability::Up(target) => target,
        Reachability::Unreachable(failure) => {
            return Decision::Wait(Wait::TargetPromotingOrRestarting(failure.clone()));
        }
    };
    if target.in_recovery {
        return Decision::Wait(Wait::TargetPromoting);
    }
    match restart_owed(target, promotion, start.target_pending_restart) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Do(Action::VerifyWrite),
    }
}

/// What is missing from "CNPG's restart of the new primary is over"; its phase does not tell
/// (docs/operators/cloudnative-pg.md#phase).
fn restart_owed(target: &TargetState, promotion: &Promotion, owed: bool) -> Option<Wait> {
    if target.running.pending_restart_after_promotion() || target.running.pending_restart > 0 {
        return Some(Wait::TargetPendingRestart);
    }
    if owed && target.running.postmaster_start <= promotion.target_clock {
        return Some(Wait::TargetRestartNotObserved);
    }
    None
}

/// The application's ConfigMap, then its pods. None when they serve.
fn by_config(record: &Record, start: &Start, seen: &Snapshot, limits: &Limits) -> Option<Decision> {
    if record.serving.is_some() {
        // Another cutover has scaled it down late.
        return seen
            .idle(&start.replicas)
            .then_some(Decision::Do(Action::ScaleUp));
    }
    let there = limits.config.iter().all(|(key, value)| {
        seen.config
            .values
            .get(key)
            .is_some_and(|now| now.as_ref() == Some(value))
    });
    if !there {
        return Some(Decision::Do(Action::RepointConfig));
    }
    if record.routed.is_none() {
        // A pod that started before the ConfigMap was changed would stay with the source for as
        // long as it lives.
        return Some(match (seen.emptied(), seen.living()) {
            (false, _) => Decision::Do(Action::ScaleDown),
            (true, Some(living)) => Decision::Wait(living),
            (true, None) => Decision::Record(Fact::Routed(seen.now)),
        });
    }
    if seen.idle(&start.replicas) {
        return Some(Decision::Do(Action::ScaleUp));
    }
    Some(match seen.not_ready(&start.replicas) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Record(Fact::Serving(seen.now)),
    })
}

/// The Services lead to the target, then the poolers go on. None when they do.
fn by_service(record: &Record, promoted: &Promoted, seen: &Snapshot) -> Option<Decision> {
    if record.routed.is_none() {
        // One login of a pooler that fails costs its server_login_retry: seconds.
        let open = seen
            .service_answer
            .answer()
            .is_some_and(|door| door.primary && door.identity.timeline == promoted.timeline);
        return Some(if open {
            Decision::Record(Fact::Routed(seen.now))
        } else {
            Decision::Wait(Wait::ServiceNotRepointed(
                seen.service_answer.failure().cloned(),
            ))
        });
    }
    if !seen
        .poolers_that(|state| state != PoolerState::Serving)
        .is_empty()
    {
        return Some(Decision::Do(Action::ResumePoolers));
    }
    if record.serving.is_some() {
        return None;
    }
    let pods = seen.poolers_silent();
    Some(if pods.is_empty() {
        Decision::Record(Fact::Serving(seen.now))
    } else {
        Decision::Wait(Wait::PoolersUnreachable { pods })
    })
}

/// Every Service of the source that exists leads to the target.
fn turned(seen: &Snapshot, limits: &Limits) -> bool {
    let wanted = |name: &String| limits.services.get(name);
    seen.services.iter().all(|(name, service)| {
        wanted(name).is_none_or(|wanted| service.selector.as_ref() == Some(wanted))
    })
}

/// The downtime is over: who was paused goes on, who still reads from the source is sent away, and
/// the receipt is written.
fn settle(record: &Record, start: &Start, seen: &Snapshot) -> Decision {
    if let Some(suspension) = seen.unlike(start, |suspension| !suspension.permanent) {
        return Decision::Do(Action::ResumeController(suspension.key()));
    }
    if start.route == Route::Service && record.readers.is_none() {
        return Decision::Do(Action::EndReaders);
    }
    Decision::Do(Action::WriteReceipt)
}
