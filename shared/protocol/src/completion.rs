//! The steps past the point of no return. From here on the cutover only moves forward.

use crate::{
    cutover,
    decision::{Action, Decision, Limits},
    manifest,
    quantity::elapsed,
    reason::Wait,
    record::{Fact, Manifest, Promoted, Promotion, Record, Start},
    route::Route,
    served,
    snapshot::{PoolerState, Reachability, Snapshot, TargetState, kubernetes::StoredManifest},
};

/// The next step once the promotion is recorded.
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
        // On a later timeline it could be the target, until that answers for itself: a
        // contradiction stops the cutover then.
        if source.identity.timeline > promotion.timeline
            && let Reachability::Unreachable(failure) = &seen.target
        {
            return Decision::Wait(Wait::TargetPromotingOrRestarting(failure.clone()));
        }
        // Another actor has started the fenced source, which must not serve clients again.
        return Decision::Do(Action::Fence(source.run()));
    }
    if seen.cluster.follows {
        return Decision::Do(Action::Promote);
    }
    if record.routed.is_none()
        && let Some(step) = cutover::pause(start, seen, false)
    {
        return step;
    }
    // A changed Service takes effect after a delay. The paused poolers hold all clients back
    // until then.
    let held_back = !seen.poolers.is_empty();
    if start.route == Route::Service
        && (held_back || record.promoted.is_some())
        && !services_repointed(seen, limits)
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
    step.unwrap_or_else(|| settle(record, start, seen, limits))
}

/// Waits until the target is a primary and has restarted, then verifies a write.
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
    match pending_restart(target, promotion, start.target_pending_restart) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Do(Action::VerifyWrite),
    }
}

/// What to wait for until CNPG has restarted the new primary; None when the restart is over. The
/// phase of the Cluster does not show it (docs/operators/cloudnative-pg.md#phase).
fn pending_restart(target: &TargetState, promotion: &Promotion, expected: bool) -> Option<Wait> {
    if target.running.pending_restart_after_promotion() || target.running.pending_restart > 0 {
        return Some(Wait::TargetPendingRestart);
    }
    if expected && target.running.postmaster_start <= promotion.target_clock {
        return Some(Wait::TargetRestartNotObserved);
    }
    None
}

/// Repoints the application's ConfigMap, then replaces its pods. None when they serve.
fn by_config(record: &Record, start: &Start, seen: &Snapshot, limits: &Limits) -> Option<Decision> {
    if record.serving.is_some() {
        // Another cutover has scaled it down late.
        return seen
            .idle(&start.replicas)
            .then_some(Decision::Do(Action::ScaleUp));
    }
    let repointed = limits.config.iter().all(|(key, value)| {
        seen.config
            .values
            .get(key)
            .is_some_and(|now| now.as_ref() == Some(value))
    });
    if !repointed {
        return Some(Decision::Do(Action::RepointConfig));
    }
    if record.routed.is_none() {
        // A pod that started before the ConfigMap was changed would use the source for its whole
        // lifetime.
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

/// Waits until the Services lead to the target, resumes the poolers, and waits until each has shown
/// that its clients are served. None when all of it is done.
fn by_service(record: &Record, promoted: &Promoted, seen: &Snapshot) -> Option<Decision> {
    let Some(routed) = record.routed else {
        // A pooler whose login fails waits for its server_login_retry, several seconds, before it
        // tries again.
        let repointed = seen
            .service_answer
            .answer()
            .is_some_and(|answer| answer.primary && answer.identity.timeline >= promoted.timeline);
        return Some(if repointed {
            Decision::Record(Fact::Routed(seen.now))
        } else {
            Decision::Wait(Wait::ServiceNotRepointed(
                seen.service_answer.failure().cloned(),
            ))
        });
    };
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
    if !pods.is_empty() {
        return Some(Decision::Wait(Wait::PoolersUnreachable { pods }));
    }
    Some(match served::missing(routed, seen) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Record(Fact::Serving(seen.now)),
    })
}

/// Every Service of the source that exists leads to the target.
pub fn services_repointed(seen: &Snapshot, limits: &Limits) -> bool {
    let wanted = |name: &String| limits.services.get(name);
    seen.services.iter().all(|(name, service)| {
        wanted(name).is_none_or(|wanted| service.selector.as_ref() == Some(wanted))
    })
}

/// After the downtime: rewrites the stored manifest, resumes the suspended controllers, looks for
/// sessions that still read from the source, watches the Services, and writes the receipt.
fn settle(record: &Record, start: &Start, seen: &Snapshot, limits: &Limits) -> Decision {
    if let Some(step) = stored_manifest(record, seen) {
        return step;
    }
    if let Some(suspension) = seen.unlike(start, |suspension| !suspension.permanent) {
        return Decision::Do(Action::ResumeController(suspension.key()));
    }
    if record.readers.is_none() {
        return Decision::Do(Action::FindReaders);
    }
    match services_watched(record, start, seen, limits) {
        Some(wait) => Decision::Wait(wait),
        None => Decision::Do(Action::WriteReceipt),
    }
}

/// The Zalando operator looks at its suspension when it puts a sync into its queue, not when it
/// takes one out (`processEvent` in its pkg/controller/postgresql.go), and a sync repoints the
/// Services to the source again. Each observation until the end repoints them to the target.
fn services_watched(
    record: &Record,
    start: &Start,
    seen: &Snapshot,
    limits: &Limits,
) -> Option<Wait> {
    let serving = record.serving?;
    let watched = elapsed(serving, seen.now);
    let wait = Wait::ServicesWatched {
        seconds: limits.services_watch.as_secs(),
    };
    (start.route == Route::Service && watched < limits.services_watch).then_some(wait)
}

/// Makes the stored manifest agree with the promoted Cluster, then records how it was found: one
/// that a person has edited is left to that person. None when both are done.
fn stored_manifest(record: &Record, seen: &Snapshot) -> Option<Decision> {
    match seen.manifest {
        StoredManifest::Follows => Some(Decision::Do(Action::RewriteManifest)),
        _ if record.manifest.is_some() => None,
        StoredManifest::Unread => Some(Decision::Wait(Wait::ManifestUnread)),
        found => Some(Decision::Record(Fact::Manifest(Manifest {
            at: seen.now,
            config_map: manifest::map_name(&seen.cluster.name),
            found,
        }))),
    }
}
