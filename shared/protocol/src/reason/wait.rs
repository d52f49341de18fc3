//! What the next step waits for.

use std::fmt;

use strum::{EnumDiscriminants, EnumIter, IntoStaticStr};

use crate::{failure::Failure, finding::Finding, wal::Lsn};

/// What is missing for the next step.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants)]
#[strum_discriminants(name(WaitKind), derive(Hash, EnumIter, IntoStaticStr))]
#[strum_discriminants(doc = "The kinds of [`Wait`].")]
pub enum Wait {
    /// A check does not pass yet.
    CheckNotPassed(Finding),
    /// Servers that the next step needs do not answer.
    Unreachable(Vec<ServerFailure>),
    /// No member of the source is Patroni's leader.
    SourceWithoutLeader,
    /// The source's server still restarts after a crash: Patroni has not applied the setting, or
    /// another one has precedence.
    CrashRestartEnabled,
    /// Jobs of the application's CronJobs have not ended.
    ApplicationJobsRunning {
        /// Their names.
        jobs: Vec<String>,
    },
    /// The poolers are not in a state in which a pause is short and costs no login.
    NoCalmMoment {
        /// Pods of poolers that are logging in at their server.
        logins: Vec<String>,
        /// Transactions through the poolers that have been open for long.
        transactions: Vec<String>,
    },
    /// Poolers still have transactions to end before they are paused.
    PoolersPausing {
        /// Their pods.
        pods: Vec<String>,
    },
    /// The source, which is to be blocked, or its Patroni does not answer.
    SourceUnreachable(Vec<ServerFailure>),
    /// The target, which is to catch up, does not answer.
    TargetUnreachable(Failure),
    /// The target has not replayed the source's position after the block.
    TargetBehindMarker {
        /// Its replay position, if there is one.
        replayed: Option<Lsn>,
        /// The source's position.
        marker: Lsn,
    },
    /// CloudNativePG is making another instance the designated primary.
    TargetSwitchingOver {
        /// The instance that is the designated primary.
        from: String,
        /// The one that is to be it.
        to: String,
    },
    /// Ready instances of the target have not flushed the position up to which the observed one has
    /// everything.
    InstancesBehind {
        /// Their names.
        instances: Vec<String>,
        /// The position.
        position: Lsn,
    },
    /// The source ended while its position was to be recorded.
    SourceGone,
    /// The source's server has not stopped.
    SourceStillPrimary(SourcePrimary),
    /// The Patroni of these members does not answer, so their servers may run.
    PatroniMembersUnreachable {
        /// The members.
        members: Vec<String>,
    },
    /// The target does not answer while it promotes or restarts.
    TargetPromotingOrRestarting(Failure),
    /// The target is still in recovery.
    TargetPromoting,
    /// The target has settings that only a restart applies.
    TargetPendingRestart,
    /// The restart that CNPG owes the new primary has not been observed.
    TargetRestartNotObserved,
    /// Pods of the application have not been told to end.
    PodsNotTerminated {
        /// Their workloads.
        workloads: Vec<String>,
    },
    /// Pods of the application are not ready.
    PodsNotReady(Vec<UnreadyPods>),
    /// The source's Service does not lead to the target: nothing answers there, or another server.
    ServiceNotRepointed(Option<Failure>),
    /// Consoles of poolers do not answer, so their clients may still be paused.
    PoolersUnreachable {
        /// Their pods.
        pods: Vec<String>,
    },
    /// Poolers are resumed and have not shown that their clients are served by the target.
    PoolersNotServed {
        /// Which, and what is known of them.
        poolers: Vec<UnservedPooler>,
        /// It takes longer than a login does.
        overdue: bool,
    },
    /// The stored manifest of the target has not been read: the application was not served yet when
    /// the snapshot was taken.
    ManifestUnread,
    /// Clients are served, and a sync that the Zalando operator queued before it was suspended may
    /// still take them back to the source.
    ServicesWatched {
        /// For how long they are watched, in seconds.
        seconds: u64,
    },
    /// Rollback: no Patroni of the source answers.
    RollbackPatroniUnreachable(Option<Failure>),
    /// Rollback: Patroni has not taken the leader lock again.
    RollbackLeaderLockNotHeld,
    /// Rollback: Patroni has not applied the block that is about to be lifted.
    RollbackBlockNotApplied,
    /// Rollback: the source does not accept writes.
    RollbackSourceNotWritable,
    /// Rollback: the Patroni of the recorded leader does not answer.
    RollbackLeaderUnreachable {
        /// The member.
        leader: String,
    },
    /// Rollback: the source's Service does not lead to its primary: nothing answers there, or
    /// another server.
    RollbackServiceNotBack(Option<Failure>),
    /// Rollback: the source's server is starting.
    RollbackSourceStarting,
    /// Rollback: consoles of poolers do not answer.
    RollbackPoolersUnreachable {
        /// Their pods.
        pods: Vec<String>,
    },
    /// An effect was repeated many times, and the observation still asks for it.
    EffectNotObserved {
        /// Name of the action.
        action: &'static str,
    },
    /// An observation or an effect failed and is repeated.
    Failed(Failure),
}

impl Wait {
    /// What the operator can do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::CheckNotPassed(finding) => finding.hint.as_deref(),
            Self::Unreachable(servers) | Self::SourceUnreachable(servers) => servers
                .iter()
                .find_map(|server| server.failure.hint.as_deref()),
            Self::TargetUnreachable(failure)
            | Self::TargetPromotingOrRestarting(failure)
            | Self::ServiceNotRepointed(Some(failure))
            | Self::RollbackPatroniUnreachable(Some(failure))
            | Self::RollbackServiceNotBack(Some(failure))
            | Self::Failed(failure) => failure.hint.as_deref(),
            Self::CrashRestartEnabled => Some(
                "Patroni applies its configuration within one loop; after that, look whether ALTER \
                 SYSTEM, a role or the command line sets restart_after_crash, and reset it",
            ),
            Self::PoolersNotServed { overdue: true, .. } => Some(
                "let the poolers' pods reach the target: look at the NetworkPolicies that select \
                 either, at server_tls_sslmode of the poolers, at the Cluster's pg_hba, and at the \
                 poolers' log",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckNotPassed(finding) => finding.fmt(f),
            Self::Unreachable(servers) => f.write_str(&joined(servers, "; ")),
            Self::SourceWithoutLeader => f.write_str("the source has no leader"),
            Self::CrashRestartEnabled => f.write_str(
                "the source's server would still restart by itself after a crash \
                 (restart_after_crash)",
            ),
            Self::ApplicationJobsRunning { jobs } => {
                write!(f, "jobs of the application still run: {}", jobs.join(", "))
            }
            Self::NoCalmMoment {
                logins,
                transactions,
            } => {
                f.write_str("waiting for a calm moment to pause the poolers")?;
                if !logins.is_empty() {
                    write!(f, "; logging in at their server: {}", logins.join(", "))?;
                }
                if !transactions.is_empty() {
                    write!(f, "; long transactions: {}", transactions.join(", "))?;
                }
                Ok(())
            }
            Self::PoolersPausing { pods } => {
                write!(f, "pausing the poolers: {} not yet", pods.join(", "))
            }
            Self::SourceUnreachable(servers) => {
                write!(f, "the source does not answer ({})", joined(servers, "; "))
            }
            Self::TargetUnreachable(failure) => {
                write!(f, "the target does not answer: {failure}")
            }
            Self::TargetBehindMarker { replayed, marker } => {
                f.write_str("the target has replayed ")?;
                match replayed {
                    Some(lsn) => write!(f, "{lsn}")?,
                    None => f.write_str("nothing")?,
                }
                write!(f, ", the marker is {marker}")
            }
            Self::TargetSwitchingOver { from, to } => write!(
                f,
                "the target's designated primary changes from {from} to {to}"
            ),
            Self::InstancesBehind {
                instances,
                position,
            } => write!(
                f,
                "not flushed up to {position} yet: {} of the target",
                instances.join(", ")
            ),
            Self::SourceGone => f.write_str("the source is gone"),
            Self::SourceStillPrimary(server) => write!(f, "{server} still runs as a primary"),
            Self::PatroniMembersUnreachable { members } => write!(
                f,
                "{} does not say whether its server runs",
                members.join(", ")
            ),
            Self::TargetPromotingOrRestarting(failure) => {
                write!(f, "the target is promoting or restarting ({failure})")
            }
            Self::TargetPromoting => f.write_str("the target is promoting"),
            Self::TargetPendingRestart => f.write_str(
                "the target is primary and must still be restarted by CNPG (archive_mode)",
            ),
            Self::TargetRestartNotObserved => {
                f.write_str("the target is primary and its restart by CNPG is not seen yet")
            }
            Self::PodsNotTerminated { workloads } => write!(
                f,
                "waiting for pods to be told to end: {}",
                workloads.join(", ")
            ),
            Self::PodsNotReady(pods) => write!(f, "waiting for pods: {}", joined(pods, ", ")),
            Self::ServiceNotRepointed(failure) => {
                f.write_str("the Service does not lead to the target yet (")?;
                match failure {
                    Some(failure) => write!(f, "{failure})"),
                    None => f.write_str("another server answers)"),
                }
            }
            Self::PoolersUnreachable { pods } => {
                write!(f, "the console of {} does not answer", pods.join(", "))
            }
            Self::PoolersNotServed { poolers, overdue } => {
                let early = |one: &&UnservedPooler| !overdue && one.pools.is_empty();
                let (early, rest): (Vec<_>, Vec<_>) = poolers.iter().partition(early);
                let pods: Vec<&str> = early.iter().map(|one| one.pod.as_str()).collect();
                let first = (!pods.is_empty())
                    .then(|| format!("waiting until the target is reached by {}", pods.join(", ")));
                let texts = rest.into_iter().map(UnservedPooler::text);
                let all: Vec<String> = first.into_iter().chain(texts).collect();
                f.write_str(&all.join("; "))
            }
            Self::ManifestUnread => f.write_str("reading the stored manifest"),
            Self::ServicesWatched { seconds } => write!(
                f,
                "clients are served; watching the Services for {seconds} s, because a sync that \
                 the Zalando operator has queued would turn them back"
            ),
            Self::RollbackPatroniUnreachable(_) => {
                f.write_str("rolling back: patroni does not answer")
            }
            Self::RollbackLeaderLockNotHeld => {
                f.write_str("rolling back: patroni has not taken the leader lock again yet")
            }
            Self::RollbackBlockNotApplied => {
                f.write_str("rolling back: patroni has not brought the block to the server yet")
            }
            Self::RollbackSourceNotWritable => {
                f.write_str("rolling back: the source does not take writes yet")
            }
            Self::RollbackLeaderUnreachable { leader } => {
                write!(f, "rolling back: the patroni of {leader} does not answer")
            }
            Self::RollbackServiceNotBack(failure) => {
                f.write_str(
                    "rolling back: the Service does not lead to the source's primary yet (",
                )?;
                match failure {
                    Some(failure) => write!(f, "{failure})"),
                    None => f.write_str("another server answers)"),
                }
            }
            Self::RollbackSourceStarting => {
                f.write_str("rolling back: the source's server is starting")
            }
            Self::RollbackPoolersUnreachable { pods } => write!(
                f,
                "rolling back: the console of {} does not answer",
                pods.join(", ")
            ),
            Self::EffectNotObserved { action } => write!(f, "{action} has no effect yet"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

/// What is asked in each observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Server {
    /// The source's leader, by SQL.
    Source,
    /// Patroni's REST API.
    Patroni,
    /// The target, by SQL.
    Target,
}

/// A server that does not answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFailure {
    /// The server.
    pub server: Server,
    /// Why it does not answer.
    pub failure: Failure,
}

impl fmt::Display for ServerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server: &str = self.server.into();
        write!(f, "{server}: {}", self.failure)
    }
}

/// A server of the source that runs as a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcePrimary {
    /// It answers by SQL.
    Session,
    /// The REST API of this member says so.
    Member(String),
}

impl fmt::Display for SourcePrimary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("the source's Service"),
            Self::Member(member) => f.write_str(member),
        }
    }
}

/// A workload with fewer ready pods than it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadyPods {
    /// Its name.
    pub workload: String,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are wanted now.
    pub wanted: i32,
}

impl fmt::Display for UnreadyPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.workload, self.ready, self.wanted)
    }
}

/// A pooler that has not shown that its clients are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnservedPooler {
    /// Its pod.
    pub pod: String,
    /// The pools that wait, as `database/role`, where other pools of it reach the target; empty
    /// where none does.
    pub pools: Vec<String>,
    /// How long a client has waited at least, in seconds; None where none waits.
    pub waited_seconds: Option<u64>,
    /// Why a login through it failed, if one was tried.
    pub refusal: Option<Failure>,
}

impl UnservedPooler {
    fn text(&self) -> String {
        let pod = &self.pod;
        if !self.pools.is_empty() {
            let pools = self.pools.join(", ");
            return format!("pooler {pod} has no server connection yet for {pools}");
        }
        let waited = match self.waited_seconds {
            None => String::new(),
            Some(0) => ", and its clients wait".to_owned(),
            Some(seconds) => format!(", and its clients wait, for more than {seconds} s"),
        };
        let refusal = self.refusal.as_ref();
        let refusal = refusal.map_or_else(String::new, |failure| {
            format!(" (a login through it: {failure})")
        });
        format!(
            "pooler {pod} does not reach the target{waited}{refusal}: NetworkPolicy? TLS \
             (server_tls_sslmode)? pg_hba?"
        )
    }
}

fn joined(items: &[impl ToString], separator: &str) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(separator)
}

/// One of each kind.
#[cfg(test)]
pub fn examples() -> Vec<Wait> {
    let failure = || Failure::transient("connection refused");
    let servers = || {
        vec![ServerFailure {
            server: Server::Source,
            failure: failure(),
        }]
    };
    let names = || vec!["a".to_owned(), "b".to_owned()];
    vec![
        Wait::CheckNotPassed(Finding::ok("lag", "little", "much")),
        Wait::Unreachable(servers()),
        Wait::SourceWithoutLeader,
        Wait::CrashRestartEnabled,
        Wait::ApplicationJobsRunning { jobs: names() },
        Wait::NoCalmMoment {
            logins: names(),
            transactions: names(),
        },
        Wait::PoolersPausing { pods: names() },
        Wait::SourceUnreachable(servers()),
        Wait::TargetUnreachable(failure()),
        Wait::TargetBehindMarker {
            replayed: None,
            marker: Lsn(7),
        },
        Wait::TargetSwitchingOver {
            from: "a".into(),
            to: "b".into(),
        },
        Wait::InstancesBehind {
            instances: names(),
            position: Lsn(7),
        },
        Wait::SourceGone,
        Wait::SourceStillPrimary(SourcePrimary::Session),
        Wait::PatroniMembersUnreachable { members: names() },
        Wait::TargetPromotingOrRestarting(failure()),
        Wait::TargetPromoting,
        Wait::TargetPendingRestart,
        Wait::TargetRestartNotObserved,
        Wait::PodsNotTerminated { workloads: names() },
        Wait::PodsNotReady(vec![UnreadyPods {
            workload: "web".into(),
            ready: 0,
            wanted: 1,
        }]),
        Wait::ServiceNotRepointed(None),
        Wait::PoolersUnreachable { pods: names() },
        Wait::PoolersNotServed {
            poolers: vec![UnservedPooler {
                pod: "a".into(),
                pools: Vec::new(),
                waited_seconds: None,
                refusal: None,
            }],
            overdue: true,
        },
        Wait::ManifestUnread,
        Wait::ServicesWatched { seconds: 60 },
        Wait::RollbackPatroniUnreachable(None),
        Wait::RollbackLeaderLockNotHeld,
        Wait::RollbackBlockNotApplied,
        Wait::RollbackSourceNotWritable,
        Wait::RollbackLeaderUnreachable { leader: "a".into() },
        Wait::RollbackServiceNotBack(None),
        Wait::RollbackSourceStarting,
        Wait::RollbackPoolersUnreachable { pods: names() },
        Wait::EffectNotObserved { action: "Block" },
        Wait::Failed(failure()),
    ]
}
