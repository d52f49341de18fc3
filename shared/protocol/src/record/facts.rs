//! What the facts of the record hold.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    controllers::{owners::GitOpsManaged, suspension::Suspension},
    route::Route,
    snapshot::{
        kubernetes::{Selector, StoredManifest},
        source::PostmasterStart,
    },
    wal::{Identity, Lsn, Timeline},
};

/// How things stood at the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// When.
    pub at: Timestamp,
    /// The source.
    pub source: Identity,
    /// Patroni's member that was leader.
    pub leader: String,
    /// The target, a physical copy of it.
    pub target: Identity,
    /// The target must restart once after its promotion, because its archive_mode is `always`
    /// (docs/operators/cloudnative-pg.md#restart-after-promotion).
    #[serde(alias = "target_owes_restart")]
    pub target_pending_restart: bool,
    /// How the application is brought to the target.
    pub route: Route,
    /// Replica counts of the application's workloads.
    pub replicas: BTreeMap<String, i32>,
    /// Name of the application's ConfigMap, and the keys that will be changed with the values they
    /// had (None: absent).
    pub config: AppConfig,
    /// The selectors of the source's Services (None: it has none, Patroni writes its Endpoints).
    pub services: BTreeMap<String, Option<Selector>>,
    /// The controllers that would revert the cutover while it runs, with the values that their
    /// fields had.
    #[serde(alias = "freezes")]
    pub suspensions: Vec<Suspension>,
    /// The objects whose change is permanent, where a GitOps controller applies them from
    /// elsewhere: what it applies must be changed there, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managed: Vec<GitOpsManaged>,
    /// Patroni's own `pause`.
    pub paused: Option<bool>,
    /// Patroni's own `default_transaction_read_only`.
    pub read_only: Option<String>,
    /// Patroni's own `restart_after_crash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_after_crash: Option<String>,
    /// Findings that the user has decided to live with, by ACCEPT or by starting the cutover, each
    /// as `id:object: what was found`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<String>,
}

/// The application's ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppConfig {
    /// Its name, with kustomize's hash.
    pub name: String,
    /// The keys of APP_CONFIG_TARGET and their values.
    pub values: BTreeMap<String, Option<String>>,
}

/// The source's position after the block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// When it was read.
    pub at: Timestamp,
    /// Nothing acknowledged before lies behind it.
    pub lsn: Lsn,
    /// Client sessions that were ended just before, as `role application address`.
    pub sessions_ended: Vec<String>,
}

/// The server that is to be stopped. Recorded again when it was started again in between: its
/// shutdown checkpoint must then be a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fenced {
    /// When this was decided.
    pub at: Timestamp,
    /// End of the WAL that it had written; its shutdown checkpoint lies behind it.
    pub lsn: Lsn,
    /// When its postmaster started: a stop that arrives late must not hit a newer one.
    #[serde(alias = "incarnation")]
    pub postmaster_start: PostmasterStart,
    /// Clients that had reconnected since their sessions were ended.
    #[serde(alias = "stragglers")]
    pub reconnected: Vec<String>,
}

/// The point of no return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// When it was recorded.
    pub at: Timestamp,
    /// Start of the source's shutdown checkpoint record.
    pub shutdown_checkpoint: Lsn,
    /// Where the target's replay stood: the end of that record.
    pub replayed: Lsn,
    /// The timeline that both were on.
    pub timeline: Timeline,
    /// The target's own clock, to compare its postmaster's start with.
    pub target_clock: Timestamp,
}

/// The target serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// When a write was verified.
    pub at: Timestamp,
    /// The new timeline: the source's plus one.
    pub timeline: Timeline,
}

/// The stored manifest of the target once the application is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was seen so.
    pub at: Timestamp,
    /// The ConfigMap that holds it, or would.
    pub config_map: String,
    /// What it means for the promoted Cluster.
    pub found: StoredManifest,
}

/// Sessions that still read from the source's standbys after the cutover: each as
/// `role application address`, as far as the standbys answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readers {
    /// When they were found.
    pub at: Timestamp,
    /// Those that were ended, because the repointed Services lead their clients to the target.
    pub ended: Vec<String>,
    /// Those that were left, because their clients would only come back: no Service was repointed.
    #[serde(default)]
    pub left: Vec<String>,
}

/// Why the cutover rolls back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackStarted {
    /// When it was decided.
    pub at: Timestamp,
    /// The text of a [`RollbackReason`](crate::reason::RollbackReason).
    pub reason: String,
}
