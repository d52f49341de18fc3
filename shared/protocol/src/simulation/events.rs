//! What happens without the drivers: spontaneous transitions, and disturbances, each of which
//! happens at most once.

use crate::route::Route;

use super::world::{Instance, Sessions, Silence, World};

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
    SilentLeader,
    SilentPatroni,
    SourceCrash,
    SlowFence,
    LateBlock,
    SilentConsole,
    TargetRestart,
    RecordDeleted,
    SourceReplaced,
    TargetReplaced,
    AddressReused,
    ClusterDeleted,
    PromotedByOthers,
    ReplicaModeEnded,
    InstanceBehind,
    TargetSwitchover,
    PoolerReplaced,
    ServicesMisled,
    JobStarts,
    Login,
}

/// Disturbances that one search combines with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "a walk combines all of them"))]
pub enum Group {
    /// What acts on the source, the target and the application, one at a time.
    Acts,
    /// What falls silent, crashes or is late.
    Silence,
    /// What is replaced, deleted or promoted by others.
    Replacement,
    /// Poolers, Services, jobs and logins.
    Application,
    /// All of them: too many for a search, but not for a walk.
    All,
}

impl Group {
    /// Those that are searched; each begins with the disturbance after the one before.
    #[cfg(test)]
    pub const SEARCHED: [Self; 4] = [
        Self::Acts,
        Self::Silence,
        Self::Replacement,
        Self::Application,
    ];

    /// One bit for each disturbance.
    pub const fn mask(self) -> u64 {
        let acts = Disturbance::SilentLeader.bit() - 1;
        let replacement = Disturbance::RecordDeleted.bit() - 1;
        let application = Disturbance::PoolerReplaced.bit() - 1;
        let always = Disturbance::Crash.bit() | Disturbance::StubbornWrite.bit();
        match self {
            Self::Acts => acts,
            Self::Silence => {
                (replacement & !acts)
                    | always
                    | Disturbance::BlockLifted.bit()
                    | Disturbance::LeaderLost.bit()
                    | Disturbance::Abort.bit()
            }
            Self::Replacement => (application & !replacement) | always | Disturbance::Abort.bit(),
            Self::Application => {
                !application
                    | always
                    | Disturbance::SilentConsole.bit()
                    | Disturbance::SilentPatroni.bit()
                    | Disturbance::Resume.bit()
                    | Disturbance::Deadline.bit()
                    | Disturbance::Abort.bit()
            }
            Self::All => u64::MAX,
        }
    }
}

impl Disturbance {
    pub const fn bit(self) -> u64 {
        1 << self as u64
    }
}

/// Adds a disturbance, with its name, where it is possible, and what it changes.
type Add<'a> = &'a mut dyn FnMut(Disturbance, &'static str, bool, &dyn Fn(&mut World));

impl World {
    /// Whether the fault budget allows this disturbance and it has not happened yet.
    pub fn may(&self, disturbance: Disturbance) -> bool {
        self.fault_budget > 0
            && self.allowed & disturbance.bit() != 0
            && (self.repeats || !self.has_happened(disturbance))
    }

    /// Whether this disturbance has happened.
    pub fn has_happened(&self, disturbance: Disturbance) -> bool {
        self.happened & disturbance.bit() != 0
    }

    /// Marks the disturbance as happened and takes it from the fault budget.
    pub fn consume(&mut self, disturbance: Disturbance) {
        self.fault_budget -= 1;
        self.happened |= disturbance.bit();
    }

    /// The transitions that happen by themselves, sooner or later.
    pub fn spontaneous_transitions(&self) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add = |name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
            if possible {
                let mut world = *self;
                change(&mut world);
                next.push((name, world));
            }
        };
        let behind = self.replayed < self.wal.len();
        add(
            "the target replays a record",
            self.connected && !self.primary && self.follows && behind && self.target_answers(),
            &|w| w.replayed += 1,
        );
        add(
            "the target promotes",
            !self.follows && !self.primary && self.target_answers(),
            &|w| w.primary = true,
        );
        add(
            "the target is restarted",
            self.primary && !self.restarted && self.target_answers(),
            &|w| w.restarted = true,
        );
        let starts = self.postmaster_start < STARTS_MAX && !self.leader_lost;
        add(
            "patroni starts its server",
            !self.source_up && !self.paused && starts,
            &World::restart,
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
        let open =
            self.service_at_target && self.primary && self.target_answers() && !self.path_closed;
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
        let stopping = self.source_up && self.sessions == Sessions::Stopping;
        add("the stop is complete", stopping, &World::stop);
        add(
            "the server is stopped immediately, without a checkpoint",
            stopping,
            &|w| (w.source_up, w.sessions) = (false, Sessions::Accepted),
        );
        add(
            "the source accepts sessions after its crash",
            self.source_up && self.sessions == Sessions::Recovering,
            &|w| w.sessions = Sessions::Accepted,
        );
        add(
            "patroni brings its setting to the server",
            self.serves() && !self.reloaded(),
            &World::reload,
        );
        add(
            "the member answers again",
            self.silence != Silence::None,
            &|w| w.silence = Silence::None,
        );
        add("the target answers again", self.target_down, &|w| {
            w.target_down = false;
        });
        add(
            "the instance of the target is in step",
            self.instance != Instance::InStep,
            &|w| w.instance = Instance::InStep,
        );
        add("the console answers again", self.console_silent, &|w| {
            w.console_silent = false;
        });
        add("the login ends", self.login, &|w| w.login = false);
        add(
            "the terminating pod of the pooler ends",
            self.old_pod.is_some(),
            &|w| w.old_pod = None,
        );
        add("the job ends", self.job, &|w| w.job = false);
        next
    }

    /// The disturbances that may happen now.
    pub fn disturbances(&self) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add =
            |disturbance, name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
                if possible && self.may(disturbance) {
                    let mut world = *self;
                    world.consume(disturbance);
                    change(&mut world);
                    next.push((name, world));
                }
            };
        let room = self.wal.writes_from(0) <= WRITES_MAX;
        let open = room && self.serves() && self.sessions != Sessions::Recovering;
        add(
            Disturbance::Write,
            "a client writes",
            open && !self.applied,
            &|w| w.wal.write(),
        );
        add(
            Disturbance::StubbornWrite,
            "a client overrides read-only and writes",
            open && self.applied,
            &|w| w.wal.write(),
        );
        // Once the server is stopped, lifting the pause starts it, and no order of steps protects
        // against that (docs/protocol.md#what-the-search-cannot-exclude).
        add(
            Disturbance::BlockLifted,
            "an administrator lifts the block",
            self.paused && self.source_up && self.silence != Silence::Patroni,
            &|w| {
                w.set_block(false, false);
                w.stop_on_crash(false);
            },
        );
        add(
            Disturbance::Operator,
            "the operator restarts the source",
            !self.source_up && !self.operator.set && !self.leader_lost,
            &World::restart,
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
                w.wal.checkpoint();
                w.timeline = 2;
                w.start();
            },
        );
        add(
            Disturbance::Demotion,
            "patroni cannot reach its dcs and demotes its leader",
            unpaused,
            &|w| {
                w.wal.checkpoint();
                w.start();
                w.standby = true;
            },
        );
        let held = self.paused && self.serves() && self.timeline == 1;
        add(
            Disturbance::LeaderLost,
            "the leader's node is lost",
            held,
            &|w| {
                w.lose_leader();
            },
        );
        let written = self.wal.ends_with_a_write();
        add(
            Disturbance::LaggingLeaderLost,
            "the leader's node is lost, and the standby lacks the last write",
            held && written && self.replayed == self.wal.len(),
            &|w| {
                w.lose_leader();
                w.standby_lags = true;
            },
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
        self.add_silence(&mut add);
        self.add_replacement(&mut add);
        self.add_at_the_application(&mut add);
        next
    }

    /// What does not answer, or answers late.
    fn add_silence(&self, add: Add) {
        let heard = self.silence == Silence::None && !self.leader_lost;
        add(
            Disturbance::SilentLeader,
            "the leader's pod does not answer the drivers, and its server runs",
            heard && self.serves(),
            &|w| w.silence = Silence::Leader,
        );
        add(
            Disturbance::SilentPatroni,
            "no patroni answers the drivers",
            heard,
            &|w| w.silence = Silence::Patroni,
        );
        let accepts = self.serves() && self.sessions == Sessions::Accepted;
        add(
            Disturbance::SourceCrash,
            "the source crashes while patroni is paused",
            accepts && self.paused,
            &World::crash,
        );
        add(
            Disturbance::SilentConsole,
            "the console of the pooler does not answer",
            self.route == Route::Service && !self.console_silent,
            &|w| w.console_silent = true,
        );
        add(
            Disturbance::TargetRestart,
            "the target's server restarts",
            self.target_answers(),
            &|w| (w.target_down, w.target_young) = (true, w.primary),
        );
    }

    /// What is replaced, deleted, or changed by others.
    fn add_replacement(&self, add: Add) {
        let record = self.recorded();
        let before = !record.past_point_of_no_return();
        add(
            Disturbance::RecordDeleted,
            "the record is deleted",
            record.under_way(),
            &World::lose_record,
        );
        add(
            Disturbance::SourceReplaced,
            "another database answers as the source",
            record.under_way() && self.source_up,
            &|_| (),
        );
        add(
            Disturbance::TargetReplaced,
            "another database answers as the target",
            record.under_way(),
            &|_| (),
        );
        add(
            Disturbance::AddressReused,
            "the target answers at the address of a member of the source",
            self.primary && !self.source_up && !before,
            &|_| (),
        );
        add(
            Disturbance::ClusterDeleted,
            "the target's Cluster is deleted",
            before && record.under_way(),
            &|_| (),
        );
        let follows = self.follows && !self.primary && before && self.target_answers();
        add(
            Disturbance::PromotedByOthers,
            "the target is promoted by another actor",
            follows,
            &|w| w.primary = true,
        );
        add(
            Disturbance::ReplicaModeEnded,
            "another actor ends the target's replica mode",
            follows,
            &|w| w.follows = false,
        );
        let in_step = follows && self.instance == Instance::InStep;
        add(
            Disturbance::InstanceBehind,
            "another instance of the target falls behind",
            in_step,
            &|w| w.instance = Instance::Behind,
        );
        add(
            Disturbance::TargetSwitchover,
            "another instance of the target becomes its designated primary",
            in_step,
            &|w| w.instance = Instance::Next,
        );
    }

    /// What happens to the application, its poolers and the Services.
    fn add_at_the_application(&self, add: Add) {
        let service = self.route == Route::Service;
        let record = self.recorded();
        let blocked = record.blocked.is_some() && record.rollback_started.is_none();
        add(
            Disturbance::PoolerReplaced,
            "the pooler's pod is replaced and still has clients while it terminates",
            service && self.old_pod.is_none(),
            &|w| (w.old_pod, w.pooler_paused) = (Some(w.pooler_paused), false),
        );
        add(
            Disturbance::ServicesMisled,
            "an administrator repoints the Services before the promotion",
            service && blocked && !record.past_point_of_no_return() && self.repointed == 0,
            &|w| w.repointed = 2,
        );
        add(
            Disturbance::JobStarts,
            "a job of the application starts",
            !service && !self.scaler.set && !self.routed && record.finished.is_none(),
            &|w| w.job = true,
        );
        add(
            Disturbance::Login,
            "the pooler logs in at the source",
            service && !self.pooler_paused && record.blocked.is_none(),
            &|w| w.login = true,
        );
    }

    /// The server has the settings of Patroni's configuration.
    fn reloaded(&self) -> bool {
        self.applied == self.read_only && self.stops_applied == self.stops_on_crash
    }

    pub fn reload(&mut self) {
        (self.applied, self.stops_applied) = (self.read_only, self.stops_on_crash);
    }

    /// A session of the source crashes. The server recovers and keeps its postmaster, so that no
    /// snapshot tells its checkpoint from that of a clean stop; or it ends without one.
    fn crash(&mut self) {
        if self.stops_applied {
            self.source_up = false;
        } else {
            self.recover();
            self.reload();
        }
    }

    /// The node of the source's leader is lost.
    fn lose_leader(&mut self) {
        (self.source_up, self.leader_lost) = (false, true);
        (self.sessions, self.silence) = (Sessions::Accepted, Silence::None);
    }
}
