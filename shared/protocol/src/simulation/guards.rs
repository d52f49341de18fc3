//! The guards of the protocol: each kind of a reason is one, and the table says what breaks without
//! it. A new kind does not compile before it is in the table.

use jiff::SignedDuration;

#[cfg(test)]
use crate::route::Route;
use crate::{
    decide::{Health, decide},
    decision::{Decision, Limits},
    reason::{ContradictionKind, RefusalKind, RollbackReasonKind, WaitKind},
    record::{Record, Start},
    rollback::back,
    snapshot::{
        PoolerState, Reachability, ServiceAnswer, Snapshot, SourceState,
        kubernetes::StoredManifest, poolers::Traffic, source::PostmasterStart,
    },
    wal::{Lsn, Switch},
};

/// A reason to wait, to roll back, to refuse or to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "a walk removes no guard"))]
pub enum Guard {
    Wait(WaitKind),
    Rollback(RollbackReasonKind),
    Contradiction(ContradictionKind),
    Refusal(RefusalKind),
}

/// What a decision depends on besides the record.
pub struct Situation {
    pub seen: Snapshot,
    pub health: Health,
    pub limits: Limits,
}

#[cfg(test)]
impl Guard {
    /// The routes on which it is met.
    pub fn routes(self) -> &'static [Route] {
        use WaitKind as Kind;
        match self {
            Self::Wait(
                Kind::ApplicationJobsRunning | Kind::PodsNotTerminated | Kind::PodsNotReady,
            ) => &[Route::Config],
            Self::Wait(
                Kind::NoCalmMoment
                | Kind::PoolersPausing
                | Kind::PoolersUnreachable
                | Kind::PoolersNotServed
                | Kind::ServiceNotRepointed
                | Kind::RollbackServiceNotBack
                | Kind::RollbackPoolersUnreachable,
            ) => &[Route::Service],
            _ => &[Route::Config, Route::Service],
        }
    }
}

impl Situation {
    pub fn new(seen: &Snapshot, limits: Limits) -> Self {
        Self {
            seen: seen.clone(),
            health: Health::default(),
            limits,
        }
    }

    /// The driver has waited for what it waits for now longer than a server may be away.
    pub fn has_waited(&mut self, record: &Record) {
        if let Decision::Wait(wait) = decide(record, &self.seen, &self.health, &self.limits) {
            let since = self.seen.now - SignedDuration::from_secs(10);
            self.health.waiting = Some((WaitKind::from(&wait), since));
        }
    }

    /// Changes what a guard looks at, so that it sees no reason.
    pub fn ignore(&mut self, guard: Guard, record: &Record) {
        let Some(start) = &record.started else {
            if guard == Guard::Contradiction(ContradictionKind::MarksWithoutRecord) {
                self.seen.prechecks = None;
            }
            return;
        };
        match guard {
            Guard::Rollback(kind) if record.promotion.is_none() => {
                self.ignore_rollback(kind, start);
            }
            Guard::Contradiction(kind) => self.ignore_contradiction(kind, record, start),
            _ => {}
        }
    }

    fn ignore_rollback(&mut self, kind: RollbackReasonKind, start: &Start) {
        use RollbackReasonKind as Kind;
        let Self {
            seen,
            health,
            limits,
        } = self;
        match kind {
            Kind::AbortRequested => seen.abort = None,
            Kind::PermanentFailure => health.failure = None,
            Kind::TargetDeleted => (seen.cluster.missing, seen.cluster.follows) = (false, true),
            Kind::TargetReplicaModeEnded => seen.cluster.follows |= !seen.cluster.missing,
            Kind::SourceFailedOver => {
                if let Reachability::Up(source) = &mut seen.source {
                    source.identity.timeline = start.source.timeline;
                }
            }
            Kind::LeaderDemoted => {
                if let Reachability::Up(source) = &mut seen.source {
                    source.primary = true;
                }
            }
            Kind::LeaderChanged => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.leader = Some(start.leader.clone());
                }
            }
            Kind::TargetPromoted => {
                if let Reachability::Up(target) = &mut seen.target {
                    target.in_recovery = true;
                }
            }
            Kind::ServerLost | Kind::MembersSilent => health.waiting = None,
            Kind::ApiServerLost => health.interrupted = None,
            Kind::NotFencedInTime | Kind::InstancesNotInStep => {
                limits.fence_max = std::time::Duration::MAX;
            }
            Kind::DeadlineExceeded => limits.cutover_max = std::time::Duration::MAX,
        }
    }

    fn ignore_contradiction(&mut self, kind: ContradictionKind, record: &Record, start: &Start) {
        use ContradictionKind as Kind;
        let seen = &mut self.seen;
        match kind {
            Kind::SourceReplaced => {
                if let Reachability::Up(source) = &mut seen.source {
                    source.identity.system_identifier = start.source.system_identifier;
                }
            }
            Kind::TargetReplaced => {
                if let Reachability::Up(target) = &mut seen.target {
                    target.identity.system_identifier = start.target.system_identifier;
                }
            }
            Kind::PromotedElsewhere => {
                if let (Some(promotion), Reachability::Up(target)) =
                    (&record.promotion, &mut seen.target)
                {
                    target.history = vec![Switch {
                        timeline: promotion.timeline,
                        at: promotion.replayed,
                    }];
                }
            }
            Kind::TargetAnswersAsSource => {
                if let Reachability::Up(target) = &mut seen.target {
                    target.running.postmaster_start += SignedDuration::from_secs(1);
                }
            }
            Kind::ElectionWouldLoseWrites => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.received = [("b".to_owned(), Lsn(u64::MAX))].into();
                }
            }
            // The driver's own memory, the start, and what never happens.
            Kind::RecordLost | Kind::MarksWithoutRecord | Kind::EffectBeforeStart => {}
        }
    }

    /// The decision in place of a refusal.
    pub fn instead(&self, guard: Guard, record: &Record) -> Option<Decision> {
        let start = record.started.as_ref()?;
        let too_late = guard == Guard::Refusal(RefusalKind::PastPointOfNoReturn)
            && self.seen.abort.is_some()
            && record.promotion.is_some()
            && record.finished.is_none();
        too_late.then(|| back(record, start, &self.seen))
    }

    /// The decision once what is waited for is taken to be there.
    pub fn go_on(mut self, kind: WaitKind, record: &Record) -> Option<Decision> {
        self.satisfy(kind, record)?;
        Some(decide(record, &self.seen, &self.health, &self.limits))
    }

    /// Changes the snapshot so that it shows what is waited for; None where that would have to be
    /// invented.
    fn satisfy(&mut self, kind: WaitKind, record: &Record) -> Option<()> {
        use WaitKind as Kind;
        let start = record.started.as_ref()?;
        let seen = &mut self.seen;
        match kind {
            Kind::ApplicationJobsRunning => seen.jobs.clear(),
            Kind::NoCalmMoment => seen.poolers.iter_mut().for_each(|pooler| pooler.logins = 0),
            Kind::PoolersPausing => answer_all(seen, PoolerState::Paused),
            Kind::PoolersUnreachable | Kind::RollbackPoolersUnreachable => {
                answer_all(seen, PoolerState::Serving);
            }
            Kind::PoolersNotServed => answer_all(seen, PoolerState::Serving),
            Kind::Unreachable => answer_as_held(seen, start)?,
            Kind::RollbackPatroniUnreachable => {
                answer_as_held(seen, start)?;
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    (patroni.paused, patroni.read_only) = (start.paused, start.read_only.clone());
                    patroni
                        .restart_after_crash
                        .clone_from(&start.restart_after_crash);
                }
            }
            Kind::TargetBehindMarker => {
                let marker = record.marker.as_ref()?.lsn;
                let Reachability::Up(target) = &mut seen.target else {
                    return None;
                };
                target.replay.replay = Some(marker);
            }
            Kind::TargetSwitchingOver | Kind::InstancesBehind => {
                seen.cluster
                    .target_primary
                    .clone_from(&seen.cluster.current_primary);
                seen.cluster.ready.clear();
            }
            Kind::CrashRestartEnabled => {
                if let Reachability::Up(source) = &mut seen.source {
                    source.restarts_after_crash = false;
                }
            }
            Kind::SourceStillPrimary => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.primaries.clear();
                }
            }
            Kind::PatroniMembersUnreachable => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.silent.clear();
                }
            }
            Kind::TargetPromotingOrRestarting => {
                let promotion = record.promotion.as_ref()?;
                let Reachability::Up(source) = &mut seen.source else {
                    return None;
                };
                source.identity.timeline = promotion.timeline;
            }
            Kind::TargetPendingRestart => {
                if let Reachability::Up(target) = &mut seen.target {
                    target.running.archive_mode = "on".into();
                    target.running.pending_restart = 0;
                }
            }
            Kind::TargetRestartNotObserved => {
                let promotion = record.promotion.as_ref()?;
                if let Reachability::Up(target) = &mut seen.target {
                    target.running.postmaster_start =
                        promotion.target_clock + SignedDuration::from_secs(1);
                }
            }
            Kind::PodsNotTerminated => seen.apps.values_mut().for_each(|app| {
                (app.existing, app.followed) = (0, true);
            }),
            Kind::PodsNotReady => seen.apps.values_mut().for_each(|app| {
                (app.ready, app.followed) = (app.wanted, true);
            }),
            Kind::ServiceNotRepointed => {
                let promoted = record.promoted.as_ref()?;
                let mut identity = start.target;
                identity.timeline = promoted.timeline;
                let primary = true;
                seen.service_answer = Reachability::Up(ServiceAnswer { identity, primary });
            }
            Kind::RollbackServiceNotBack => {
                let identity = seen.source.answer()?.identity;
                let primary = true;
                seen.service_answer = Reachability::Up(ServiceAnswer { identity, primary });
            }
            Kind::ManifestUnread => seen.manifest = StoredManifest::Promoted,
            Kind::RollbackLeaderLockNotHeld => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.unlocked = false;
                }
            }
            Kind::RollbackSourceNotWritable => {
                let mut source = source_of(start);
                source.read_only = false;
                seen.source = Reachability::Up(source);
            }
            Kind::RollbackSourceStarting => {
                seen.source = Reachability::Up(source_of(start));
            }
            Kind::RollbackLeaderUnreachable => {
                if let Reachability::Up(patroni) = &mut seen.patroni {
                    patroni.answering.push(start.leader.clone());
                }
            }
            Kind::RollbackBlockNotApplied => {
                if let Reachability::Up(source) = &mut seen.source {
                    source.read_only = true;
                }
            }
            Kind::CheckNotPassed
            | Kind::SourceWithoutLeader
            | Kind::SourceUnreachable
            | Kind::SourceGone
            | Kind::TargetUnreachable
            | Kind::TargetPromoting
            | Kind::ServicesWatched
            | Kind::EffectNotObserved
            | Kind::Failed => return None,
        }
        Some(())
    }
}

/// Every console answers with this state, and every pooler has reached the target.
fn answer_all(seen: &mut Snapshot, state: PoolerState) {
    for pooler in &mut seen.poolers {
        pooler.state = Reachability::Up(state);
        pooler.traffic = Some(Traffic {
            connected: true,
            ..Traffic::default()
        });
    }
}

/// The source as it would answer if it did: blocked, as at the start.
fn source_of(start: &Start) -> SourceState {
    SourceState {
        identity: start.source,
        primary: true,
        read_only: true,
        restarts_after_crash: false,
        insert: Some(Lsn(0)),
        postmaster_start: PostmasterStart(0),
        clients: Vec::new(),
    }
}

/// Patroni as it would answer if it did: it holds the block, and no server runs as a primary. None
/// where it has answered.
fn answer_as_held(seen: &mut Snapshot, start: &Start) -> Option<()> {
    use crate::snapshot::PatroniState;
    if seen.patroni.answer().is_some() {
        return None;
    }
    seen.patroni = Reachability::Up(PatroniState {
        paused: Some(true),
        read_only: Some("on".into()),
        restart_after_crash: Some("off".into()),
        leader: Some(start.leader.clone()),
        primaries: Vec::new(),
        standbys: Vec::new(),
        unlocked: false,
        starting: false,
        answering: vec!["a".into(), "b".into()],
        silent: Vec::new(),
        received: [("b".to_owned(), Lsn(u64::MAX))].into(),
    });
    Some(())
}
