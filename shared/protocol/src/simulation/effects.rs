//! What an action does in the small world, and what must hold after every step.

use crate::{route::Route, wal::Timeline};

use super::{
    events::Disturbance,
    invariants::{Broken, Invariant},
    world::{Instance, Sessions, Silence, Versioned, World, at, start_of},
};
use crate::{
    controllers::suspension::Suspension,
    decision::{Action, Decision},
    record::{Fact, Marker, Promoted, Readers, Record, Start},
};

/// The versions that a driver's writes carry: those of its snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versions {
    pub apps: u8,
    pub operator: u8,
    pub scaler: u8,
}

impl Versions {
    /// The current versions.
    pub fn of(world: &World) -> Self {
        Self {
            apps: world.scaled.version,
            operator: world.operator.version,
            scaler: world.scaler.version,
        }
    }
}

impl World {
    /// Performs an action; returns the fact that its result records.
    pub fn perform(
        &mut self,
        action: &Action,
        start: &Start,
        observed: Option<Versions>,
    ) -> Option<Fact> {
        self.recorded_first(action);
        match action {
            Action::SuspendController(key) | Action::ResumeController(key) => self.set_field(
                key,
                start,
                matches!(action, Action::SuspendController(_)),
                observed,
            ),
            Action::DisableCrashRestart => self.stop_on_crash(true),
            Action::Checkpoint => return Some(Fact::Checkpointed(at(0))),
            Action::PausePoolers => self.pause_poolers(true),
            Action::ReapplyBlock => self.block(),
            Action::BlockWrites => {
                self.block();
                if self.route == Route::Config {
                    self.scale(false, observed);
                }
            }
            Action::EndSessions if self.source_answers_as_primary() => {
                return Some(Fact::Marker(Marker {
                    at: at(0),
                    lsn: start_of(self.wal.len()),
                    sessions_ended: Vec::new(),
                }));
            }
            Action::Fence(run)
                if self.source_up
                    && self.source().answer().is_some()
                    && run.timeline == Timeline(self.timeline)
                    && run.postmaster_start.0 == i64::from(self.postmaster_start) =>
            {
                self.stop();
            }
            Action::EndSessions | Action::Fence(_) => {}
            Action::Restartpoint if self.target_answers() => {
                self.control = self.wal.checkpoint_before(self.replayed).or(self.control);
            }
            Action::Restartpoint => {}
            Action::Promote => self.follows = false,
            Action::VerifyWrite if self.primary && self.target_answers() => {
                self.target_wrote = true;
                return Some(Fact::Promoted(Promoted {
                    at: at(0),
                    timeline: Timeline(self.timeline + 1),
                }));
            }
            Action::VerifyWrite => {}
            Action::RepointConfig => self.routed = true,
            Action::RestoreConfig => self.routed = false,
            Action::ScaleDown => self.scale(false, observed),
            Action::ScaleUp => self.scale(true, observed),
            Action::RepointServices => self.repointed = 2,
            Action::RestoreServices => self.repointed = 0,
            Action::ResumePoolers => {
                self.resume_traffic(self.service_at_target);
                self.pause_poolers(false);
            }
            Action::RewriteManifest => self.manifest_promoted = true,
            Action::FindReaders => {
                return Some(Fact::Readers(Readers {
                    at: at(0),
                    ended: Vec::new(),
                    left: Vec::new(),
                }));
            }
            Action::WriteReceipt => return Some(Fact::Finished(at(0))),
            Action::RestartSource => {
                self.reopened();
                let heard = self.silence == Silence::None && !self.leader_lost;
                if self.paused && !self.source_up && heard {
                    self.restart();
                }
            }
            Action::UnblockWrites => {
                self.reopened();
                self.set_block(start.paused == Some(true), start.read_only.is_some());
                self.stop_on_crash(start.restart_after_crash.is_some());
            }
        }
        None
    }

    /// S5: what must be on record before an effect, so that a successor knows what to undo.
    fn recorded_first(&mut self, action: &Action) {
        if self.has_happened(Disturbance::RecordDeleted) {
            return;
        }
        let record = self.recorded();
        let recorded = match action {
            Action::PausePoolers | Action::BlockWrites | Action::EndSessions => {
                record.blocked.is_some()
            }
            Action::Fence(_) => record.fenced.is_some(),
            Action::Promote
            | Action::RepointServices
            | Action::VerifyWrite
            | Action::RewriteManifest => record.past_point_of_no_return(),
            Action::RepointConfig | Action::ScaleDown => record.promoted.is_some(),
            Action::RestartSource
            | Action::UnblockWrites
            | Action::RestoreConfig
            | Action::RestoreServices => record.rollback_started.is_some(),
            _ => record.started.is_some(),
        };
        if !recorded {
            self.violation
                .get_or_insert((Invariant::S5, "an effect came before its record"));
        }
    }

    /// S4: after the point of no return no driver reopens the source.
    fn reopened(&mut self) {
        if self.recorded().past_point_of_no_return() {
            self.violation.get_or_insert((
                Invariant::S4,
                "the source is reopened after the point of no return",
            ));
        }
    }

    /// S9: the pause is lifted only when the running primary holds the leader lock, or after the
    /// time that Patroni needs for it. No order of steps protects against a lock that is lost
    /// between a snapshot and the effect, so only drivers with a current snapshot are checked.
    ///
    /// S2: it is not lifted for an election that loses acknowledged writes; the same holds for a
    /// leader that is lost between a snapshot and the effect.
    pub fn led_by_its_leader(&mut self, action: &Action) {
        if !self.paused {
            return;
        }
        // Where neither the record nor the target says what was written, it is Patroni's usual
        // election.
        let lacking = start_of(self.wal.len() - 1);
        let recorded = |record: &Record| {
            let marker = record.marker.as_ref().map(|marker| marker.lsn);
            marker.max(record.fenced.as_ref().map(|fenced| fenced.lsn)) > Some(lacking)
        };
        let known = self.target_answers() || self.has(recorded);
        let lossy = self.leader_lost && self.standby_lags && known;
        if *action == Action::UnblockWrites && lossy {
            self.violation.get_or_insert((
                Invariant::S2,
                "the pause is lifted for an election that loses acknowledged writes",
            ));
        }
        let just_now = self.rolls_back_since() == Some(true);
        if *action == Action::UnblockWrites && just_now && !self.locked && !self.standby {
            self.violation.get_or_insert((
                Invariant::S9,
                "the pause is lifted while no member holds the leader lock",
            ));
        }
        if *action == Action::UnblockWrites && just_now && self.sessions == Sessions::Recovering {
            self.violation.get_or_insert((
                Invariant::S9,
                "the pause is lifted while the server is starting",
            ));
        }
    }

    /// Whether a rollback began just now; None where none has begun.
    fn rolls_back_since(&self) -> Option<bool> {
        let now = at(i64::from(self.clock) * 1_000);
        let began = self
            .recorded()
            .rollback_started
            .as_ref()
            .map(|back| back.at)?;
        Some(began == now)
    }

    /// What must hold for a decision on a snapshot that shows the world as it is. No order of steps
    /// protects against a change between the snapshot and the effect.
    pub fn judge(&mut self, decision: &Decision) {
        let broken = self.unsound(decision);
        self.violation = self.violation.or(broken);
    }

    fn unsound(&self, decision: &Decision) -> Option<(Invariant, &'static str)> {
        let (fact, action) = match decision {
            Decision::Record(fact) => (Some(fact), None),
            Decision::Do(action) => (None, Some(action)),
            _ => return None,
        };
        if matches!(fact, Some(Fact::Started(_))) && self.marked_only() {
            let how = "a cutover begins although marks of a lost record stand";
            return Some((Invariant::S11, how));
        }
        let replaced = self.has_happened(Disturbance::SourceReplaced)
            && self.source().answer().is_some()
            || self.has_happened(Disturbance::TargetReplaced) && self.target_answers();
        let known = !self.has_happened(Disturbance::RecordDeleted);
        if replaced && known && self.has(Record::under_way) {
            return Some((Invariant::S11, "another database system is acted on"));
        }
        let reused = self.has_happened(Disturbance::AddressReused) && !self.source_up;
        if reused && matches!(action, Some(Action::Fence(_))) {
            return Some((Invariant::S11, "the target is stopped as the source"));
        }
        let back = self.rolls_back_since();
        let misled = matches!(action, Some(Action::ResumePoolers))
            && back.is_some()
            && self.service_at_target;
        let answers = self.primary && self.target_answers();
        if misled && (answers || back == Some(true)) {
            let how = "the rollback resumes client traffic to the target";
            return Some((Invariant::S7, how));
        }
        match fact? {
            Fact::Promotion(_) if self.serves() => Some((
                Invariant::S1,
                "the promotion is recorded while the source runs as a primary",
            )),
            Fact::Promotion(_) if self.instance != Instance::InStep => Some((
                Invariant::S2,
                "the promotion is recorded while an instance that lacks records may be promoted",
            )),
            Fact::Blocked(_) if self.login && self.clock == 0 => Some((
                Invariant::S12,
                "the pause interrupts a login that would have ended soon",
            )),
            Fact::Serving(_) if self.route == Route::Config && !(self.pods && self.followed) => {
                Some((
                    Invariant::S10,
                    "the downtime ends before the application's pods are ready",
                ))
            }
            _ => None,
        }
    }

    /// The source's server answers by SQL, as a primary.
    fn source_answers_as_primary(&self) -> bool {
        self.serves() && self.source().answer().is_some_and(|source| source.primary)
    }

    /// Patroni's pause and the settings of a block.
    fn block(&mut self) {
        self.set_block(true, true);
        self.stop_on_crash(true);
    }

    /// Sets Patroni's setting for a server that crashes, and the server's own with it.
    pub fn stop_on_crash(&mut self, stops: bool) {
        if self.silence != Silence::Patroni {
            (self.stops_on_crash, self.stops_applied) = (stops, stops);
        }
    }

    /// Sets Patroni's pause and read-only setting, and the server's own with them.
    pub fn set_block(&mut self, paused: bool, read_only: bool) {
        if self.silence == Silence::Patroni {
            return;
        }
        (self.paused, self.read_only, self.applied) = (paused, read_only, read_only);
    }

    /// PAUSE or RESUME at every console that answers.
    fn pause_poolers(&mut self, paused: bool) {
        if !self.console_silent {
            self.pooler_paused = paused;
        }
        self.old_pod = self.old_pod.map(|_| paused);
    }

    /// The server ends cleanly.
    pub fn stop(&mut self) {
        if !self.standby {
            self.wal.checkpoint();
        }
        (self.source_up, self.sessions) = (false, Sessions::Accepted);
    }

    /// S7: client traffic is resumed to the target only when its restart is over. S2: it has every
    /// acknowledged write then.
    fn resume_traffic(&mut self, to_target: bool) {
        let back = self.rolls_back_since();
        if to_target && back.is_none() && self.missing_writes() > 0 {
            self.violation.get_or_insert((
                Invariant::S2,
                "client traffic is resumed to a target that lacks acknowledged writes",
            ));
        }
        // The rollback waits for the Service for a limited time, and no order of steps protects
        // against a change of the Services between a snapshot of them and the command.
        let waited = self.has_happened(Disturbance::ServicesMisled) || back == Some(false);
        if to_target && !waited && !(self.primary && self.restarted) {
            self.violation.get_or_insert((
                Invariant::S7,
                "client traffic is resumed to a target that is no restarted primary",
            ));
        }
        if !to_target && self.recorded().past_point_of_no_return() {
            self.violation.get_or_insert((
                Invariant::S7,
                "client traffic is resumed to the source after the point of no return",
            ));
        }
    }

    /// S10: the end of the downtime is recorded only when the pooler has reached the target.
    pub fn served_first(&mut self, fact: &Fact) {
        if matches!(fact, Fact::Serving(_)) && self.route == Route::Service && !self.pooler_served {
            self.violation.get_or_insert((
                Invariant::S10,
                "the downtime ends before the pooler has reached the target",
            ));
        }
    }

    fn set_field(&mut self, key: &str, start: &Start, suspend: bool, observed: Option<Versions>) {
        let recorded = start
            .suspensions
            .iter()
            .find(|suspension: &&Suspension| suspension.key() == key);
        let set = recorded
            .is_some_and(|suspension| suspend || suspension.original == suspension.suspended);
        let operator = key.starts_with("postgresql");
        let (object, version) = if operator {
            (
                &mut self.operator,
                observed.map(|versions| versions.operator),
            )
        } else {
            (&mut self.scaler, observed.map(|versions| versions.scaler))
        };
        object.write(set, version);
    }

    fn scale(&mut self, up: bool, observed: Option<Versions>) {
        let before = self.scaled;
        self.scaled
            .write(up, observed.map(|versions| versions.apps));
        if before != self.scaled {
            self.followed = false;
            if up {
                self.resume_traffic(self.routed);
            }
        }
    }

    /// The controller of the application's pods reconciles them. It never acts on a scale that was
    /// requested and taken back before.
    pub fn follow(&mut self) {
        self.followed = true;
        if self.pods != self.scaled.set {
            self.pods = self.scaled.set;
            self.old_pods = self.pods && !self.routed;
        }
    }

    /// An actor other than the drivers scales the application up.
    pub fn scaled_up_by_others(&mut self) {
        let Versioned { version, .. } = self.scaled;
        self.scaled = Versioned {
            set: true,
            version: version + 1,
        };
        self.followed = false;
    }

    /// Patroni elects the source's standby.
    pub fn elect_other(&mut self) {
        self.leader_lost = false;
        (self.standby, self.timeline, self.connected) = (false, 2, false);
        self.start();
        self.locked = true;
    }

    /// The server is started again; it recovers first unless it had ended cleanly.
    pub fn restart(&mut self) {
        self.start();
        if !self.standby && !self.wal.ends_with_a_checkpoint() {
            self.recover();
        }
    }

    /// The server recovers from a crash.
    pub fn recover(&mut self) {
        self.wal.checkpoint();
        self.sessions = Sessions::Recovering;
    }

    pub fn start(&mut self) {
        (self.source_up, self.sessions) = (true, Sessions::Accepted);
        self.reload();
        self.locked = false;
        self.postmaster_start += 1;
    }

    /// Acknowledged writes that the target has not replayed.
    fn missing_writes(&self) -> usize {
        self.wal.writes_from(self.replayed)
    }

    /// The first invariant that does not hold.
    pub fn broken(&self) -> Option<Broken> {
        if let Some((invariant, how)) = self.violation {
            return Some(Broken::new(invariant, how));
        }
        // A target that others promote is theirs; the source goes on.
        let by_others = self.has_happened(Disturbance::PromotedByOthers)
            || self.has_happened(Disturbance::ReplicaModeEnded);
        if self.primary && self.serves() && !self.applied && !by_others {
            return Some(Broken::new(
                Invariant::S1,
                "source and target both accept writes",
            ));
        }
        // What CloudNativePG promotes is not for the drivers to choose; they must not let clients
        // in.
        let missing = self.missing_writes();
        let chosen = by_others || self.has_happened(Disturbance::OtherInstance);
        if self.primary && missing > 0 && !chosen {
            return Some(Broken::new(
                Invariant::S2,
                format!("{missing} acknowledged writes are missing on the target"),
            ));
        }
        let lost = self.has_happened(Disturbance::RecordDeleted);
        if self.follows && self.paused && !lost && self.has(|record| record.started.is_none()) {
            return Some(Broken::new(
                Invariant::S3,
                "the source is blocked and nothing is recorded",
            ));
        }
        None
    }

    /// The invariant that does not hold when a driver has ended without a cutover.
    pub fn broken_without_cutover(&self) -> Option<Broken> {
        if self.has_happened(Disturbance::RecordDeleted) {
            // What was decided on before may be done late, and leaves no trace.
            return None;
        }
        if self.pooler_paused || self.old_pod == Some(true) {
            return Some(Broken::new(
                Invariant::S8,
                format!("an end without a cutover leaves a pooler paused: {self:?}"),
            ));
        }
        // Before the block a driver does not wait for an election of Patroni.
        let elected = !self.standby || !self.has(|record| record.blocked.is_some());
        let source = self.source_up
            && elected
            && !self.paused
            && !self.read_only
            && !self.applied
            && !self.stops_on_crash
            && !self.operator.set
            && !self.scaler.set;
        let ok = source && self.scaled.set && !self.routed && self.repointed == 0;
        (!ok).then(|| {
            Broken::new(
                Invariant::S3,
                format!("an end without a cutover leaves {self:?}"),
            )
        })
    }

    /// The invariant that does not hold when a driver reports a complete cutover.
    pub fn broken_after_cutover(&self) -> Option<Broken> {
        if self.has_happened(Disturbance::RecordDeleted) {
            return None;
        }
        if self.pooler_paused || self.old_pod == Some(true) {
            return Some(Broken::new(
                Invariant::S8,
                format!("a complete cutover leaves a pooler paused: {self:?}"),
            ));
        }
        let target = self.primary && self.restarted && self.target_wrote;
        let application = match self.route {
            Route::Config => self.routed && self.scaled.set && !self.old_pods && !self.job,
            Route::Service => self.repointed == 2 && self.service_at_target,
        };
        let ok = target
            && application
            && self.manifest_promoted
            && !self.source_up
            && self.operator.set
            && !self.scaler.set;
        (!ok).then(|| Broken::new(Invariant::S4, format!("a complete cutover leaves {self:?}")))
    }

    /// The server was to end, and does not yet: as it was, without new sessions.
    pub fn stop_slowly(&mut self, before: &Self) {
        (self.source_up, self.wal) = (true, before.wal);
        self.sessions = Sessions::Stopping;
    }

    /// The server has the settings that it had before.
    pub fn as_reloaded(&self, before: &Self) -> bool {
        (self.applied, self.stops_applied) == (before.applied, before.stops_applied)
    }

    /// The settings have not reached the server yet.
    pub fn not_reloaded(&mut self, before: &Self) {
        (self.applied, self.stops_applied) = (before.applied, before.stops_applied);
    }

    /// The target was deleted past the point of no return, or before a start: nothing but another
    /// one helps, and the driver ends at its own limit.
    pub fn waits_for_a_person(&self) -> bool {
        let stuck = |record: &Record| record.past_point_of_no_return() || record.started.is_none();
        self.has_happened(Disturbance::ClusterDeleted) && self.has(stuck)
    }
}
