//! The protocol with one guard removed: a search that cannot fail proves nothing.

use crate::{controllers::suspension::SUSPENDED, route::Route};
use serde_json::json;

use super::world::World;
use crate::{
    decide::{Health, decide},
    decision::{Action, Decision},
    reason::{Refusal, Wait},
    record::{Fact, Promotion, Record},
    rollback::back,
    snapshot::{Reachability, Snapshot, kubernetes::StoredManifest, source::ServerRun},
    wal::{Lsn, Switch},
};

/// The guard that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// All guards are in place.
    None,
    /// The source is not stopped before the promotion.
    NoFence,
    /// The promotion does not wait for the proof that the last record has arrived.
    NoCatchUp,
    /// Two drivers overwrite each other's records.
    NoCompareAndSwap,
    /// The Zalando operator is not suspended.
    NoOperatorSuspension,
    /// The autoscaler is not suspended, and no driver checks whether pods came up with the old
    /// configuration.
    NoScalerSuspension,
    /// Pods are taken to be gone as soon as the application is scaled down.
    NoWaitForPods,
    /// Scaling and suspension by other actors since the snapshot are overwritten.
    NoVersions,
    /// The source is stopped before the fence is recorded.
    NoRecordOfTheFence,
    /// The target is promoted before the promotion is recorded.
    NoRecordOfThePromotion,
    /// The rollback begins before it is recorded.
    NoRecordOfTheRollback,
    /// Client traffic is resumed to a primary that will be restarted.
    NoRestartWait,
    /// Client traffic is resumed before the Service routes to the target.
    NoServiceWait,
    /// The end of the downtime is recorded although no pooler has shown that it reaches the target.
    NoEvidence,
    /// The rollback does not resume the poolers.
    NoResumeOnRollback,
    /// After completion no driver resumes poolers that another driver paused late.
    NoLateResume,
    /// The rollback lifts the pause as soon as the server runs.
    NoLeaderLock,
    /// The rollback restarts a server that Patroni has demoted, again and again.
    NoElection,
    /// The stored manifest is taken to agree with the promoted Cluster.
    NoManifestRewrite,
    /// After completion no driver rewrites a manifest that was written late.
    NoLateManifestRewrite,
    /// No driver rolls back at the deadline.
    NoRollbackAtTheDeadline,
    /// The rollback leaves a lost leader to an election, whatever the other members have received.
    NoElectionCheck,
    /// The history of the promoted timeline is not compared with the proof.
    NoHistory,
}

impl Mutant {
    /// The snapshot that a driver without this guard acts on.
    pub fn without_guard(self, mut snapshot: Snapshot, first: &World) -> Snapshot {
        match self {
            Self::NoOperatorSuspension => snapshot.suspensions[0].now.original = json!(SUSPENDED),
            Self::NoScalerSuspension => snapshot.suspensions.truncate(1),
            Self::NoWaitForPods => snapshot.apps.values_mut().for_each(|app| {
                (app.ready, app.existing, app.followed) = (app.wanted, app.wanted, true);
            }),
            Self::NoRestartWait => {
                if let Reachability::Up(target) = &mut snapshot.target {
                    target.running.archive_mode = "on".into();
                    target.running.postmaster_start = snapshot.now;
                    target.running.now = snapshot.now - jiff::SignedDuration::from_secs(1);
                }
            }
            Self::NoElectionCheck => {
                if let Reachability::Up(patroni) = &mut snapshot.patroni {
                    patroni.received = [("b".to_owned(), Lsn(u64::MAX))].into();
                }
            }
            Self::NoManifestRewrite => snapshot.manifest = StoredManifest::Promoted,
            Self::NoRollbackAtTheDeadline => snapshot.now = first.snapshot().now,
            _ => {}
        }
        snapshot
    }

    /// The decision of a driver without this guard.
    pub fn decide(self, record: &Record, snapshot: &Snapshot, world: &World) -> Decision {
        let limits = world.limits();
        let proved = self.with_proved_history(record, snapshot);
        let snapshot = proved.as_ref().unwrap_or(snapshot);
        let decision = decide(record, snapshot, &Health::default(), &limits);
        let Some(start) = &record.started else {
            return decision;
        };
        let promotion = || {
            let target = snapshot.target.answer()?;
            Some(Decision::Record(Fact::Promotion(Promotion {
                at: snapshot.now,
                shutdown_checkpoint: target.control.checkpoint,
                replayed: target.replay.replay?,
                timeline: start.source.timeline,
                target_clock: target.running.now,
            })))
        };
        let instead = match (self, &decision) {
            (Self::NoFence, Decision::Do(Action::Fence(_) | Action::Restartpoint))
                if !record.past_point_of_no_return() =>
            {
                promotion()
            }
            (Self::NoCatchUp, Decision::Do(Action::Restartpoint)) => promotion(),
            (Self::NoScalerSuspension, Decision::Do(Action::ScaleDown)) => {
                Some(Decision::Record(Fact::Routed(snapshot.now)))
            }
            (Self::NoRecordOfTheFence, Decision::Record(Fact::Fenced(fenced))) => {
                Some(Decision::Do(Action::Fence(ServerRun {
                    timeline: start.source.timeline,
                    postmaster_start: fenced.postmaster_start,
                })))
            }
            (Self::NoRecordOfThePromotion, Decision::Record(Fact::Promotion(_)))
                if snapshot.cluster.follows =>
            {
                Some(Decision::Do(Action::Promote))
            }
            (Self::NoRecordOfTheRollback, Decision::Record(Fact::RollbackStarted(_))) => {
                Some(back(record, start, snapshot))
            }
            (Self::NoServiceWait, Decision::Wait(Wait::ServiceNotRepointed(_))) => {
                Some(Decision::Record(Fact::Routed(snapshot.now)))
            }
            (Self::NoEvidence, Decision::Wait(Wait::PoolersNotServed { .. })) => {
                Some(Decision::Record(Fact::Serving(snapshot.now)))
            }
            (
                Self::NoLeaderLock,
                Decision::Wait(Wait::RollbackLeaderLockNotHeld | Wait::RollbackBlockNotApplied),
            ) => Some(Decision::Do(Action::UnblockWrites)),
            (Self::NoElection, Decision::Do(Action::UnblockWrites))
                if snapshot
                    .source
                    .answer()
                    .is_some_and(|source| !source.primary) =>
            {
                Some(Decision::Do(Action::RestartSource))
            }
            (Self::NoResumeOnRollback, Decision::Do(Action::ResumePoolers))
                if record.rollback_started.is_some() =>
            {
                Some(match &record.rolled_back {
                    None => Decision::Record(Fact::RolledBack(snapshot.now)),
                    Some(_) => Decision::Refuse(Refusal::RolledBack {
                        reason: String::new(),
                        failure: None,
                    }),
                })
            }
            (Self::NoLateResume, Decision::Do(Action::ResumePoolers))
                if record.finished.is_some() =>
            {
                Some(Decision::Done)
            }
            (Self::NoLateManifestRewrite, Decision::Do(Action::RewriteManifest))
                if record.finished.is_some() =>
            {
                Some(Decision::Done)
            }
            _ => None,
        };
        instead.unwrap_or(decision)
    }

    /// The snapshot in which the target's timeline began where the record says that it must.
    fn with_proved_history(self, record: &Record, snapshot: &Snapshot) -> Option<Snapshot> {
        let promotion = record
            .promotion
            .as_ref()
            .filter(|_| self == Self::NoHistory)?;
        let mut snapshot = snapshot.clone();
        if let Reachability::Up(target) = &mut snapshot.target {
            target.history = vec![Switch {
                timeline: promotion.timeline,
                at: promotion.replayed,
            }];
        }
        Some(snapshot)
    }

    /// The routes on which this guard matters.
    pub fn routes(self) -> &'static [Route] {
        match self {
            Self::NoScalerSuspension | Self::NoWaitForPods | Self::NoVersions => &[Route::Config],
            Self::NoServiceWait
            | Self::NoEvidence
            | Self::NoResumeOnRollback
            | Self::NoLateResume => &[Route::Service],
            _ => &[Route::Config, Route::Service],
        }
    }
}
