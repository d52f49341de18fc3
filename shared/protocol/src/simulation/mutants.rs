//! The protocol with one guard removed: a search that cannot fail proves nothing.

use serde_json::json;

#[cfg(test)]
use crate::route::Route;

use super::{
    guards::{Guard, Situation},
    world::World,
};
use crate::{
    controllers::suspension::SUSPENDED,
    decide::decide,
    decision::{Action, Decision},
    reason::{Refusal, WaitKind},
    record::{Fact, Promotion, Record, Start},
    rollback::back,
    snapshot::{Snapshot, kubernetes::StoredManifest, source::ServerRun},
};

/// The guard that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "a walk removes no guard"))]
pub enum Mutant {
    /// All guards are in place.
    None,
    /// The condition of one reason is taken to be satisfied.
    Without(Guard),
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
    /// Scaling and suspension by other actors since the snapshot are overwritten.
    NoVersions,
    /// The source is stopped before the fence is recorded.
    NoRecordOfTheFence,
    /// The target is promoted before the promotion is recorded.
    NoRecordOfThePromotion,
    /// The rollback begins before it is recorded.
    NoRecordOfTheRollback,
    /// The rollback does not resume the poolers.
    NoResumeOnRollback,
    /// After completion no driver resumes poolers that another driver paused late.
    NoLateResume,
    /// The rollback restarts a server that Patroni has demoted, again and again.
    NoElection,
    /// The stored manifest is taken to agree with the promoted Cluster.
    NoManifestRewrite,
    /// After completion no driver rewrites a manifest that was written late.
    NoLateManifestRewrite,
}

impl Mutant {
    /// The snapshot that a driver without this guard acts on.
    pub fn without_guard(self, mut snapshot: Snapshot) -> Snapshot {
        match self {
            Self::NoOperatorSuspension => snapshot.suspensions[0].now.original = json!(SUSPENDED),
            Self::NoScalerSuspension => snapshot.suspensions.truncate(1),
            Self::NoManifestRewrite if snapshot.manifest == StoredManifest::Follows => {
                snapshot.manifest = StoredManifest::Promoted;
            }
            _ => {}
        }
        snapshot
    }

    /// The decision of a driver without this guard.
    pub fn decide(
        self,
        record: &Record,
        snapshot: &Snapshot,
        waited: bool,
        world: &World,
    ) -> Decision {
        let mut situation = Situation::new(snapshot, world.limits());
        if waited {
            situation.has_waited(record);
        }
        let guard = match self {
            Self::Without(guard) => Some(guard),
            _ => None,
        };
        if let Some(guard) = guard {
            situation.ignore(guard, record);
            if let Some(instead) = situation.instead(guard, record) {
                return instead;
            }
        }
        let Situation {
            seen,
            health,
            limits,
        } = &situation;
        let decision = decide(record, seen, health, limits);
        if let (Some(Guard::Wait(kind)), Decision::Wait(wait)) = (guard, &decision)
            && kind == wait.into()
        {
            return situation.go_on(kind, record).unwrap_or(decision);
        }
        let start = record.started.as_ref();
        let instead = start.and_then(|start| self.instead(&decision, record, start, snapshot));
        instead.unwrap_or(decision)
    }

    fn instead(
        self,
        decision: &Decision,
        record: &Record,
        start: &Start,
        snapshot: &Snapshot,
    ) -> Option<Decision> {
        match (self, decision) {
            (Self::NoFence, Decision::Do(Action::Fence(_) | Action::Restartpoint))
                if !record.past_point_of_no_return() =>
            {
                promotion(start, snapshot)
            }
            (Self::NoCatchUp, Decision::Do(Action::Restartpoint)) => promotion(start, snapshot),
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
            | (Self::NoLateManifestRewrite, Decision::Do(Action::RewriteManifest))
                if record.finished.is_some() =>
            {
                Some(Decision::Done)
            }
            _ => None,
        }
    }

    /// No driver waits for the setting for a crash, so it may reach the server at any later time.
    pub fn waits_for_no_crash_setting(self) -> bool {
        self == Self::Without(Guard::Wait(WaitKind::CrashRestartEnabled))
    }

    /// The routes on which this guard matters.
    #[cfg(test)]
    pub fn routes(self) -> &'static [Route] {
        match self {
            Self::Without(guard) => guard.routes(),
            Self::NoScalerSuspension | Self::NoVersions => &[Route::Config],
            Self::NoResumeOnRollback | Self::NoLateResume => &[Route::Service],
            _ => &[Route::Config, Route::Service],
        }
    }
}

fn promotion(start: &Start, snapshot: &Snapshot) -> Option<Decision> {
    let target = snapshot.target.answer()?;
    Some(Decision::Record(Fact::Promotion(Promotion {
        at: snapshot.now,
        shutdown_checkpoint: target.control.checkpoint,
        replayed: target.replay.replay?,
        timeline: start.source.timeline,
        target_clock: target.running.now,
    })))
}
