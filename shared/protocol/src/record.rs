//! The record of a cutover: the facts that cannot be observed again, one key each in the ConfigMap
//! `cutover-<cluster>`. A key that is present means that the fact is established.
//!
//! [`facts`](self) holds the data of each fact, [`keys`] the form in the ConfigMap and the schema.

mod facts;
pub mod keys;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

pub use facts::{
    AppConfig, Fenced, Manifest, Marker, Promoted, Promotion, Readers, RollbackStarted, Start,
};
pub use keys::SCHEMA;

/// Name of the record of the cutover to this target.
pub fn name(target: &str) -> String {
    format!("cutover-{target}")
}

/// Name of the receipt that the cutover leaves.
pub fn receipt_name(target: &str) -> String {
    format!("{}-receipt", name(target))
}

/// Labels of everything that the programs create, so that it can be listed and removed.
pub fn labels() -> BTreeMap<String, String> {
    [(
        "app.kubernetes.io/managed-by".to_owned(),
        "replica-migration".to_owned(),
    )]
    .into()
}

/// All facts. A key is written once and never removed, until a rolled-back attempt is followed by a
/// new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Record {
    /// The schema that it was begun with; see [`SCHEMA`].
    #[serde(default = "keys::schema_without_a_key")]
    pub schema: u32,
    /// The state before anything was changed.
    pub started: Option<Start>,
    /// The controllers that would revert the cutover were suspended.
    pub suspended: Option<Timestamp>,
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
    /// The stored manifest says `spec.replica.enabled: false`, or why it does not.
    pub manifest: Option<Manifest>,
    /// Sessions that still read from the source's standbys were ended.
    pub readers: Option<Readers>,
    /// The receipt is written; nothing is left to do.
    pub finished: Option<Timestamp>,
    /// The rollback is decided, and why. Excludes `promotion`.
    #[serde(rename = "going-back")]
    pub rollback_started: Option<RollbackStarted>,
    /// Everything is as it was before.
    #[serde(rename = "returned")]
    pub rolled_back: Option<Timestamp>,
    /// Written by an operator who wants a rollback: any text. Honoured until the promotion is
    /// recorded.
    #[serde(deserialize_with = "any_text")]
    pub abort: Option<String>,
}

impl Default for Record {
    /// No facts, in the present schema.
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            started: None,
            suspended: None,
            checkpointed: None,
            blocked: None,
            marker: None,
            fenced: None,
            promotion: None,
            promoted: None,
            routed: None,
            serving: None,
            manifest: None,
            readers: None,
            finished: None,
            rollback_started: None,
            rolled_back: None,
            abort: None,
        }
    }
}

/// `true` and `1` are read as JSON, and are texts all the same.
fn any_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

/// A fact to be added.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr, EnumDiscriminants)]
#[strum_discriminants(
    name(FactKind),
    derive(Hash, PartialOrd, Ord, VariantArray, IntoStaticStr),
    doc = "The facts without their data, in the order in which they are recorded."
)]
pub enum Fact {
    /// See [`Record::started`].
    Started(Box<Start>),
    /// See [`Record::suspended`].
    Suspended(Timestamp),
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
    /// See [`Record::manifest`].
    Manifest(Manifest),
    /// See [`Record::readers`].
    Readers(Readers),
    /// See [`Record::finished`].
    Finished(Timestamp),
    /// See [`Record::rollback_started`].
    RollbackStarted(RollbackStarted),
    /// See [`Record::rolled_back`].
    RolledBack(Timestamp),
    /// A new attempt after one that was rolled back: the record starts from scratch.
    StartOver,
}

impl Fact {
    /// Its name, without what it records.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// Its kind.
    pub fn kind(&self) -> FactKind {
        self.into()
    }
}

impl FactKind {
    /// Every kind, in the order in which they are recorded.
    pub const ALL: &'static [Self] = Self::VARIANTS;
}

impl Record {
    /// Whether a cutover has started and neither finished nor rolled back.
    pub fn under_way(&self) -> bool {
        self.started.is_some() && self.finished.is_none() && self.rolled_back.is_none()
    }

    /// Whether the promotion is recorded: from then on the cutover only goes forward.
    pub fn past_point_of_no_return(&self) -> bool {
        self.promotion.is_some()
    }

    /// When a fact was established; None when it is not on record.
    pub fn instant(&self, fact: FactKind) -> Option<Timestamp> {
        match fact {
            FactKind::Started => self.started.as_ref().map(|start| start.at),
            FactKind::Suspended => self.suspended,
            FactKind::Checkpointed => self.checkpointed,
            FactKind::Blocked => self.blocked,
            FactKind::Marker => self.marker.as_ref().map(|marker| marker.at),
            FactKind::Fenced => self.fenced.as_ref().map(|fenced| fenced.at),
            FactKind::Promotion => self.promotion.as_ref().map(|promotion| promotion.at),
            FactKind::Promoted => self.promoted.as_ref().map(|promoted| promoted.at),
            FactKind::Routed => self.routed,
            FactKind::Serving => self.serving,
            FactKind::Manifest => self.manifest.as_ref().map(|manifest| manifest.at),
            FactKind::Readers => self.readers.as_ref().map(|readers| readers.at),
            FactKind::Finished => self.finished,
            FactKind::RollbackStarted => self.rollback_started.as_ref().map(|begun| begun.at),
            FactKind::RolledBack => self.rolled_back,
            FactKind::StartOver => None,
        }
    }

    /// The last fact on record; None when nothing is recorded.
    pub fn last(&self) -> Option<FactKind> {
        let established = |fact: &&FactKind| self.instant(**fact).is_some();
        FactKind::ALL.iter().rev().find(established).copied()
    }

    /// The record with one more fact.
    #[must_use]
    pub fn with(&self, fact: Fact) -> Self {
        let mut next = self.clone();
        match fact {
            Fact::Started(start) => (next.started, next.schema) = (Some(*start), SCHEMA),
            Fact::Suspended(at) => next.suspended = Some(at),
            Fact::Checkpointed(at) => next.checkpointed = Some(at),
            Fact::Blocked(at) => next.blocked = Some(at),
            Fact::Marker(marker) => next.marker = Some(marker),
            Fact::Fenced(fenced) => next.fenced = Some(fenced),
            Fact::Promotion(promotion) => next.promotion = Some(promotion),
            Fact::Promoted(promoted) => next.promoted = Some(promoted),
            Fact::Routed(at) => next.routed = Some(at),
            Fact::Serving(at) => next.serving = Some(at),
            Fact::Manifest(manifest) => next.manifest = Some(manifest),
            Fact::Readers(readers) => next.readers = Some(readers),
            Fact::Finished(at) => next.finished = Some(at),
            Fact::RollbackStarted(begun) => next.rollback_started = Some(begun),
            Fact::RolledBack(at) => next.rolled_back = Some(at),
            Fact::StartOver => next = Self::default(),
        }
        next
    }
}

#[cfg(test)]
pub mod tests;
