//! What breaks without each guard: the table that the search of the mutants goes through. A new
//! kind of a reason does not compile before it is in it.

use strum::IntoEnumIterator;

use super::{
    events::Group,
    guards::Guard,
    invariants::Invariant::{self, Progress, S1, S2, S3, S4, S5, S7, S8, S9, S10, S11, S12},
};
use crate::reason::{ContradictionKind, RefusalKind, RollbackReasonKind, WaitKind};

/// What the search says of a guard.
#[derive(Clone, Copy, Debug)]
pub enum Needed {
    /// Without it a search of this group breaks one of these invariants.
    For(Group, &'static [Invariant]),
    /// It protects no invariant of the model: what it is there for.
    Otherwise(&'static str),
}

use Needed::{For, Otherwise};

/// Every guard, with what it is needed for.
pub fn all() -> impl Iterator<Item = (Guard, Needed)> {
    let waits = WaitKind::iter().map(|kind| (Guard::Wait(kind), wait(kind)));
    let rollbacks = RollbackReasonKind::iter();
    let rollbacks = rollbacks.map(|kind| (Guard::Rollback(kind), rollback(kind)));
    let contradictions = ContradictionKind::iter();
    let contradictions =
        contradictions.map(|kind| (Guard::Contradiction(kind), contradiction(kind)));
    let refusals = RefusalKind::iter().map(|kind| (Guard::Refusal(kind), refusal(kind)));
    waits.chain(rollbacks).chain(contradictions).chain(refusals)
}

fn wait(kind: WaitKind) -> Needed {
    use WaitKind as Kind;
    match kind {
        Kind::ApplicationJobsRunning => For(Group::Application, &[S4]),
        Kind::NoCalmMoment => For(Group::Application, &[S12]),
        Kind::CrashRestartEnabled => For(Group::Silence, &[S2]),
        Kind::Unreachable => For(Group::Silence, &[S1]),
        Kind::TargetSwitchingOver | Kind::InstancesBehind => For(Group::Replacement, &[S2]),
        Kind::SourceStillPrimary | Kind::PatroniMembersUnreachable => For(Group::Silence, &[S1]),
        Kind::TargetPendingRestart => For(Group::Silence, &[S7]),
        Kind::PodsNotTerminated => For(Group::Acts, &[S4]),
        Kind::PodsNotReady => For(Group::Acts, &[S10]),
        Kind::ServiceNotRepointed => For(Group::Acts, &[S7]),
        Kind::PoolersUnreachable => For(Group::Application, &[S8, S10]),
        Kind::PoolersNotServed => For(Group::Acts, &[S10]),
        Kind::RollbackPatroniUnreachable => For(Group::Silence, &[S3]),
        Kind::RollbackLeaderLockNotHeld => For(Group::Acts, &[S9]),
        Kind::RollbackSourceNotWritable => For(Group::Acts, &[S3]),
        Kind::RollbackServiceNotBack => For(Group::Application, &[S7]),
        Kind::RollbackSourceStarting => For(Group::Silence, &[S9]),
        Kind::RollbackPoolersUnreachable => For(Group::Application, &[S8]),
        Kind::CheckNotPassed => Otherwise(
            "the checks keep a cutover from its beginning; each has tests of its own, and the \
             search begins where they pass",
        ),
        Kind::SourceWithoutLeader => Otherwise(
            "nothing is changed yet; a cutover that began with a wrong leader would roll back",
        ),
        Kind::PoolersPausing => Otherwise(
            "it gives running transactions the time to end; the block ends those that are left",
        ),
        Kind::SourceUnreachable | Kind::SourceGone => Otherwise(
            "the next step is done in a session at the source, so nothing could be done without it",
        ),
        Kind::TargetUnreachable | Kind::TargetBehindMarker => {
            Otherwise("it keeps the stop of the source short; the proof waits for the target again")
        }
        Kind::TargetPromotingOrRestarting => Otherwise(
            "nothing is verified before the target answers; until then it is not stopped as the \
             source, which the contradiction about it prevents afterwards",
        ),
        Kind::TargetPromoting => Otherwise("a standby refuses the write that verifies the target"),
        Kind::TargetRestartNotObserved => Otherwise(
            "it is for a restart that archive_mode does not show; in the model it always does",
        ),
        Kind::ManifestUnread => {
            Otherwise("a finished cutover rewrites a manifest that follows all the same")
        }
        Kind::ServicesWatched => Otherwise(
            "it prolongs the time in which Services are repointed; a later run does it, too",
        ),
        Kind::RollbackBlockNotApplied => Otherwise(
            "without it clients are refused writes for one of Patroni's loops; then the lifted \
             block reaches the server",
        ),
        Kind::RollbackLeaderUnreachable => Otherwise(
            "it gives the leader time to come back; an election that loses writes is a \
             contradiction of its own",
        ),
        Kind::EffectNotObserved | Kind::Failed => {
            Otherwise("the driver reports it and repeats; no decision depends on it")
        }
    }
}

fn rollback(kind: RollbackReasonKind) -> Needed {
    use RollbackReasonKind as Kind;
    match kind {
        Kind::DeadlineExceeded => For(Group::Acts, &[Progress]),
        Kind::AbortRequested => {
            Otherwise("it is what a person asks for; both ends are safe without it")
        }
        Kind::PermanentFailure | Kind::ServerLost | Kind::MembersSilent | Kind::ApiServerLost => {
            Otherwise("it ends the pause of the clients long before the deadline, which would, too")
        }
        Kind::NotFencedInTime | Kind::InstancesNotInStep => {
            Otherwise("it ends the pause before the deadline; nothing is promoted without a proof")
        }
        Kind::TargetDeleted | Kind::TargetReplicaModeEnded | Kind::TargetPromoted => Otherwise(
            "such a target never proves the end of the source, so the deadline would roll back",
        ),
        Kind::SourceFailedOver | Kind::LeaderDemoted | Kind::LeaderChanged => Otherwise(
            "the fence names the timeline and the proof compares it, so the deadline would roll \
             back",
        ),
    }
}

fn contradiction(kind: ContradictionKind) -> Needed {
    use ContradictionKind as Kind;
    match kind {
        Kind::PromotedElsewhere | Kind::ElectionWouldLoseWrites => For(Group::Acts, &[S2]),
        Kind::SourceReplaced
        | Kind::TargetReplaced
        | Kind::TargetAnswersAsSource
        | Kind::RecordLost
        | Kind::MarksWithoutRecord => For(Group::Replacement, &[S11]),
        Kind::EffectBeforeStart => Otherwise("no decision orders an effect before the start"),
    }
}

fn refusal(kind: RefusalKind) -> Needed {
    use RefusalKind as Kind;
    match kind {
        Kind::PastPointOfNoReturn => For(Group::Acts, &[S1, S2, S4, S5, S7]),
        Kind::AbortedBeforeStart | Kind::FailingBeforeStart => {
            Otherwise("nothing is changed yet; it is what a person asks for, or cannot go on")
        }
        Kind::RolledBack => Otherwise("it is the end of a rollback, whose state S3 and S8 judge"),
    }
}
