//! Guards taken away, one each: a search that cannot fail proves nothing.

use crate::{controllers::suspension::SUSPENDED, route::Route};
use serde_json::json;

use super::world::World;
use crate::{
    decide::{Health, decide},
    decision::{Action, Decision},
    reason::{Refusal, Wait},
    record::{Fact, Promotion, Record},
    rollback::back,
    snapshot::{Reachability, Snapshot},
};

/// A guard taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// All guards are there.
    None,
    /// The source is not stopped before the promotion.
    NoFence,
    /// The promotion does not wait for the proof that the last record has arrived.
    NoCatchUp,
    /// Two drivers overwrite each other's records.
    NoCompareAndSwap,
    /// The Zalando operator is not kept still.
    NoFrozenOperator,
    /// The autoscaler is not kept still, and nobody looks whether pods came up with the old
    /// configuration.
    NoFrozenScaler,
    /// Pods that were scaled down are taken to be told to end.
    NoWaitForPods,
    /// What was scaled or frozen by others since the look is overwritten.
    NoVersions,
    /// The source is stopped before that is recorded.
    NoRecordOfTheFence,
    /// The target is promoted before that is recorded.
    NoRecordOfThePromotion,
    /// The way back begins before that is recorded.
    NoRecordOfTheReturn,
    /// Clients are let through to a primary that will be restarted.
    NoRestartWait,
    /// Clients are let through before the Service leads to the target.
    NoDoor,
    /// On the way back the poolers are forgotten.
    NoResumeOnReturn,
    /// After a finished cut nobody looks whether another cutover paused the poolers late.
    NoLateResume,
    /// On the way back the pause is lifted as soon as the server runs.
    NoLeaderLock,
    /// On the way back a server that Patroni has demoted is restarted again and again.
    NoElection,
    /// Nothing goes back at the deadline.
    NoReturnAtTheDeadline,
}

impl Mutant {
    /// What the driver believes to see.
    pub fn blinded(self, mut seen: Snapshot, first: &World) -> Snapshot {
        match self {
            Self::NoFrozenOperator => seen.suspensions[0].now.original = json!(SUSPENDED),
            Self::NoFrozenScaler => seen.suspensions.truncate(1),
            Self::NoWaitForPods => seen.apps.values_mut().for_each(|app| {
                (app.ready, app.existing, app.followed) = (app.wanted, app.wanted, true);
            }),
            Self::NoRestartWait => {
                if let Reachability::Up(target) = &mut seen.target {
                    target.running.archive_mode = "on".into();
                    target.running.postmaster_start = seen.now;
                    target.running.now = seen.now - jiff::SignedDuration::from_secs(1);
                }
            }
            Self::NoReturnAtTheDeadline => seen.now = first.look().now,
            _ => {}
        }
        seen
    }

    /// What the driver decides.
    pub fn decide(self, record: &Record, seen: &Snapshot, world: &World) -> Decision {
        let limits = world.limits();
        let decision = decide(record, seen, &Health::Ok, &limits);
        let Some(start) = &record.started else {
            return decision;
        };
        let promotion = || {
            let target = seen.target.answer()?;
            Some(Decision::Record(Fact::Promotion(Promotion {
                at: seen.now,
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
            (Self::NoFrozenScaler, Decision::Do(Action::ScaleDown)) => {
                Some(Decision::Record(Fact::Routed(seen.now)))
            }
            (Self::NoRecordOfTheFence, Decision::Record(Fact::Fenced(fenced))) => {
                Some(Decision::Do(Action::Fence(fenced.postmaster_start)))
            }
            (Self::NoRecordOfThePromotion, Decision::Record(Fact::Promotion(_)))
                if seen.cluster.follows =>
            {
                Some(Decision::Do(Action::Promote))
            }
            (Self::NoRecordOfTheReturn, Decision::Record(Fact::RollbackStarted(_))) => {
                Some(back(record, start, seen))
            }
            (Self::NoDoor, Decision::Wait(Wait::ServiceNotRepointed(_))) => {
                Some(Decision::Record(Fact::Routed(seen.now)))
            }
            (
                Self::NoLeaderLock,
                Decision::Wait(Wait::RollbackLeaderLockNotHeld | Wait::RollbackBlockNotApplied),
            ) => Some(Decision::Do(Action::UnblockWrites)),
            (Self::NoElection, Decision::Do(Action::UnblockWrites))
                if seen.source.answer().is_some_and(|source| !source.primary) =>
            {
                Some(Decision::Do(Action::RestartSource))
            }
            (Self::NoResumeOnReturn, Decision::Do(Action::ResumePoolers))
                if record.rollback_started.is_some() =>
            {
                Some(match &record.rolled_back {
                    None => Decision::Record(Fact::RolledBack(seen.now)),
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
            _ => None,
        };
        instead.unwrap_or(decision)
    }

    /// The routes on which this guard has something to do.
    pub fn routes(self) -> &'static [Route] {
        match self {
            Self::NoFrozenScaler | Self::NoWaitForPods | Self::NoVersions => &[Route::Config],
            Self::NoDoor | Self::NoResumeOnReturn | Self::NoLateResume => &[Route::Service],
            _ => &[Route::Config, Route::Service],
        }
    }
}
