//! What one observation of both sides shows. No clock and no I/O here: the time of the observation
//! is part of it.
//!
//! This is the one snapshot of all programs. What only some of them ask, or ask at one time only,
//! is an `Option`: [`Prechecks`] and [`DataComparison`]. Nothing here judges; that is for
//! [`checks`](crate::checks) and [`decide`](crate::decide).

pub mod data;
pub mod kubernetes;
pub mod poolers;
pub mod prechecks;
pub mod source;
pub mod target;

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    controllers::suspension::{Suspension, SuspensionState},
    failure::Failure,
    reason::{AbortRequest, Server, ServerFailure, SourcePrimary, UnreadyPods, Wait},
    record::{AppConfig, Start},
    snapshot::{
        data::DataComparison,
        kubernetes::{ClusterState, Replicas, ServiceState, StoredManifest},
        prechecks::{Prechecks, Question},
        source::{ClientSession, PostmasterStart, ServerRun},
        target::{ControlCheckpoint, Replay, Running, Standby},
    },
    wal::{Identity, Lsn, Switch, Timeline},
};

pub use poolers::{PoolerPodState, PoolerState};

/// One observation of both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// When it was complete.
    pub now: Timestamp,
    /// The source's leader, by SQL.
    pub source: Reachability<SourceState>,
    /// Patroni, by its REST API.
    pub patroni: Reachability<PatroniState>,
    /// The fields that suspend controllers. Before the start: those of all controllers that would
    /// undo the cutover. After it: the recorded ones with their current values.
    pub suspensions: Vec<SuspensionState>,
    /// Jobs of the application's CronJobs that still run.
    pub jobs: Vec<String>,
    /// The target, by SQL.
    pub target: Reachability<TargetState>,
    /// The target's Cluster.
    pub cluster: ClusterState,
    /// The manifest that prepare-zalando has stored; asked for only where it is to be rewritten.
    pub manifest: StoredManifest,
    /// The source's Services.
    pub services: BTreeMap<String, ServiceState>,
    /// The pods of the old poolers.
    pub poolers: Vec<PoolerPodState>,
    /// Clients that were observed at the source after its sessions were ended, so far.
    pub reconnected: Vec<String>,
    /// The server that answers behind the source's Service; asked only while that is waited for.
    pub service_answer: Reachability<ServiceAnswer>,
    /// The application's workloads.
    pub apps: BTreeMap<String, Replicas>,
    /// The application's ConfigMap.
    pub config: AppConfig,
    /// What the checks need beside this; observed only until the block, because only then a finding
    /// can still keep the cutover from beginning.
    pub prechecks: Option<Prechecks>,
    /// The data of both sides, where it was compared.
    pub data: Option<DataComparison>,
    /// The request to abort, if there is one, such as SIGTERM or the abort annotation.
    pub abort: Option<AbortRequest>,
}

/// A server that answers, or the reason why it does not.
#[derive(Clone, Debug, PartialEq)]
pub enum Reachability<T> {
    /// It answered.
    Up(T),
    /// It did not answer within the time that an observation waits.
    Unreachable(Failure),
}

impl<T> Reachability<T> {
    /// Why it did not answer.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Up(_) => None,
            Self::Unreachable(failure) => Some(failure),
        }
    }

    /// What it answered.
    pub fn answer(&self) -> Option<&T> {
        match self {
            Self::Up(seen) => Some(seen),
            Self::Unreachable(_) => None,
        }
    }
}

/// The source by SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// Its identity.
    pub identity: Identity,
    /// It is not in recovery.
    pub primary: bool,
    /// New transactions are read-only unless they ask otherwise.
    pub read_only: bool,
    /// Its server starts again by itself after a crash of a session.
    pub restarts_after_crash: bool,
    /// End of the WAL inserted; None on a standby.
    pub insert: Option<Lsn>,
    /// This run of its server.
    pub postmaster_start: PostmasterStart,
    /// Client sessions.
    pub clients: Vec<ClientSession>,
}

/// Patroni by REST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniState {
    /// `pause` in the dynamic configuration.
    pub paused: Option<bool>,
    /// `postgresql.parameters.default_transaction_read_only` there.
    pub read_only: Option<String>,
    /// `postgresql.parameters.restart_after_crash` there.
    pub restart_after_crash: Option<String>,
    /// The member whose pod carries the leader label.
    pub leader: Option<String>,
    /// Members whose server runs as a primary, by their own word.
    pub primaries: Vec<String>,
    /// Members whose server runs as a standby, by their own word.
    pub standbys: Vec<String>,
    /// One of the primaries reports that no member holds the leader lock.
    pub unlocked: bool,
    /// One of the primaries has not come up yet.
    pub starting: bool,
    /// Members whose own REST API answered.
    pub answering: Vec<String>,
    /// Members whose own REST API did not answer.
    pub silent: Vec<String>,
    /// What each standby has received of the WAL.
    pub received: BTreeMap<String, Lsn>,
}

/// The server that answers behind the source's Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// Its identity.
    pub identity: Identity,
    /// It is not in recovery.
    pub primary: bool,
}

/// The target by SQL.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetState {
    /// Its identity.
    pub identity: Identity,
    /// It is a standby.
    pub in_recovery: bool,
    /// Where it stands.
    pub replay: Replay,
    /// Its latest checkpoint or restartpoint.
    pub control: ControlCheckpoint,
    /// How it runs.
    pub running: Running,
    /// Bytes of a WAL segment.
    pub segment_bytes: u64,
    /// The timelines before its own one and where each was left; read of a primary only.
    pub history: Vec<Switch>,
    /// The standbys that stream from it.
    pub standbys: Vec<Standby>,
}

impl SourceState {
    /// This run of its server, on its timeline.
    pub fn run(&self) -> ServerRun {
        ServerRun {
            timeline: self.identity.timeline,
            postmaster_start: self.postmaster_start,
        }
    }
}

impl PatroniState {
    /// Its configuration says that a server that crashes stays stopped.
    pub fn stops_on_crash(&self) -> bool {
        self.restart_after_crash.as_deref() == Some("off")
    }
}

impl TargetState {
    /// Whether a server that answers as the source is this target. A physical copy has the source's
    /// system identifier, but no two servers start at the same microsecond.
    pub fn answers_as(&self, source: &SourceState) -> bool {
        Some(self.running.postmaster_start) == source.postmaster_start.began()
            && self.identity == source.identity
    }

    /// Where the history of its timeline left this one; None when it did not.
    pub fn left(&self, timeline: Timeline) -> Option<Lsn> {
        let switch = self
            .history
            .iter()
            .find(|switch| switch.timeline == timeline);
        switch.map(|switch| switch.at)
    }
}

impl Snapshot {
    /// Some workload that had pods is scaled to 0, as the block leaves it. Any other number was set
    /// by another actor.
    pub fn idle(&self, replicas: &BTreeMap<String, i32>) -> bool {
        // One that was deleted meanwhile is not restored.
        let at_zero = |name: &String| self.apps.get(name).is_some_and(|app| app.wanted == 0);
        replicas
            .iter()
            .any(|(name, recorded)| *recorded > 0 && at_zero(name))
    }

    /// Workloads that have fewer ready pods than they had, or than are wanted now.
    pub fn not_ready(&self, replicas: &BTreeMap<String, i32>) -> Option<Wait> {
        let unready: Vec<UnreadyPods> = replicas
            .iter()
            .filter_map(|(name, wanted)| {
                let ready = |app: &Replicas| if app.followed { app.ready } else { 0 };
                let (ready, now) = self
                    .apps
                    .get(name)
                    .map_or((0, 0), |app| (ready(app), app.wanted));
                (ready < *wanted.min(&now)).then(|| UnreadyPods {
                    workload: name.clone(),
                    ready,
                    wanted: now,
                })
            })
            .collect();
        (!unready.is_empty()).then_some(Wait::PodsNotReady(unready))
    }

    /// The first recorded field that does not suspend its owner.
    pub fn unsuspended<'a>(
        &self,
        start: &'a Start,
        included: impl Fn(&Suspension) -> bool,
    ) -> Option<&'a Suspension> {
        let unsuspended = |suspension: &&Suspension| {
            self.standing(suspension)
                .is_some_and(|standing| !standing.is_suspended())
        };
        start
            .suspensions
            .iter()
            .filter(|suspension| included(suspension))
            .find(unsuspended)
    }

    /// The last recorded field that is not as it was. Fields are restored in the reverse order of
    /// their suspension: the Zalando operator's, which marks a cutover, is the last one.
    pub fn unlike<'a>(
        &self,
        start: &'a Start,
        included: impl Fn(&Suspension) -> bool,
    ) -> Option<&'a Suspension> {
        let changed = |suspension: &&Suspension| {
            self.standing(suspension)
                .is_some_and(|standing| !standing.as_recorded(suspension))
        };
        start
            .suspensions
            .iter()
            .rev()
            .filter(|suspension| included(suspension))
            .find(changed)
    }

    /// A recorded field as it stands.
    pub fn standing(&self, suspension: &Suspension) -> Option<&SuspensionState> {
        self.suspensions
            .iter()
            .find(|standing| standing.now.key() == suspension.key())
    }

    /// Pods of the old poolers in one of these states.
    pub fn poolers_that(&self, matches: impl Fn(PoolerState) -> bool) -> Vec<String> {
        let found = self
            .poolers
            .iter()
            .filter(|pooler| pooler.state.answer().is_some_and(|state| matches(*state)));
        found.map(|pooler| pooler.pod.clone()).collect()
    }

    /// Pods of the old poolers whose console does not answer.
    pub fn poolers_silent(&self) -> Vec<String> {
        let silent = self
            .poolers
            .iter()
            .filter(|pooler| pooler.state.answer().is_none());
        silent.map(|pooler| pooler.pod.clone()).collect()
    }

    /// Every workload of the application is scaled to 0.
    pub fn emptied(&self) -> bool {
        self.apps.values().all(|app| app.wanted == 0)
    }

    /// Workloads whose pods have not been told to end yet: their controller has not done it.
    pub fn living(&self) -> Option<Wait> {
        let living = self
            .apps
            .iter()
            .filter(|(_, app)| !app.followed || app.existing > 0);
        let workloads: Vec<String> = living.map(|(name, _)| name.clone()).collect();
        (!workloads.is_empty()).then_some(Wait::PodsNotTerminated { workloads })
    }

    /// Who does not answer, and why.
    pub fn unreachable(&self) -> Vec<ServerFailure> {
        let servers = [
            (Server::Source, self.source.failure()),
            (Server::Patroni, self.patroni.failure()),
            (Server::Target, self.target.failure()),
        ];
        let unreachable = |(server, failure): (Server, Option<&Failure>)| {
            let failure = failure?.clone();
            Some(ServerFailure { server, failure })
        };
        servers.into_iter().filter_map(unreachable).collect()
    }

    /// The rows that a server answered to a question of a check; None where it was not asked.
    pub fn answer(&self, question: Question) -> Option<&[String]> {
        let answers = &self.prechecks.as_ref()?.answers;
        answers.get(&question).map(Vec::as_slice)
    }

    /// Patroni's configuration holds our block.
    pub fn held(&self) -> Option<bool> {
        self.patroni.answer().map(|patroni| {
            patroni.paused == Some(true)
                && patroni.read_only.as_deref() == Some("on")
                && patroni.stops_on_crash()
        })
    }

    /// The application's Deployments, as wanted now.
    pub fn wanted(&self) -> BTreeMap<String, i32> {
        self.apps
            .iter()
            .map(|(name, replicas)| (name.clone(), replicas.wanted))
            .collect()
    }

    /// A server of the source that runs as a primary, by its own word or by Patroni's.
    pub fn source_primary(&self) -> Option<SourcePrimary> {
        if self.source.answer().is_some_and(|source| source.primary) {
            return Some(SourcePrimary::Session);
        }
        self.patroni
            .answer()
            .and_then(|patroni| patroni.primaries.first().cloned())
            .map(SourcePrimary::Member)
    }
}
