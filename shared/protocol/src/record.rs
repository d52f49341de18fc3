//! The facts of a cutover that cannot be observed again, a key each in the ConfigMap
//! `cutover-<cluster>`; present means done.

use std::collections::BTreeMap;

use crate::{
    route::Route,
    snapshot::{kubernetes::Selector, source::PostmasterStart},
    wal::{Identity, Lsn, Timeline},
};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use strum::IntoStaticStr;

use crate::controllers::suspension::Suspension;

/// Name of the record of the cut to this target.
pub fn name(target: &str) -> String {
    format!("cutover-{target}")
}

/// Name of the receipt that it leaves.
pub fn receipt_name(target: &str) -> String {
    format!("{}-receipt", name(target))
}

/// Labels of everything that the programs create, so that a person can list and remove it.
pub fn labels() -> BTreeMap<String, String> {
    [(
        "app.kubernetes.io/managed-by".to_owned(),
        "replica-migration".to_owned(),
    )]
    .into()
}

/// All facts. A key is written once and never removed, until an attempt that went back is followed
/// by a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Record {
    /// How things stood before anything was changed.
    pub started: Option<Start>,
    /// Checkpoints were taken on both sides, so that those in the downtime are short.
    pub checkpointed: Option<Timestamp>,
    /// Writes at the source are about to be blocked: the downtime begins, and the deadline runs.
    pub blocked: Option<Timestamp>,
    /// Position of the source after the block, and after the client sessions were ended.
    pub marker: Option<Marker>,
    /// The source's server is about to be stopped.
    pub fenced: Option<Fenced>,
    /// The promotion is requested: the point of no return, with the proof that allowed it.
    pub promotion: Option<Promotion>,
    /// The target is a primary, its restart is over, and it took a write.
    pub promoted: Option<Promoted>,
    /// The application points to the target; by its ConfigMap while none of its pods was wanted, or
    /// by the Services.
    pub routed: Option<Timestamp>,
    /// The application works on the target, its pods ready or its poolers resumed: the downtime is
    /// over.
    pub serving: Option<Timestamp>,
    /// Sessions that still read from the source's standbys were ended.
    pub readers: Option<Readers>,
    /// The receipt is written; nothing is left to do.
    pub finished: Option<Timestamp>,
    /// It was decided to go back, and why. Excludes `promotion`.
    #[serde(rename = "going-back")]
    pub rollback_started: Option<RollbackStarted>,
    /// Everything is as it was before.
    #[serde(rename = "returned")]
    pub rolled_back: Option<Timestamp>,
    /// Written by a person who wants it to go back: any text. Heeded until the promotion is
    /// recorded.
    #[serde(deserialize_with = "any_text")]
    pub abort: Option<String>,
}

/// A person writes what comes to mind: `true` and `1` read as JSON, and are texts all the same.
fn any_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

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
    /// (facts/cnpg.md §2.3).
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
    /// Who would undo the cut while it runs, with the values that their fields had.
    #[serde(alias = "freezes")]
    pub suspensions: Vec<Suspension>,
    /// Patroni's own `pause`.
    pub paused: Option<bool>,
    /// Patroni's own `default_transaction_read_only`.
    pub read_only: Option<String>,
    /// Findings that the user has accepted (ACCEPT), each as `id:object: what was found`.
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

/// The server that is to be stopped. Written anew when it was started again in between: its
/// shutdown checkpoint must then be a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fenced {
    /// When this was decided.
    pub at: Timestamp,
    /// End of the WAL that it had written; its shutdown checkpoint lies behind it.
    pub lsn: Lsn,
    /// The run of the server that is meant: a stop that comes late must not hit another.
    #[serde(alias = "incarnation")]
    pub postmaster_start: PostmasterStart,
    /// Clients that had come back since their sessions were ended.
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
    /// When a write was proved.
    pub at: Timestamp,
    /// The new timeline: the source's plus one.
    pub timeline: Timeline,
}

/// Who still read from the source's standbys after the cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readers {
    /// When they were ended.
    pub at: Timestamp,
    /// `role application address`, as far as the standbys answered.
    pub ended: Vec<String>,
}

/// Why the way back was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackStarted {
    /// When it was decided.
    pub at: Timestamp,
    /// The text of a [`RollbackReason`](crate::reason::RollbackReason).
    pub reason: String,
}

/// A fact to be added.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr)]
pub enum Fact {
    /// See [`Record::started`].
    Started(Box<Start>),
    /// See [`Record::checkpointed`].
    Checkpointed(Timestamp),
    /// See [`Record::blocked`].
    Blocked(Timestamp),
    /// See [`Record::marker`].
    Marker(Marker),
    /// See [`Record::fenced`].
    Fenced(Fenced),
    /// See [`Record::promotion`].
    Promotion(Promotion),
    /// See [`Record::promoted`].
    Promoted(Promoted),
    /// See [`Record::routed`].
    Routed(Timestamp),
    /// See [`Record::serving`].
    Serving(Timestamp),
    /// See [`Record::readers`].
    Readers(Readers),
    /// See [`Record::finished`].
    Finished(Timestamp),
    /// See [`Record::rollback_started`].
    RollbackStarted(RollbackStarted),
    /// See [`Record::returned`].
    RolledBack(Timestamp),
    /// A new attempt after one that went back: the record begins anew.
    StartOver,
}

impl Fact {
    /// Its name, without what it records.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// The instant that it records.
    pub fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Started(start) => Some(start.at),
            Self::Marker(marker) => Some(marker.at),
            Self::Fenced(fenced) => Some(fenced.at),
            Self::Promotion(promotion) => Some(promotion.at),
            Self::Promoted(promoted) => Some(promoted.at),
            Self::Readers(readers) => Some(readers.at),
            Self::RollbackStarted(back) => Some(back.at),
            Self::Checkpointed(at)
            | Self::Blocked(at)
            | Self::Routed(at)
            | Self::Serving(at)
            | Self::Finished(at)
            | Self::RolledBack(at) => Some(*at),
            Self::StartOver => None,
        }
    }
}

impl Record {
    /// Past the point of no return there is only forward.
    pub fn past_point_of_no_return(&self) -> bool {
        self.promotion.is_some()
    }

    /// The journal with one more fact.
    #[must_use]
    pub fn with(&self, fact: Fact) -> Self {
        let mut next = self.clone();
        match fact {
            Fact::Started(start) => next.started = Some(*start),
            Fact::Checkpointed(at) => next.checkpointed = Some(at),
            Fact::Blocked(at) => next.blocked = Some(at),
            Fact::Marker(marker) => next.marker = Some(marker),
            Fact::Fenced(fenced) => next.fenced = Some(fenced),
            Fact::Promotion(promotion) => next.promotion = Some(promotion),
            Fact::Promoted(promoted) => next.promoted = Some(promoted),
            Fact::Routed(at) => next.routed = Some(at),
            Fact::Serving(at) => next.serving = Some(at),
            Fact::Readers(readers) => next.readers = Some(readers),
            Fact::Finished(at) => next.finished = Some(at),
            Fact::RollbackStarted(back) => next.rollback_started = Some(back),
            Fact::RolledBack(at) => next.rolled_back = Some(at),
            Fact::StartOver => next = Self::default(),
        }
        next
    }
}
