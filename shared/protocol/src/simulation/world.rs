//! The small world: its state, and the snapshot of it that a driver takes.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

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

use super::invariants::Invariant;
use crate::{
    controllers::suspension::{Object, Suspension, SuspensionState},
    decision::Limits,
    reason::AbortRequest,
    record::{AppConfig, Fact, Record},
    snapshot::{
        PatroniState, PoolerPodState, PoolerState, Reachability, ServiceAnswer, Snapshot,
        SourceState, TargetState, poolers::Traffic,
    },
};

/// A WAL record. Each takes 120 bytes here, so that positions are exact and none crosses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wal {
    /// A commit that was acknowledged to its client.
    Write,
    /// The checkpoint of a clean stop.
    Shutdown,
}

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Number of the journal in `JOURNALS`.
    pub record: usize,
    /// The resourceVersion of the journal.
    pub version: u32,
    pub route: Route,
    pub wal: Vec<Wal>,
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
    pub read_only: bool,
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
    pub happened: u32,
    /// The invariant that an effect has broken.
    pub violation: Option<(Invariant, &'static str)>,
}

thread_local! {
    /// Few journals exist; a state holds only its number, which keeps millions of states small.
    static JOURNALS: RefCell<Vec<Record>> = const { RefCell::new(Vec::new()) };
}

pub fn number_of(record: Record) -> usize {
    JOURNALS.with_borrow_mut(|records| {
        records
            .iter()
            .position(|known| *known == record)
            .unwrap_or_else(|| {
                records.push(record);
                records.len() - 1
            })
    })
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
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
    pub fn new(route: Route, fault_budget: u8) -> Self {
        Self {
            record: number_of(Record::default()),
            version: 0,
            route,
            wal: vec![Wal::Write],
            source_up: true,
            standby: false,
            leader_lost: false,
            standby_lags: false,
            postmaster_start: 0,
            timeline: 1,
            paused: false,
            read_only: false,
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
            scaled: Versioned {
                set: true,
                version: 0,
            },
            pods: true,
            followed: true,
            old_pods: true,
            routed: false,
            pooler_paused: false,
            pooler_served: false,
            path_closed: false,
            repointed: 0,
            service_at_target: false,
            manifest_promoted: false,
            clock: 0,
            aborted: false,
            fault_budget,
            happened: 0,
            violation: None,
        }
    }

    pub fn recorded(&self) -> Record {
        Self::journal_of(self.record)
    }

    pub fn journal_of(number: usize) -> Record {
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
            record: 0,
            version: 0,
            fault_budget: 0,
            happened: 0,
            target_wrote: false,
            old_pods: false,
            violation: None,
            ..self.clone()
        }
    }

    /// The snapshot that `LiveWorld` would take of this world.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            now: at(i64::from(self.clock) * 1_000),
            source: if self.source_up {
                Reachability::Up(SourceState {
                    identity: identity(self.timeline),
                    primary: !self.standby,
                    read_only: self.read_only,
                    insert: (!self.standby).then(|| start_of(self.wal.len())),
                    postmaster_start: PostmasterStart(i64::from(self.postmaster_start)),
                    clients: Vec::new(),
                })
            } else {
                Reachability::Unreachable(refused())
            },
            patroni: Reachability::Up(PatroniState {
                paused: self.paused.then_some(true),
                read_only: self.read_only.then(|| "on".to_owned()),
                leader: (!self.standby)
                    .then(|| if self.timeline == 1 { "a" } else { "b" }.to_owned()),
                primaries: if self.serves() {
                    vec!["a".into()]
                } else {
                    Vec::new()
                },
                // Only a primary is asked for the holder of the lock.
                unlocked: self.serves() && !self.locked,
                starting: false,
                answering: if self.leader_lost {
                    vec!["b".into()]
                } else {
                    vec!["a".into(), "b".into()]
                },
                silent: Vec::new(),
                received: self.received(),
            }),
            target: Reachability::Up(self.target()),
            cluster: ClusterState {
                follows: self.follows,
                ..ClusterState::default()
            },
            manifest: if self.manifest_promoted {
                StoredManifest::Promoted
            } else {
                StoredManifest::Follows
            },
            suspensions: self.suspensions(),
            jobs: Vec::new(),
            services: self.services(),
            poolers: self.poolers(),
            reconnected: Vec::new(),
            service_answer: self.service_answer(),
            apps: self.apps(),
            config: self.config(),
            prechecks: None,
            data: None,
            abort: self.aborted.then_some(AbortRequest::RecordKey),
        }
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
        let state = if self.pooler_paused {
            PoolerState::Paused
        } else {
            PoolerState::Serving
        };
        let mut pooler = PoolerPodState::new("pg-pooler", Reachability::Up(state));
        pooler.traffic = Some(Traffic {
            connected: self.pooler_served,
            ..Traffic::default()
        });
        if self.route == Route::Service {
            vec![pooler]
        } else {
            Vec::new()
        }
    }

    /// The answer of the server behind the Service: of the target, also while a new primary waits
    /// for its restart, or of the source.
    fn service_answer(&self) -> Reachability<ServiceAnswer> {
        if self.service_at_target {
            Reachability::Up(ServiceAnswer {
                identity: identity(self.target_timeline()),
                primary: self.primary,
            })
        } else if self.serves() {
            Reachability::Up(ServiceAnswer {
                identity: identity(self.timeline),
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
        TargetState {
            identity: identity(self.target_timeline()),
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
                postmaster_start: at(if done { 500 } else { -500 }),
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

    /// The API server's compare-and-swap; returns whether the fact was written.
    pub fn record(&mut self, fact: Fact, read: u32, checked: bool) -> bool {
        if checked && read != self.version {
            return false;
        }
        self.served_first(&fact);
        self.record = number_of(self.recorded().with(fact));
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
