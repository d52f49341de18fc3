//! What happens without the drivers: spontaneous transitions, and disturbances, each of which
//! happens at most once.

use crate::route::Route;

use super::world::{Wal, World};

const WRITES_MAX: usize = 2;
/// Patroni starts a stopped server again and again while it is not paused; this number of starts is
/// enough to find what that breaks.
const STARTS_MAX: u8 = 3;

/// A disturbance. Its discriminant is its bit in `World::happened`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    Write,
    StubbornWrite,
    BlockLifted,
    Operator,
    Failover,
    Switchover,
    Demotion,
    StreamBroken,
    Crash,
    HalfDone,
    LostAnswer,
    Deadline,
    Abort,
    Scaler,
    UnrelatedScaleUp,
    Resume,
    PoolerRestart,
    ServicesRestored,
    OtherInstance,
    LeaderLost,
    LaggingLeaderLost,
    PathClosed,
    ManifestWritten,
}

impl World {
    /// Whether the fault budget allows this disturbance and it has not happened yet.
    pub fn may(&self, disturbance: Disturbance) -> bool {
        self.fault_budget > 0 && !self.has_happened(disturbance)
    }

    /// Whether this disturbance has happened.
    pub fn has_happened(&self, disturbance: Disturbance) -> bool {
        self.happened & (1 << disturbance as u32) != 0
    }

    /// Marks the disturbance as happened and takes it from the fault budget.
    pub fn consume(&mut self, disturbance: Disturbance) {
        self.fault_budget -= 1;
        self.happened |= 1 << disturbance as u32;
    }

    /// The transitions that happen by themselves, sooner or later.
    pub fn spontaneous_transitions(&self) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add = |name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
            if possible {
                let mut world = self.clone();
                change(&mut world);
                next.push((name, world));
            }
        };
        let behind = self.replayed < self.wal.len();
        add(
            "the target replays a record",
            self.connected && !self.primary && self.follows && behind,
            &|w| w.replayed += 1,
        );
        add(
            "the target promotes",
            !self.follows && !self.primary,
            &|w| w.primary = true,
        );
        add(
            "the target is restarted",
            self.primary && !self.restarted,
            &|w| w.restarted = true,
        );
        let starts = self.postmaster_start < STARTS_MAX && !self.leader_lost;
        add(
            "patroni starts its server",
            !self.source_up && !self.paused && starts,
            &|w| w.start(),
        );
        add(
            "patroni takes the leader lock",
            self.serves() && !self.locked,
            &|w| w.locked = true,
        );
        add(
            "patroni elects its leader",
            self.source_up && self.standby && !self.paused,
            &|w| (w.standby, w.locked, w.timeline) = (false, true, 2),
        );
        add(
            "patroni elects the other member",
            self.leader_lost && !self.paused,
            &World::elect_other,
        );
        add(
            "kubernetes follows the Service",
            self.service_at_target != (self.repointed > 0),
            &|w| w.service_at_target = w.repointed > 0,
        );
        let open = self.service_at_target && self.primary && !self.path_closed;
        add(
            "the pooler logs in at the target",
            self.route == Route::Service && open && !self.pooler_paused && !self.pooler_served,
            &|w| w.pooler_served = true,
        );
        add(
            "a policy accepts the pooler at the target",
            self.path_closed,
            &|w| w.path_closed = false,
        );
        add(
            "kubernetes follows the number of pods",
            !self.followed,
            &World::follow,
        );
        add(
            "the stream comes back",
            !self.connected && self.source_up,
            &|w| w.connected = true,
        );
        next
    }

    /// The disturbances that may happen now.
    pub fn disturbances(&self) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add =
            |disturbance, name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
                if possible && self.may(disturbance) {
                    let mut world = self.clone();
                    world.consume(disturbance);
                    change(&mut world);
                    next.push((name, world));
                }
            };
        let room = self.wal.iter().filter(|r| **r == Wal::Write).count() <= WRITES_MAX;
        let open = room && self.serves();
        add(
            Disturbance::Write,
            "a client writes",
            open && !self.read_only,
            &|w| w.wal.push(Wal::Write),
        );
        add(
            Disturbance::StubbornWrite,
            "a client overrides read-only and writes",
            open && self.read_only,
            &|w| w.wal.push(Wal::Write),
        );
        // Once the server is stopped, lifting the pause starts it, and no order of steps protects
        // against that (docs/protocol.md#what-the-search-cannot-exclude).
        add(
            Disturbance::BlockLifted,
            "an administrator lifts the block",
            self.paused && self.source_up,
            &|w| {
                (w.paused, w.read_only) = (false, false);
            },
        );
        add(
            Disturbance::Operator,
            "the operator restarts the source",
            !self.source_up && !self.operator.set && !self.leader_lost,
            &|w| w.start(),
        );
        let unpaused = !self.paused && self.timeline == 1 && self.serves();
        add(
            Disturbance::Failover,
            "the source fails over",
            unpaused,
            &|w| {
                (w.timeline, w.connected) = (2, false);
                w.start();
            },
        );
        add(
            Disturbance::Switchover,
            "an administrator switches the source over",
            unpaused,
            &|w| {
                w.wal.push(Wal::Shutdown);
                w.timeline = 2;
                w.start();
            },
        );
        add(
            Disturbance::Demotion,
            "patroni cannot reach its dcs and demotes its leader",
            unpaused,
            &|w| {
                w.wal.push(Wal::Shutdown);
                w.start();
                w.standby = true;
            },
        );
        let held = self.paused && self.serves() && self.timeline == 1;
        add(
            Disturbance::LeaderLost,
            "the leader's node is lost",
            held,
            &|w| (w.source_up, w.leader_lost) = (false, true),
        );
        let written = self.wal.last() == Some(&Wal::Write);
        add(
            Disturbance::LaggingLeaderLost,
            "the leader's node is lost, and the standby lacks the last write",
            held && written && self.replayed == self.wal.len(),
            &|w| (w.source_up, w.leader_lost, w.standby_lags) = (false, true, true),
        );
        add(
            Disturbance::StreamBroken,
            "the stream to the target breaks",
            self.connected,
            &|w| w.connected = false,
        );
        add(Disturbance::Deadline, "the deadline passes", true, &|w| {
            w.clock += 1;
            w.locked |= w.serves();
        });
        add(
            Disturbance::Abort,
            "an abort is asked for",
            !self.aborted,
            &|w| w.aborted = true,
        );
        let config = self.route == Route::Config;
        add(
            Disturbance::Scaler,
            "the autoscaler starts the application",
            config && !self.scaled.set && !self.scaler.set,
            &World::scaled_up_by_others,
        );
        add(
            Disturbance::UnrelatedScaleUp,
            "an unrelated client starts the application",
            config && !self.scaled.set,
            &World::scaled_up_by_others,
        );
        add(
            Disturbance::Resume,
            "an administrator resumes the pooler",
            self.pooler_paused,
            &|w| w.pooler_paused = false,
        );
        add(
            Disturbance::PoolerRestart,
            "the pooler's pod is restarted",
            self.pooler_paused,
            &|w| w.pooler_paused = false,
        );
        add(
            Disturbance::OtherInstance,
            "an instance of the target that lacks the last records is promoted",
            !self.follows && !self.primary && self.replayed > 1,
            &|w| (w.replayed, w.primary) = (w.replayed - 2, true),
        );
        // No order of steps protects against a change of the Services between a snapshot of them
        // and the command to the poolers.
        let repointed = self.repointed > 0 && !self.has(|record| record.promoted.is_some());
        add(
            Disturbance::ServicesRestored,
            "an administrator restores the Services",
            repointed,
            &|w| w.repointed = 0,
        );
        add(
            Disturbance::PathClosed,
            "a policy refuses the pooler at the target",
            self.service_at_target && !self.pooler_served && !self.path_closed,
            &|w| w.path_closed = true,
        );
        // Before the cutover is finished, a driver rewrites it in any case.
        let finished = self.manifest_promoted && self.has(|record| record.finished.is_some());
        add(
            Disturbance::ManifestWritten,
            "prepare-zalando, begun before the promotion, writes its manifest",
            finished,
            &|w| w.manifest_promoted = false,
        );
        next
    }
}
