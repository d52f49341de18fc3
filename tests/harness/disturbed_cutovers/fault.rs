//! What disturbs a cut, and at which moments it may: nothing here is done, see
//! [`inject`](super::inject).

use std::{fmt, time::Duration};

use fastrand::Rng;

use super::failpoints::Phase;
use crate::route::Route;

/// Long enough for several looks, and shorter than Patroni's own patience with its DCS.
const API_SECONDS: u64 = 5;
/// Longer than that, and than the Lease lasts.
pub(super) const API_SECONDS_LONG: u64 = 30;
/// A server that hangs for less than Patroni's ttl, and longer than a look waits for it.
const HANGS_MS: std::ops::Range<u64> = 500..4_000;
/// After the failpoint: before, in, or after the effect that follows.
const SOON_MS: std::ops::Range<u64> = 1..400;

/// One way to disturb.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL at the moment.
    Kill,
    /// SIGKILL so long after the moment, in the middle of whatever comes then.
    KillSoon(Duration),
    /// SIGTERM at the moment.
    Terminate,
    /// SIGKILL, and then rollback runs as a Job.
    RollBack,
    /// The pod hangs; rollback runs meanwhile, then the pod wakes up.
    RollBackMeanwhile,
    /// The pod hangs until a second one has done everything, then it wakes up.
    Hang,
    /// A second one comes to a later moment (a share of those), because the Lease was deleted; then
    /// the first goes on, then the second.
    Overtake(f64),
    /// A second one is started from the start on, and is told that it is the second.
    Second,
    /// `kubectl annotate cronjob/replica-migration-cutover replica-migration/abort=true`.
    Abort,
    /// No API server for so many seconds.
    ApiServerAway(u64),
    /// The API server takes connections and says nothing.
    ApiServerHangs(Duration),
    /// Our sessions at the source are ended.
    SourceSessions,
    /// Our sessions at the target are ended.
    TargetSessions,
    /// The target's WAL receiver is ended.
    Receiver,
    /// Patroni of the leader takes connections and says nothing.
    PatroniHangs(Duration),
    /// The leader's whole node hangs.
    LeaderHangs(Duration),
    /// The target's whole node hangs.
    TargetHangs(Duration),
    /// SIGKILL of the leader's server.
    LeaderCrashes,
    /// The leader's node is lost, with Patroni and server, until the pod has ended. Not among those
    /// by chance: a failover costs what the standbys had not received, whoever begins it, so it is
    /// done where nobody writes any more.
    LeaderLost,
    /// Somebody moves the source's leadership.
    Switchover,
    /// Replay at the target is paused, so that it cannot catch up: it must go back at
    /// CUTOVER_MAX_SECONDS.
    ReplayPaused,
    /// The pod of an old pooler is replaced.
    PoolerReplaced,
    /// Somebody resumes the old poolers.
    PoolersResumed,
    /// Somebody lifts Patroni's pause and read-only.
    BlockLifted,
    /// Somebody lifts read-only alone.
    ReadOnlyLifted,
    /// Somebody starts the source's stopped server.
    SourceStarted,
}

impl Fault {
    /// So many there are.
    pub const KINDS: usize = 25;

    /// One of them; those that are about the cutover itself come more often.
    pub fn any(chance: &mut Rng, route: Route) -> Self {
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
            (2, Self::LeaderHangs(hangs)),
            (2, Self::TargetHangs(hangs)),
            (2, Self::LeaderCrashes),
            (2, Self::Switchover),
            (2, Self::ReplayPaused),
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

    /// The first and the last phase in which it may happen: what no order of steps helps against is
    /// left out (design.md §4).
    pub fn phases(self) -> (Phase, Phase) {
        match self {
            // A pause that is lifted when the server is stopped starts it again, or promotes
            // another member.
            Self::BlockLifted => (Phase::BeforeBlock, Phase::Blocked),
            Self::LeaderCrashes | Self::Switchover | Self::ReplayPaused => {
                (Phase::BeforeBlock, Phase::Blocked)
            }
            Self::LeaderLost => (Phase::Blocked, Phase::Blocked),
            Self::SourceStarted => (Phase::Fenced, Phase::PastReturn),
            // There is only one at the very start.
            Self::Second => (Phase::BeforeBlock, Phase::BeforeBlock),
            _ => (Phase::BeforeBlock, Phase::PastReturn),
        }
    }

    /// CUTOVER_MAX_SECONDS, where a cut can end in nothing else.
    pub fn seconds_max(self) -> Option<&'static str> {
        matches!(
            self,
            Self::ReplayPaused | Self::LeaderCrashes | Self::LeaderLost
        )
        .then_some("5")
    }

    /// After it another member may lead, on another timeline.
    pub fn moves_the_leader(self) -> bool {
        match self {
            Self::LeaderCrashes | Self::LeaderLost | Self::Switchover | Self::BlockLifted => true,
            // Without its DCS Patroni gives the leadership up after retry_timeout.
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
            Self::RollBackMeanwhile => write!(f, "hangs, rollback meanwhile"),
            Self::Hang => write!(f, "hangs, another one meanwhile"),
            Self::Overtake(position) => {
                write!(f, "overtaken by another one as far as {position:.3}")
            }
            Self::Second => write!(f, "a second one"),
            Self::Abort => write!(f, "abort asked"),
            Self::ApiServerAway(seconds) => write!(f, "no API server for {seconds} s"),
            Self::ApiServerHangs(time) => write!(f, "API server hangs {} ms", time.as_millis()),
            Self::SourceSessions => write!(f, "sessions at the source ended"),
            Self::TargetSessions => write!(f, "sessions at the target ended"),
            Self::Receiver => write!(f, "WAL receiver ended"),
            Self::PatroniHangs(time) => write!(f, "Patroni hangs {} ms", time.as_millis()),
            Self::LeaderHangs(time) => write!(f, "leader hangs {} ms", time.as_millis()),
            Self::TargetHangs(time) => write!(f, "target hangs {} ms", time.as_millis()),
            Self::LeaderCrashes => write!(f, "leader crashes"),
            Self::LeaderLost => write!(f, "leader lost"),
            Self::Switchover => write!(f, "switchover"),
            Self::ReplayPaused => write!(f, "replay paused"),
            Self::PoolerReplaced => write!(f, "pooler replaced"),
            Self::PoolersResumed => write!(f, "poolers resumed"),
            Self::BlockLifted => write!(f, "block lifted"),
            Self::ReadOnlyLifted => write!(f, "read-only lifted"),
            Self::SourceStarted => write!(f, "source started"),
        }
    }
}
