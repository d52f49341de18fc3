//! The small world: its state, and the snapshot of it that a driver takes.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use crate::{
    controllers::suspension::SUSPENDED,
    failure::Failure,
    route::Route,
    snapshot::{
        kubernetes::{ClusterState, Kind, Replicas, Selector, ServiceState, StoredManifest},
        source::PostmasterStart,
        target::{ControlCheckpoint, Replay, Running},
    },
    wal::{Identity, Lsn, Switch, SystemIdentifier, Timeline},
};
use jiff::Timestamp;
use serde_json::Value;

use super::{events::Disturbance, invariants::Invariant};
use crate::{
    controllers::suspension::{Object, Suspension, SuspensionState},
    decision::Limits,
    reason::AbortRequest,
    record::{AppConfig, Fact, Record},
    snapshot::{
        PatroniState, PoolerPodState, PoolerState, Reachability, ServiceAnswer, Snapshot,
        SourceState, TargetState, poolers::Traffic, prechecks::Prechecks,
    },
};

/// The WAL of the source: commits that were acknowledged to their clients, and checkpoints of a
/// clean stop. Each record takes 120 bytes here, so that positions are exact and none crosses a
/// page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wal {
    records: u8,
    /// The records that are checkpoints, one bit each.
    checkpoints: u64,
}

impl Wal {
    /// A first commit.
    fn begun() -> Self {
        Self {
            records: 1,
            checkpoints: 0,
        }
    }

    pub fn len(self) -> usize {
        usize::from(self.records)
    }

    pub fn write(&mut self) {
        self.records += 1;
    }

    pub fn checkpoint(&mut self) {
        self.checkpoints |= 1 << self.records;
        self.records += 1;
    }

    fn is_checkpoint(self, record: usize) -> bool {
        self.checkpoints & (1 << record) != 0
    }

    /// The commits from this record on.
    pub fn writes_from(self, record: usize) -> usize {
        let commits = (record..self.len()).filter(|one| !self.is_checkpoint(*one));
        commits.count()
    }

    /// The last checkpoint before this record.
    pub fn checkpoint_before(self, record: usize) -> Option<usize> {
        (0..record).rev().find(|one| self.is_checkpoint(*one))
    }

    pub fn ends_with_a_write(self) -> bool {
        !self.ends_with_a_checkpoint()
    }

    pub fn ends_with_a_checkpoint(self) -> bool {
        self.is_checkpoint(self.len() - 1)
    }
}

/// Who of the source does not answer the drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Silence {
    None,
    /// The leader's pod, by SQL and by REST; its server may run and accept writes.
    Leader,
    /// The REST API of every member; their servers answer.
    Patroni,
}

/// Whether the running source accepts new sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sessions {
    Accepted,
    /// It recovers from a crash, which ends with a checkpoint like that of a clean stop.
    Recovering,
    /// Its stop was requested and is not complete: those that exist still write.
    Stopping,
}

/// Another ready instance of the target, which CloudNativePG may promote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instance {
    InStep,
    /// It lacks the last records.
    Behind,
    /// It becomes the designated primary.
    Next,
}

/// Disturbances that every later snapshot shows.
const VISIBLE: u64 = Disturbance::SourceReplaced.bit()
    | Disturbance::TargetReplaced.bit()
    | Disturbance::ClusterDeleted.bit()
    | Disturbance::AddressReused.bit();

const OTHER_SYSTEM: SystemIdentifier = SystemIdentifier(8);
const FIRST: u64 = 0x100_0028;
const RECORD_BYTES: u64 = 120;

/// An object that other actors change, too, with the version that a write must carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Versioned {
    pub set: bool,
    pub version: u8,
}

impl Versioned {
    /// A write by an actor that observed the version `observed`; a stale one is refused.
    pub fn write(&mut self, set: bool, observed: Option<u8>) {
        if observed.is_none_or(|version| version == self.version) && self.set != set {
            (self.set, self.version) = (set, self.version + 1);
        }
    }
}

/// The state of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Number of the journal in `JOURNALS`.
    pub record: usize,
    /// The resourceVersion of the journal.
    pub version: u32,
    pub route: Route,
    pub wal: Wal,
    pub source_up: bool,
    /// The source's server is a standby: Patroni has lost its DCS and demoted its leader. Only an
    /// election makes it a primary again.
    pub standby: bool,
    /// The node of the source's leader is lost.
    pub leader_lost: bool,
    /// The source's standby lacks the last write.
    pub standby_lags: bool,
    pub postmaster_start: u8,
    pub timeline: u32,
    pub paused: bool,
    /// Patroni's configuration says read-only.
    pub read_only: bool,
    /// The server's own setting.
    pub applied: bool,
    /// Patroni's configuration says that a server that crashes stays stopped.
    pub stops_on_crash: bool,
    /// The server's own setting.
    pub stops_applied: bool,
    pub silence: Silence,
    pub sessions: Sessions,
    /// The running server holds the leader lock: Patroni releases the lock of a stopped server and
    /// takes it again in its next loop.
    pub locked: bool,
    /// The Zalando operator's annotation.
    pub operator: Versioned,
    /// The autoscaler's annotation.
    pub scaler: Versioned,
    pub connected: bool,
    pub replayed: usize,
    pub control: Option<usize>,
    pub follows: bool,
    pub primary: bool,
    pub restarted: bool,
    pub target_wrote: bool,
    /// The target's server does not answer.
    pub target_down: bool,
    /// It was restarted after its promotion for another reason than the pending restart.
    pub target_young: bool,
    pub instance: Instance,
    /// A job of the application runs, with the configuration of the source.
    pub job: bool,
    /// The application is scaled up; its pods follow later.
    pub scaled: Versioned,
    /// The application's pods exist.
    pub pods: bool,
    /// The controller of the pods has observed the current scale.
    pub followed: bool,
    /// The pods have read a ConfigMap that names the source.
    pub old_pods: bool,
    /// The ConfigMap names the target.
    pub routed: bool,
    /// The old pooler is paused.
    pub pooler_paused: bool,
    /// Its console does not answer.
    pub console_silent: bool,
    /// It is logging in at its server.
    pub login: bool,
    /// A pod of the old pooler that is being deleted and still has clients: whether it is paused.
    pub old_pod: Option<bool>,
    /// The old pooler has logged in at the target.
    pub pooler_served: bool,
    /// A policy refuses the old pooler at the target.
    pub path_closed: bool,
    /// How many of the two Services have the target's selector; the leader's Service is the first.
    pub repointed: u8,
    /// Kubernetes routes the traffic of the leader's Service to the target.
    pub service_at_target: bool,
    /// The stored manifest says that the target is promoted.
    pub manifest_promoted: bool,
    /// How many times the duration of the deadline has passed.
    pub clock: u8,
    pub aborted: bool,
    /// How many disturbances may still happen.
    pub fault_budget: u8,
    /// The disturbances that have happened, one bit each.
    pub happened: u64,
    /// Those that this search combines.
    pub allowed: u64,
    /// Each may happen again.
    pub repeats: bool,
    /// The invariant that an effect has broken.
    pub violation: Option<(Invariant, &'static str)>,
}

thread_local! {
    /// Few journals exist; a state holds only its number, which keeps millions of states small.
    static JOURNALS: RefCell<Vec<Rc<Record>>> = const { RefCell::new(Vec::new()) };
}

pub fn number_of(record: Record) -> usize {
    JOURNALS.with_borrow_mut(|records| {
        records
            .iter()
            .position(|known| **known == record)
            .unwrap_or_else(|| {
                records.push(Rc::new(record));
                records.len() - 1
            })
    })
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap_or_default()
}

pub fn start_of(record: usize) -> Lsn {
    Lsn(FIRST + record as u64 * RECORD_BYTES)
}

/// The autoscaler's suspension.
pub fn scaler() -> Suspension {
    let object = Object::of(
        "keda.sh",
        "v1alpha1",
        "ScaledObject",
        "scaledobjects",
        "web",
    );
    Suspension::annotation(object, "autoscaling.keda.sh/paused", "true", None)
}

/// The selectors of the two Services after the cutover.
pub fn selectors() -> BTreeMap<String, Selector> {
    let target = Selector::from([("cnpg.io/cluster".to_owned(), "target".to_owned())]);
    BTreeMap::from([
        ("pg".to_owned(), target.clone()),
        ("pg-repl".to_owned(), target),
    ])
}

impl World {
    /// Before the cutover: clients may write, everything serves.
    pub fn new(route: Route, fault_budget: u8, allowed: u64) -> Self {
        Self {
            record: number_of(Record::default()),
            version: 0,
            route,
            wal: Wal::begun(),
            source_up: true,
            standby: false,
            leader_lost: false,
            standby_lags: false,
            postmaster_start: 0,
            timeline: 1,
            paused: false,
            read_only: false,
            applied: false,
            stops_on_crash: false,
            stops_applied: false,
            silence: Silence::None,
            sessions: Sessions::Accepted,
            locked: true,
            operator: Versioned::default(),
            scaler: Versioned::default(),
            connected: true,
            replayed: 1,
            control: None,
            follows: true,
            primary: false,
            restarted: false,
            target_wrote: false,
            target_down: false,
            target_young: false,
            instance: Instance::InStep,
            job: false,
            scaled: Versioned {
                set: true,
                version: 0,
            },
            pods: true,
            followed: true,
            old_pods: true,
            routed: false,
            pooler_paused: false,
            console_silent: false,
            login: false,
            old_pod: None,
            pooler_served: false,
            path_closed: false,
            repointed: 0,
            service_at_target: false,
            manifest_promoted: false,
            clock: 0,
            aborted: false,
            fault_budget,
            happened: 0,
            allowed,
            repeats: false,
            violation: None,
        }
    }

    pub fn recorded(&self) -> Rc<Record> {
        Self::journal_of(self.record)
    }

    /// Whether the record satisfies a condition.
    pub fn has(&self, fact: impl Fn(&Record) -> bool) -> bool {
        Self::journal_has(self.record, fact)
    }

    /// Whether a journal satisfies a condition.
    pub fn journal_has(number: usize, fact: impl Fn(&Record) -> bool) -> bool {
        JOURNALS.with_borrow(|records| fact(&records[number]))
    }

    /// Forgets all journals; no world from before may be used any more.
    pub fn forget_journals() {
        JOURNALS.with_borrow_mut(Vec::clear);
    }

    /// How many journals are known.
    pub fn journals() -> usize {
        JOURNALS.with_borrow(Vec::len)
    }

    pub fn journal_of(number: usize) -> Rc<Record> {
        JOURNALS.with_borrow(|records| records[number].clone())
    }

    /// The source's server runs as a primary.
    pub fn serves(&self) -> bool {
        self.source_up && !self.standby
    }

    /// The part of the world that a snapshot shows: two worlds whose visible parts are equal have
    /// equal snapshots.
    pub fn visible(&self) -> Self {
        Self {
            record: usize::from(self.marked_only()) + 2 * usize::from(self.asks_for_the_manifest()),
            version: 0,
            fault_budget: 0,
            happened: self.happened & VISIBLE,
            target_wrote: false,
            old_pods: false,
            violation: None,
            ..*self
        }
    }

    /// The snapshot that `LiveWorld` would take of this world.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            now: at(i64::from(self.clock) * 1_000),
            source: self.source(),
            patroni: self.patroni(),
            target: if self.target_answers() {
                Reachability::Up(self.target())
            } else {
                Reachability::Unreachable(refused())
            },
            cluster: self.cluster(),
            manifest: match (self.asks_for_the_manifest(), self.manifest_promoted) {
                (false, _) => StoredManifest::Unread,
                (true, true) => StoredManifest::Promoted,
                (true, false) => StoredManifest::Follows,
            },
            suspensions: self.suspensions(),
            jobs: if self.job {
                vec!["report-1".into()]
            } else {
                Vec::new()
            },
            services: self.services(),
            poolers: self.poolers(),
            reconnected: Vec::new(),
            service_answer: self.service_answer(),
            apps: self.apps(),
            config: self.config(),
            prechecks: self.marked_only().then(|| Prechecks {
                operator: Some(SUSPENDED.into()),
                ..Prechecks::default()
            }),
            data: None,
            abort: self.aborted.then_some(AbortRequest::RecordKey),
        }
    }

    /// The source as it answers by SQL.
    pub fn source(&self) -> Reachability<SourceState> {
        if self.has_happened(Disturbance::AddressReused) && !self.source_up {
            return Reachability::Up(self.target_as_source());
        }
        let answers = self.sessions == Sessions::Accepted && self.silence != Silence::Leader;
        if !self.source_up || !answers {
            return Reachability::Unreachable(refused());
        }
        let mut identity = identity(self.timeline);
        if self.has_happened(Disturbance::SourceReplaced) {
            identity.system_identifier = OTHER_SYSTEM;
        }
        Reachability::Up(SourceState {
            identity,
            primary: !self.standby,
            read_only: self.applied,
            restarts_after_crash: !self.stops_applied,
            insert: (!self.standby).then(|| start_of(self.wal.len())),
            postmaster_start: PostmasterStart(i64::from(self.postmaster_start)),
            clients: Vec::new(),
        })
    }

    /// The target that answers at the address of a member of the source.
    fn target_as_source(&self) -> SourceState {
        let target = self.target();
        SourceState {
            identity: target.identity,
            primary: self.primary,
            read_only: false,
            restarts_after_crash: true,
            insert: Some(start_of(self.replayed)),
            postmaster_start: PostmasterStart(target.running.postmaster_start.as_microsecond()),
            clients: Vec::new(),
        }
    }

    fn patroni(&self) -> Reachability<PatroniState> {
        if self.silence == Silence::Patroni {
            return Reachability::Unreachable(refused());
        }
        let mut members = (vec!["b".to_owned()], Vec::new());
        if !self.leader_lost {
            let of_the_leader = match self.silence {
                Silence::Leader => &mut members.1,
                _ => &mut members.0,
            };
            of_the_leader.push("a".to_owned());
        }
        let primary = self.serves() && self.silence == Silence::None;
        let standby = self.source_up && self.standby && self.silence == Silence::None;
        Reachability::Up(PatroniState {
            paused: self.paused.then_some(true),
            read_only: self.read_only.then(|| "on".to_owned()),
            restart_after_crash: self.stops_on_crash.then(|| "off".to_owned()),
            leader: (!self.standby).then(|| if self.timeline == 1 { "a" } else { "b" }.to_owned()),
            standbys: standby.then(|| "a".to_owned()).into_iter().collect(),
            primaries: primary.then(|| "a".to_owned()).into_iter().collect(),
            // Only a primary is asked for the holder of the lock.
            unlocked: primary && !self.locked,
            starting: false,
            answering: members.0,
            silent: members.1,
            received: self.received(),
        })
    }

    /// The target's server answers.
    pub fn target_answers(&self) -> bool {
        !self.target_down && !self.has_happened(Disturbance::ClusterDeleted)
    }

    fn cluster(&self) -> ClusterState {
        if self.has_happened(Disturbance::ClusterDeleted) {
            return ClusterState::missing();
        }
        let mut cluster = ClusterState {
            follows: self.follows,
            ..ClusterState::default()
        };
        let [first, second] = ["target-1", "target-2"].map(str::to_owned);
        match self.instance {
            Instance::InStep => {}
            Instance::Behind => {
                cluster.ready = vec![first.clone(), second];
                cluster.current_primary = first;
            }
            Instance::Next => {
                (cluster.current_primary, cluster.target_primary) = (first, second);
            }
        }
        cluster
    }

    /// The operator is suspended, and no cutover is on record.
    pub fn marked_only(&self) -> bool {
        self.operator.set && self.has(|record| record.started.is_none())
    }

    /// The manifest is asked for only where it is to be rewritten.
    fn asks_for_the_manifest(&self) -> bool {
        self.has(|record| record.serving.is_some())
    }

    /// What the source's standby has received: everything, unless it lags.
    fn received(&self) -> BTreeMap<String, Lsn> {
        let lag = usize::from(self.standby_lags);
        [("b".to_owned(), start_of(self.wal.len() - lag))].into()
    }

    fn suspensions(&self) -> Vec<SuspensionState> {
        let state_of = |suspension: Suspension, object: Versioned| SuspensionState {
            now: Suspension {
                original: if object.set {
                    suspension.suspended.clone()
                } else {
                    Value::Null
                },
                ..suspension
            },
            version: Some(object.version.to_string()),
        };
        let mut all = vec![state_of(
            Suspension::zalando_operator("pg", Some(SUSPENDED)),
            self.operator,
        )];
        if self.route == Route::Config {
            all.push(state_of(scaler(), self.scaler));
        }
        all
    }

    fn services(&self) -> BTreeMap<String, ServiceState> {
        if self.route == Route::Config {
            return BTreeMap::new();
        }
        let state_of = |(number, (name, selector))| {
            let state = ServiceState {
                selector: (self.repointed > number).then_some(selector),
                address: None,
                port: Some(5432),
                leftovers: Vec::new(),
            };
            (name, state)
        };
        (0..).zip(selectors()).map(state_of).collect()
    }

    fn poolers(&self) -> Vec<PoolerPodState> {
        if self.route == Route::Config {
            return Vec::new();
        }
        let pod = |name: &str, paused: bool| {
            let state = if paused {
                PoolerState::Paused
            } else {
                PoolerState::Serving
            };
            let mut pod = PoolerPodState::new(name, Reachability::Up(state));
            pod.traffic = Some(Traffic {
                connected: self.pooler_served,
                ..Traffic::default()
            });
            pod
        };
        let mut pooler = pod("pg-pooler", self.pooler_paused);
        pooler.logins = u64::from(self.login);
        if self.console_silent {
            (pooler.state, pooler.traffic) = (Reachability::Unreachable(refused()), None);
        }
        let old = self.old_pod.map(|paused| pod("pg-pooler-old", paused));
        old.into_iter().chain([pooler]).collect()
    }

    /// The answer of the server behind the Service: of the target, also while a new primary waits
    /// for its restart, or of the source.
    fn service_answer(&self) -> Reachability<ServiceAnswer> {
        if self.service_at_target && !self.target_answers() {
            Reachability::Unreachable(refused())
        } else if self.service_at_target {
            Reachability::Up(ServiceAnswer {
                identity: identity(self.target_timeline()),
                primary: self.primary,
            })
        } else if let Reachability::Up(source) = self.source()
            && source.primary
        {
            Reachability::Up(ServiceAnswer {
                identity: source.identity,
                primary: true,
            })
        } else {
            Reachability::Unreachable(refused())
        }
    }

    fn apps(&self) -> BTreeMap<String, Replicas> {
        let replicas = Replicas {
            kind: Kind::Deployment,
            wanted: i32::from(self.scaled.set),
            ready: i32::from(self.pods),
            existing: i32::from(self.pods),
            followed: self.followed,
            version: String::new(),
        };
        BTreeMap::from([("web".to_owned(), replicas)])
    }

    fn target_timeline(&self) -> u32 {
        if self.primary {
            self.timeline + 1
        } else {
            self.timeline
        }
    }

    fn target(&self) -> TargetState {
        // The redo of a shutdown checkpoint is the checkpoint itself; before the first one,
        // pg_control holds an online checkpoint.
        let control = match self.control {
            Some(record) => ControlCheckpoint {
                checkpoint: start_of(record),
                redo: start_of(record),
                timeline: Timeline(self.timeline),
            },
            None => ControlCheckpoint {
                checkpoint: start_of(0),
                redo: Lsn(FIRST - RECORD_BYTES),
                timeline: Timeline(1),
            },
        };
        let done = self.primary && self.restarted;
        let mut identity = identity(self.target_timeline());
        if self.has_happened(Disturbance::TargetReplaced) {
            identity.system_identifier = OTHER_SYSTEM;
        }
        let started = match (done, self.target_young) {
            (true, _) => 500,
            (false, true) => 400,
            (false, false) => -500,
        };
        TargetState {
            identity,
            in_recovery: !self.primary,
            replay: Replay {
                receive: None,
                replay: Some(start_of(self.replayed)),
                streaming: self.connected,
                paused: false,
            },
            control,
            running: Running {
                archive_mode: if done { "on" } else { "always" }.into(),
                pending_restart: 0,
                postmaster_start: at(started),
                now: at(0),
            },
            segment_bytes: 16 << 20,
            history: self.history(),
            standbys: Vec::new(),
        }
    }

    /// A promotion leaves the source's timeline where the replay stands.
    fn history(&self) -> Vec<Switch> {
        let switch = || Switch {
            timeline: Timeline(self.timeline),
            at: start_of(self.replayed),
        };
        self.primary.then(switch).into_iter().collect()
    }

    fn config(&self) -> AppConfig {
        let host = if self.routed { "target" } else { "source" };
        AppConfig {
            name: "app".into(),
            values: [("DB_HOST".to_owned(), Some(host.to_owned()))].into(),
        }
    }

    /// The limits that the drivers are given.
    pub fn limits(&self) -> Limits {
        Limits {
            cutover_max: Duration::from_secs(100),
            fence_max: Duration::from_secs(50),
            pause_max: Duration::from_secs(10),
            config: BTreeMap::from([("DB_HOST".to_owned(), "target".to_owned())]),
            route: Some(self.route),
            services: selectors(),
            ..Limits::default()
        }
    }

    /// The record is deleted, its finalizer removed by hand.
    pub fn lose_record(&mut self) {
        (self.record, self.version) = (number_of(Record::default()), self.version + 1);
    }

    /// The API server's compare-and-swap; returns whether the fact was written.
    pub fn record(&mut self, fact: &Fact, read: u32, checked: bool) -> bool {
        let written = |world: &Self| number_of(world.recorded().with(fact.clone()));
        self.record_as(fact, read, checked, written)
    }

    /// The same, where the number of the next journal may be known.
    pub fn record_as(
        &mut self,
        fact: &Fact,
        read: u32,
        checked: bool,
        number: impl FnOnce(&Self) -> usize,
    ) -> bool {
        if checked && read != self.version {
            return false;
        }
        self.served_first(fact);
        self.record = number(self);
        self.version += 1;
        true
    }
}

fn refused() -> Failure {
    Failure::transient("connection refused")
}

fn identity(timeline: u32) -> Identity {
    Identity {
        system_identifier: SystemIdentifier(7),
        timeline: Timeline(timeline),
        version: 170_010,
    }
}
