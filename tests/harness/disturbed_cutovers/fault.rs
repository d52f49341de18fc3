//! The faults, and the phases in which each may be injected. The injection is in
//! [`inject`](super::inject).

use std::{fmt, time::Duration};

use fastrand::Rng;

use super::failpoints::Phase;
use crate::{route::Route, source::Dcs};

/// Long enough for several observations, and shorter than Patroni's retry_timeout.
const API_SECONDS: u64 = 5;
/// Longer than Patroni's retry_timeout and the Lease's duration.
pub(super) const API_SECONDS_LONG: u64 = 30;
/// Shorter than Patroni's ttl, longer than one observation waits.
const HANGS_MS: std::ops::Range<u64> = 500..4_000;
/// Longer than an observation waits for a silent member, and than FENCE_MAX_SECONDS.
const MEMBER_HANGS: Duration = Duration::from_secs(20);
/// The DCS of the environments with logical slots.
pub(super) const LOGICAL: Dcs = Dcs::Endpoints;
/// Delay after the failpoint: before, during, or after the next effect.
const SOON_MS: std::ops::Range<u64> = 1..400;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL at the failpoint.
    Kill,
    /// SIGKILL this long after the failpoint, during whatever follows.
    KillSoon(Duration),
    /// SIGTERM at the failpoint.
    Terminate,
    /// SIGKILL, then rollback runs as a Job.
    RollBack,
    /// The pod hangs while rollback runs, then it resumes.
    RollBackMeanwhile,
    /// The pod hangs until a second cutover has finished, then it resumes.
    Hang,
    /// The Lease is deleted and a second cutover advances to a later failpoint (a position among
    /// those); then the first resumes, then the second.
    Overtake(f64),
    /// A second cutover is started and reports that another one is running.
    Second,
    /// `kubectl annotate cronjob/replica-migration-cutover replica-migration/abort=true`.
    Abort,
    /// The API server is down for this many seconds.
    ApiServerAway(u64),
    /// The API server accepts connections and does not answer.
    ApiServerHangs(Duration),
    /// The programs' sessions at the source are terminated.
    SourceSessions,
    /// The programs' sessions at the target are terminated.
    TargetSessions,
    /// The target's WAL receiver is terminated.
    Receiver,
    /// The leader's Patroni accepts connections and does not answer.
    PatroniHangs(Duration),
    /// The replica's Patroni accepts connections and does not answer.
    MemberHangs(Duration),
    /// A client of a logical slot connects and hangs; the cutover is told to end its session
    /// (ACCEPT). Needs an environment with logical slots.
    LogicalReader,
    /// The leader's whole node hangs.
    LeaderHangs(Duration),
    /// The target's whole node hangs.
    TargetHangs(Duration),
    /// SIGKILL of the leader's server.
    LeaderCrashes,
    /// The leader's node is lost, with Patroni and server, until the pod has ended. Never chosen at
    /// random: a failover loses what the standbys had not received, whatever caused it, so this
    /// fault is used only where no client writes any more.
    LeaderLost,
    /// The source's leadership is moved by a switchover.
    Switchover,
    /// Replay at the target is paused, so that the cutover must roll back at CUTOVER_MAX_SECONDS.
    ReplayPaused,
    /// Changes of Services take effect late, as long as the pod runs.
    ServicesSlow,
    /// The same, and a rollback is requested as with `Abort`.
    AbortServicesSlow,
    /// A pooler pod of the source is replaced.
    PoolerReplaced,
    /// The source's poolers are resumed.
    PoolersResumed,
    /// Patroni's pause and read-only mode are lifted.
    BlockLifted,
    /// Only read-only mode is lifted.
    ReadOnlyLifted,
    /// The source's stopped server is started.
    SourceStarted,
}

impl Fault {
    /// The number of variants.
    pub const KINDS: usize = 29;

    /// A random fault; faults of the cutover itself are more frequent.
    pub fn any(chance: &mut Rng, route: Route, dcs: Dcs) -> Self {
        let hangs = Duration::from_millis(chance.u64(HANGS_MS));
        let all = [
            (6, Self::Kill),
            (
                5,
                Self::KillSoon(Duration::from_millis(chance.u64(SOON_MS))),
            ),
            (4, Self::Terminate),
            (3, Self::RollBack),
            (1, Self::RollBackMeanwhile),
            (1, Self::Hang),
            (5, Self::Overtake(chance.f64())),
            (1, Self::Second),
            (3, Self::Abort),
            (1, Self::ApiServerAway(API_SECONDS)),
            (1, Self::ApiServerAway(API_SECONDS_LONG)),
            (2, Self::ApiServerHangs(hangs)),
            (2, Self::SourceSessions),
            (2, Self::TargetSessions),
            (2, Self::Receiver),
            (2, Self::PatroniHangs(hangs)),
            (3, Self::MemberHangs(MEMBER_HANGS)),
            (2, Self::LeaderHangs(hangs)),
            (2, Self::TargetHangs(hangs)),
            (2, Self::LeaderCrashes),
            (2, Self::Switchover),
            (2, Self::ReplayPaused),
            (3, Self::ServicesSlow),
            (3, Self::AbortServicesSlow),
            (if dcs == LOGICAL { 4 } else { 0 }, Self::LogicalReader),
            (
                if route == Route::Service { 2 } else { 0 },
                Self::PoolerReplaced,
            ),
            (
                if route == Route::Service { 2 } else { 0 },
                Self::PoolersResumed,
            ),
            (2, Self::BlockLifted),
            (2, Self::ReadOnlyLifted),
            (2, Self::SourceStarted),
        ];
        let weights: u32 = all.iter().map(|(weight, _)| *weight).sum();
        let mut left = chance.u32(..weights);
        for (weight, fault) in all {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        Self::Kill
    }

    /// The variant's name.
    pub fn name(self) -> String {
        let shown = format!("{self:?}");
        let name = shown.split('(').next();
        name.unwrap_or_default().to_owned()
    }

    /// The first and the last phase in which the fault may be injected. Faults that no order of
    /// steps can handle are excluded (docs/protocol.md).
    pub fn phases(self) -> (Phase, Phase) {
        match self {
            // Lifting the pause while the server is stopped starts it again, or promotes another
            // member.
            Self::BlockLifted => (Phase::BeforeBlock, Phase::Blocked),
            Self::LeaderCrashes | Self::Switchover | Self::ReplayPaused => {
                (Phase::BeforeBlock, Phase::Blocked)
            }
            Self::LeaderLost => (Phase::Blocked, Phase::Blocked),
            Self::SourceStarted => (Phase::Fenced, Phase::PastPointOfNoReturn),
            // Readers connect before the cutover ends their sessions.
            Self::LogicalReader => (Phase::BeforeBlock, Phase::BeforeBlock),
            // A second cutover is only tested at the very start.
            Self::Second => (Phase::BeforeBlock, Phase::BeforeBlock),
            _ => (Phase::BeforeBlock, Phase::PastPointOfNoReturn),
        }
    }

    /// CUTOVER_MAX_SECONDS for faults that end only by this limit, with
    /// [`Limits::Short`](super::Limits::Short).
    pub fn seconds_max(self) -> Option<&'static str> {
        matches!(
            self,
            Self::ReplayPaused | Self::LeaderCrashes | Self::LeaderLost
        )
        .then_some("5")
    }

    /// Why a rollback may take longer than
    /// [`ROLLBACK_MAX`](super::rollback_time::ROLLBACK_MAX) after this fault; None if it may not.
    pub fn slows_the_rollback(self) -> Option<&'static str> {
        match self {
            Self::ApiServerAway(_) => Some("API server away"),
            Self::LeaderLost => Some("leader's node lost"),
            _ => None,
        }
    }

    /// How the reasons begin for which a cutover may roll back after the block, if this fault alone
    /// was injected; None if that depends on the moment.
    pub fn rollback_reasons(self) -> Option<&'static [&'static str]> {
        match self {
            Self::MemberHangs(_) => Some(&[
                "the patroni of ",
                "the clean stop of the source was not proved ",
            ]),
            // Its session is ended before the stop.
            Self::LogicalReader => Some(&[]),
            _ => None,
        }
    }

    /// True if another member may lead afterwards, on another timeline.
    pub fn moves_the_leader(self) -> bool {
        match self {
            Self::LeaderCrashes | Self::LeaderLost | Self::Switchover | Self::BlockLifted => true,
            // Without its DCS Patroni demotes the leader after retry_timeout.
            Self::ApiServerAway(seconds) => seconds > API_SECONDS,
            _ => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => write!(f, "SIGKILL"),
            Self::KillSoon(after) => write!(f, "SIGKILL {} ms later", after.as_millis()),
            Self::Terminate => write!(f, "SIGTERM"),
            Self::RollBack => write!(f, "SIGKILL and rollback"),
            Self::RollBackMeanwhile => write!(f, "hangs while rollback runs"),
            Self::Hang => write!(f, "hangs while another cutover runs"),
            Self::Overtake(position) => {
                write!(
                    f,
                    "overtaken by another cutover up to position {position:.3}"
                )
            }
            Self::Second => write!(f, "a second cutover"),
            Self::Abort => write!(f, "abort requested"),
            Self::ApiServerAway(seconds) => write!(f, "no API server for {seconds} s"),
            Self::ApiServerHangs(time) => write!(f, "API server hangs {} ms", time.as_millis()),
            Self::SourceSessions => write!(f, "sessions at the source terminated"),
            Self::TargetSessions => write!(f, "sessions at the target terminated"),
            Self::Receiver => write!(f, "WAL receiver terminated"),
            Self::PatroniHangs(time) => write!(f, "Patroni hangs {} ms", time.as_millis()),
            Self::MemberHangs(time) => {
                write!(f, "a replica's Patroni hangs {} ms", time.as_millis())
            }
            Self::LogicalReader => write!(f, "logical reader hangs"),
            Self::LeaderHangs(time) => write!(f, "leader hangs {} ms", time.as_millis()),
            Self::TargetHangs(time) => write!(f, "target hangs {} ms", time.as_millis()),
            Self::LeaderCrashes => write!(f, "leader crashes"),
            Self::LeaderLost => write!(f, "leader lost"),
            Self::Switchover => write!(f, "switchover"),
            Self::ReplayPaused => write!(f, "replay paused"),
            Self::ServicesSlow => write!(f, "slow Services"),
            Self::AbortServicesSlow => write!(f, "slow Services, abort requested"),
            Self::PoolerReplaced => write!(f, "pooler replaced"),
            Self::PoolersResumed => write!(f, "poolers resumed"),
            Self::BlockLifted => write!(f, "block lifted"),
            Self::ReadOnlyLifted => write!(f, "read-only lifted"),
            Self::SourceStarted => write!(f, "source started"),
        }
    }
}
