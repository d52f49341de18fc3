//! Why the cutover waits, refuses, rolls back or stops: each reason is a variant with its data, and
//! has one text, its `Display`.
//!
//! Nothing else in the program matches on these texts, so they can be reworded freely. The kinds of
//! each reason can be listed (`WaitKind::iter()` and its siblings).

mod stopped;
mod wait;

use std::fmt;

use jiff::Timestamp;
use strum::{EnumDiscriminants, EnumIter, IntoStaticStr};

use crate::{
    failure::{ErrorKind, Failure},
    record::FactKind,
    wal::{Lsn, SystemIdentifier, Timeline},
};

pub use stopped::Stopped;
pub use wait::{Server, ServerFailure, SourcePrimary, UnreadyPods, UnservedPooler, Wait, WaitKind};

/// Who asked the cutover to end or to roll back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AbortRequest {
    /// The pod received SIGTERM.
    Sigterm,
    /// The record has the key `abort`.
    RecordKey,
    /// The CronJob has the annotation for it.
    Annotation {
        /// Name of the CronJob.
        cron_job: &'static str,
        /// Name of the annotation.
        annotation: &'static str,
    },
    /// The program `rollback` runs.
    Rollback,
}

impl fmt::Display for AbortRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sigterm => f.write_str("asked to end (SIGTERM)"),
            Self::RecordKey => f.write_str("asked to roll back (key abort of the record)"),
            Self::Annotation {
                cron_job,
                annotation,
            } => write!(
                f,
                "asked to roll back (kubectl annotate cronjob/{cron_job} {annotation}- takes that \
                 back)"
            ),
            Self::Rollback => f.write_str("rollback was started"),
        }
    }
}

/// Why the cutover rolls back before the point of no return. Its text goes into the record.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(RollbackReasonKind), derive(Hash, EnumIter, IntoStaticStr))]
#[strum_discriminants(doc = "The kinds of [`RollbackReason`].")]
pub enum RollbackReason {
    /// An [`AbortRequest`] was observed.
    AbortRequested(AbortRequest),
    /// An observation or an effect keeps failing, and waiting does not help.
    PermanentFailure(Failure),
    /// The target's Cluster was deleted.
    TargetDeleted,
    /// Another actor has ended the target's replica mode.
    TargetReplicaModeEnded,
    /// The source's primary is on another timeline than at the start.
    SourceFailedOver {
        /// The timeline now.
        timeline: Timeline,
        /// The timeline at the start.
        recorded: Timeline,
    },
    /// Patroni has made the source's leader a standby, and elects none while it is paused.
    LeaderDemoted,
    /// Patroni's leader is another member than at the start.
    LeaderChanged {
        /// The leader now.
        leader: String,
        /// The leader at the start.
        recorded: String,
    },
    /// Another actor has promoted the target.
    TargetPromoted,
    /// A server that the next step needs does not answer any more.
    ServerLost {
        /// The server.
        server: Server,
        /// Seconds since it answered last.
        seconds: u64,
    },
    /// Members of the source do not say any more whether their servers run.
    MembersSilent {
        /// The members.
        members: Vec<String>,
        /// Seconds since all answered last.
        seconds: u64,
    },
    /// The API server did not answer while clients waited.
    ApiServerLost {
        /// Seconds between two observations.
        seconds: u64,
    },
    /// The clean stop of the source was not proved in time.
    NotFencedInTime {
        /// Seconds since the fence was recorded.
        seconds: u64,
        /// Members whose Patroni does not say whether their server runs.
        unreachable: Vec<String>,
    },
    /// Not every instance of the target that CloudNativePG may promote had everything in time.
    InstancesNotInStep {
        /// Seconds since the fence was recorded.
        seconds: u64,
    },
    /// The point of no return was not reached in time.
    DeadlineExceeded {
        /// What the time is counted from.
        since: Since,
        /// Seconds since then.
        seconds: u64,
    },
}

impl fmt::Display for RollbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbortRequested(request) => request.fmt(f),
            Self::PermanentFailure(failure) => failure.fmt(f),
            Self::TargetDeleted => f.write_str("the target's Cluster was deleted"),
            Self::TargetReplicaModeEnded => {
                f.write_str("another actor has ended the target's replica mode")
            }
            Self::SourceFailedOver { timeline, recorded } => write!(
                f,
                "the source failed over: timeline {timeline} instead of {recorded}"
            ),
            Self::LeaderDemoted => f.write_str(
                "patroni has made the source's leader a standby, and elects none while it is \
                 paused",
            ),
            Self::LeaderChanged { leader, recorded } => write!(
                f,
                "the source failed over: the leader is {leader}, it was {recorded}"
            ),
            Self::TargetPromoted => f.write_str("the target was promoted by another actor"),
            Self::ServerLost { server, seconds } => {
                let server: &str = server.into();
                write!(
                    f,
                    "the {server} has not answered for {seconds} s while clients wait"
                )
            }
            Self::MembersSilent { members, seconds } => write!(
                f,
                "the patroni of {} has not answered for {seconds} s while clients wait",
                members.join(", ")
            ),
            Self::ApiServerLost { seconds } => write!(
                f,
                "the API server did not answer for {seconds} s while clients wait, and the \
                 operators may take longer to notice that it is back"
            ),
            Self::NotFencedInTime {
                seconds,
                unreachable,
            } => {
                write!(
                    f,
                    "the clean stop of the source was not proved within {seconds} s \
                     (FENCE_MAX_SECONDS)"
                )?;
                if unreachable.is_empty() {
                    return Ok(());
                }
                write!(
                    f,
                    ": {} does not say whether its server runs",
                    unreachable.join(", ")
                )
            }
            Self::InstancesNotInStep { seconds } => write!(
                f,
                "not all ready instances of the target had everything within {seconds} s, or its \
                 designated primary was changing (FENCE_MAX_SECONDS)"
            ),
            Self::DeadlineExceeded { since, seconds } => {
                let since: &str = since.into();
                write!(
                    f,
                    "the point of no return was not reached {seconds} s after the {since} \
                     (CUTOVER_MAX_SECONDS)"
                )
            }
        }
    }
}

/// What a deadline is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Since {
    /// The start of the cutover.
    Start,
    /// The block of writes.
    Block,
}

/// Why a program ends without a cutover, or without a rollback.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(RefusalKind), derive(Hash, EnumIter, IntoStaticStr))]
#[strum_discriminants(doc = "The kinds of [`Refusal`].")]
pub enum Refusal {
    /// It was asked to end before anything was changed.
    AbortedBeforeStart(AbortRequest),
    /// An observation or an effect keeps failing, and nothing was changed.
    FailingBeforeStart(Failure),
    /// The cutover has rolled back, and everything is as it was.
    RolledBack {
        /// The reason on record.
        reason: String,
        /// The failure that this program met, if one caused the rollback.
        failure: Option<Failure>,
    },
    /// The rollback comes too late.
    PastPointOfNoReturn {
        /// When the promotion was recorded.
        recorded: Timestamp,
        /// How far the cutover has come since.
        progress: Progress,
    },
}

/// How far a cutover has come past the point of no return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The promotion is recorded.
    Promoting,
    /// The target accepts writes.
    Promoted,
    /// The cutover is finished.
    Finished,
}

const ON_THE_SOURCE: &str = "the application runs on the source as before";

impl Refusal {
    /// What it means for the Job: a failure before the start keeps its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::FailingBeforeStart(failure) => failure.kind,
            Self::AbortedBeforeStart(_)
            | Self::RolledBack { .. }
            | Self::PastPointOfNoReturn { .. } => ErrorKind::Refused,
        }
    }

    /// What the operator does next.
    pub fn hint(&self) -> String {
        let failure = match self {
            Self::FailingBeforeStart(failure) => Some(failure),
            Self::RolledBack { failure, .. } => failure.as_ref(),
            Self::AbortedBeforeStart(_) => None,
            Self::PastPointOfNoReturn { progress, .. } => return progress.hint().to_owned(),
        };
        match failure.and_then(|failure| failure.hint.as_ref()) {
            Some(hint) => {
                format!("{ON_THE_SOURCE}; {hint}; then start a new cutover")
            }
            None => format!("{ON_THE_SOURCE}; fix the cause and start a new cutover"),
        }
    }
}

impl Progress {
    fn hint(self) -> &'static str {
        match self {
            Self::Promoting => {
                "the target may be a primary by now: start the cutover again, it goes on from what \
                 is recorded"
            }
            Self::Promoted => {
                "the target takes writes: start the cutover again, it goes on from what is recorded"
            }
            Self::Finished => {
                "what the target has taken since would be lost: keep the source as it is (stopped, \
                 paused, its operator suspended), and fix the cause on the target"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbortedBeforeStart(request) => write!(f, "{request}: nothing was changed"),
            Self::FailingBeforeStart(failure) => write!(f, "{failure}: nothing was changed"),
            Self::RolledBack { reason, .. } => write!(f, "rolled back: {reason}"),
            Self::PastPointOfNoReturn { recorded, .. } => write!(
                f,
                "a rollback is no longer possible: the promotion was recorded at {} (point of no \
                 return)",
                recorded.strftime("%F %T UTC")
            ),
        }
    }
}

/// What the record and the observation cannot both be true of: manual intervention is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(ContradictionKind), derive(Hash, EnumIter, IntoStaticStr))]
#[strum_discriminants(doc = "The kinds of [`Contradiction`].")]
pub enum Contradiction {
    /// The source is another database system.
    SourceReplaced {
        /// Its identifier now.
        found: SystemIdentifier,
        /// Its identifier at the start.
        recorded: SystemIdentifier,
    },
    /// The target is another database system.
    TargetReplaced {
        /// Its identifier now.
        found: SystemIdentifier,
        /// Its identifier at the start.
        recorded: SystemIdentifier,
    },
    /// The timeline of the promoted target did not begin where the source ended.
    PromotedElsewhere {
        /// The target's timeline.
        timeline: Timeline,
        /// Where it left the source's timeline; None when its history does not contain that one.
        left: Option<Lsn>,
        /// Where the source ended, as it was proved before the promotion.
        proved: Lsn,
    },
    /// The server that answers at the address of a member of the source is the target.
    TargetAnswersAsSource,
    /// An effect was decided on before the start was recorded.
    EffectBeforeStart,
    /// The record was removed while the cutover was under way.
    RecordLost {
        /// Its last fact.
        last: FactKind,
    },
    /// The Zalando operator is suspended by a cutover, and no cutover is on record.
    MarksWithoutRecord,
    /// The source's leader is lost, and an election would lose acknowledged writes.
    ElectionWouldLoseWrites {
        /// The most that another member has received; None when none says what it has.
        received: Option<Lsn>,
        /// What must not be lost.
        needed: Lsn,
    },
}

impl Contradiction {
    /// What the operator does next.
    pub fn hint(self) -> &'static str {
        match self {
            Self::PromotedElsewhere { .. } => {
                "do not resume client traffic: another instance than the observed one was \
                 promoted, \
                 and the stopped source may hold writes that the target does not; compare both \
                 servers first (docs/operations.md#exit-code-4)"
            }
            Self::ElectionWouldLoseWrites { .. } => {
                "patroni stays paused, so that it elects no member that lacks writes: bring the \
                 leader's pod back and run rollback again; or resume patroni by hand and lose \
                 them; \
                 or promote the target by hand, if it has them \
                 (docs/operations.md#a-lost-leader)"
            }
            Self::RecordLost { .. } | Self::MarksWithoutRecord => {
                "if another namespace or target has the record, use that; otherwise undo by hand \
                 what the cutover may have changed (docs/operations.md#a-lost-record)"
            }
            _ => {
                "change nothing by hand before the record cutover-<cluster> and both servers have \
                 been compared"
            }
        }
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceReplaced { found, recorded } => write!(
                f,
                "the source's system identifier is {found}, the record says {recorded}"
            ),
            Self::TargetReplaced { found, recorded } => write!(
                f,
                "the target's system identifier is {found}, the record says {recorded}"
            ),
            Self::PromotedElsewhere {
                timeline,
                left: Some(left),
                proved,
            } => write!(
                f,
                "the target's timeline {timeline} began at {left}, the source ended at {proved}"
            ),
            Self::PromotedElsewhere {
                timeline,
                left: None,
                proved,
            } => write!(
                f,
                "the target's timeline {timeline} did not begin on the source's, which ended at \
                 {proved}"
            ),
            Self::TargetAnswersAsSource => {
                f.write_str("the target answers at the address of a member of the source")
            }
            Self::EffectBeforeStart => f.write_str("an action before the start was recorded"),
            Self::RecordLost { last } => {
                let key = last.step().map_or("nothing", |step| step.key);
                write!(
                    f,
                    "the record was removed while the cutover was under way (recorded last: {key})"
                )
            }
            Self::ElectionWouldLoseWrites {
                received: Some(received),
                needed,
            } => write!(
                f,
                "the source's leader is lost, and its other members have received no more than \
                 {received} of {needed}"
            ),
            Self::ElectionWouldLoseWrites {
                received: None,
                needed,
            } => write!(
                f,
                "the source's leader is lost, and no other member says whether it has received \
                 {needed}"
            ),
            Self::MarksWithoutRecord => f.write_str(
                "the operator of the source is suspended by a cutover, and no cutover is on record",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use strum::IntoEnumIterator;

    use super::*;

    fn failure() -> Failure {
        Failure::config("forbidden").hint("grant it")
    }

    fn rollbacks() -> Vec<RollbackReason> {
        vec![
            RollbackReason::AbortRequested(AbortRequest::Sigterm),
            RollbackReason::PermanentFailure(failure()),
            RollbackReason::TargetDeleted,
            RollbackReason::TargetReplicaModeEnded,
            RollbackReason::SourceFailedOver {
                timeline: Timeline(2),
                recorded: Timeline(1),
            },
            RollbackReason::LeaderDemoted,
            RollbackReason::LeaderChanged {
                leader: "b".into(),
                recorded: "a".into(),
            },
            RollbackReason::TargetPromoted,
            RollbackReason::ServerLost {
                server: Server::Source,
                seconds: 5,
            },
            RollbackReason::MembersSilent {
                members: vec!["b".into()],
                seconds: 5,
            },
            RollbackReason::ApiServerLost { seconds: 20 },
            RollbackReason::NotFencedInTime {
                seconds: 15,
                unreachable: vec!["b".into()],
            },
            RollbackReason::InstancesNotInStep { seconds: 15 },
            RollbackReason::DeadlineExceeded {
                since: Since::Block,
                seconds: 300,
            },
        ]
    }

    fn refusals() -> Vec<Refusal> {
        vec![
            Refusal::AbortedBeforeStart(AbortRequest::RecordKey),
            Refusal::FailingBeforeStart(failure()),
            Refusal::RolledBack {
                reason: "a test".into(),
                failure: None,
            },
            Refusal::PastPointOfNoReturn {
                recorded: Timestamp::UNIX_EPOCH,
                progress: Progress::Promoted,
            },
        ]
    }

    fn contradictions() -> Vec<Contradiction> {
        let (found, recorded) = (SystemIdentifier(1), SystemIdentifier(2));
        vec![
            Contradiction::SourceReplaced { found, recorded },
            Contradiction::TargetReplaced { found, recorded },
            Contradiction::PromotedElsewhere {
                timeline: Timeline(2),
                left: Some(Lsn(1)),
                proved: Lsn(2),
            },
            Contradiction::TargetAnswersAsSource,
            Contradiction::EffectBeforeStart,
            Contradiction::RecordLost {
                last: FactKind::Blocked,
            },
            Contradiction::MarksWithoutRecord,
            Contradiction::ElectionWouldLoseWrites {
                received: None,
                needed: Lsn(3),
            },
        ]
    }

    /// Each kind has a text of one line, and no two have the same.
    fn all_have_a_text<R, K>(reasons: &[R])
    where
        R: fmt::Display,
        K: IntoEnumIterator + for<'a> From<&'a R> + Eq + std::hash::Hash + fmt::Debug,
    {
        let given: HashSet<K> = reasons.iter().map(K::from).collect();
        assert_eq!(given, K::iter().collect(), "an example of each kind");
        let texts: HashSet<String> = reasons.iter().map(R::to_string).collect();
        assert_eq!(texts.len(), reasons.len());
        assert!(
            texts
                .iter()
                .all(|text| !text.is_empty() && !text.contains('\n'))
        );
    }

    #[test]
    fn each_reason_has_a_text_of_its_own() {
        all_have_a_text::<_, WaitKind>(&wait::examples());
        all_have_a_text::<_, RollbackReasonKind>(&rollbacks());
        all_have_a_text::<_, RefusalKind>(&refusals());
        all_have_a_text::<_, ContradictionKind>(&contradictions());
    }

    #[test]
    fn the_deadline_names_what_it_is_counted_from() {
        let [.., deadline] = &rollbacks()[..] else {
            panic!("there are some")
        };
        assert_eq!(
            deadline.to_string(),
            "the point of no return was not reached 300 s after the block (CUTOVER_MAX_SECONDS)"
        );
    }

    #[test]
    fn kind_and_hint_of_a_failure_survive_to_the_last_line() {
        let stopped = Stopped::Refused(Refusal::FailingBeforeStart(failure()));
        assert_eq!(
            Failure::from(stopped),
            Failure::config("forbidden: nothing was changed").hint(
                "the application runs on the source as before; grant it; then start a new cutover"
            )
        );
        let stopped = Stopped::WaitedTooLong(Wait::TargetUnreachable(failure()));
        let last = Failure::from(stopped);
        assert_eq!(last.kind, ErrorKind::Transient);
        assert_eq!(last.hint.as_deref(), Some("grant it"));
    }
}
