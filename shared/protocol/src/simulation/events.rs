//! What happens without the drivers: the course of things, and disturbances, each of which happens
//! once at most.

use crate::route::Route;

use super::world::{Wal, World};

const WRITES_MAX: usize = 2;
/// Patroni starts a stopped server again and again while nobody pauses it; so often is enough to
/// see what that breaks.
const STARTS_MAX: u8 = 3;

/// What disturbs. The number is its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    Write,
    StubbornWrite,
    Lift,
    Operator,
    Failover,
    Switchover,
    Demotion,
    Cut,
    Crash,
    HalfDone,
    LostAnswer,
    Deadline,
    Abort,
    Scaler,
    Stranger,
    Resume,
    PoolerRestart,
    TurnedBack,
}

impl World {
    /// Whether this may happen, as far as the number of disturbances goes.
    pub fn may(&self, disturbance: Disturbance) -> bool {
        self.fuel > 0 && self.happened & (1 << disturbance as u32) == 0
    }

    /// It has happened.
    pub fn spend(&mut self, disturbance: Disturbance) {
        self.fuel -= 1;
        self.happened |= 1 << disturbance as u32;
    }

    /// What happens by itself, sooner or later.
    pub fn course(&self) -> Vec<(&'static str, Self)> {
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
        let starts = self.postmaster_start < STARTS_MAX;
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
            "kubernetes follows the Service",
            self.led != (self.turned > 0),
            &|w| w.led = w.turned > 0,
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

    /// What disturbs.
    pub fn disturbances(&self) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add =
            |disturbance, name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
                if possible && self.may(disturbance) {
                    let mut world = self.clone();
                    world.spend(disturbance);
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
        // Once the server is stopped, lifting the pause starts it: no order of steps helps against
        // that hand (docs/protocol.md#what-the-search-cannot-exclude).
        add(
            Disturbance::Lift,
            "somebody lifts the block",
            self.paused && self.source_up,
            &|w| {
                (w.paused, w.read_only) = (false, false);
            },
        );
        add(
            Disturbance::Operator,
            "the operator restarts the source",
            !self.source_up && !self.operator.set,
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
            "somebody switches the source over",
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
        add(
            Disturbance::Cut,
            "the stream to the target is cut",
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
            Disturbance::Stranger,
            "somebody starts the application",
            config && !self.scaled.set,
            &World::scaled_up_by_others,
        );
        add(
            Disturbance::Resume,
            "somebody resumes the pooler",
            self.held_back,
            &|w| w.held_back = false,
        );
        add(
            Disturbance::PoolerRestart,
            "the pooler's pod is restarted",
            self.held_back,
            &|w| w.held_back = false,
        );
        // Between a look at the Service and the word to the poolers no order of steps helps against
        // that hand.
        let turned = self.turned > 0 && !self.has(|record| record.promoted.is_some());
        add(
            Disturbance::TurnedBack,
            "somebody turns the Services back",
            turned,
            &|w| w.turned = 0,
        );
        next
    }
}
