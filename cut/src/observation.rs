//! What one look at the world shows. No clock and no I/O here: the time of the look is part of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use shared::{
    kubernetes::{workloads::Replicas, zalando::FROZEN},
    postgres::{
        Identity, Lsn,
        source::Incarnation,
        target::{ControlCheckpoint, Replay, Running},
    },
    readiness::{Finding, Verdict},
};

use crate::journal::AppConfig;

/// One look at everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// When it was complete.
    pub now: Timestamp,
    /// The source's leader, by SQL.
    pub source: Sight<SourceSeen>,
    /// Patroni, by its REST API.
    pub patroni: Sight<PatroniSeen>,
    /// The CR's annotation `acid.zalan.do/controller`.
    pub controller: Option<String>,
    /// The target, by SQL.
    pub target: Sight<TargetSeen>,
    /// `spec.replica.enabled` of the Cluster.
    pub follows: bool,
    /// The application's Deployments.
    pub apps: BTreeMap<String, Replicas>,
    /// The application's ConfigMap.
    pub config: AppConfig,
    /// What validate-replication would say; looked at only until the block, because only then it can still be heeded.
    pub readiness: Vec<Finding>,
    /// Somebody wants it stopped: SIGTERM or the abort annotation.
    pub abort: Option<String>,
}

/// A server that answers, or the reason why it does not.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight<T> {
    /// It answered.
    Answers(T),
    /// It did not, within the limit of a look.
    Silent(String),
}

impl<T> Sight<T> {
    /// Why it did not answer.
    pub fn silence(&self) -> Option<&str> {
        match self {
            Self::Answers(_) => None,
            Self::Silent(why) => Some(why),
        }
    }

    /// What it answered.
    pub fn answer(&self) -> Option<&T> {
        match self {
            Self::Answers(seen) => Some(seen),
            Self::Silent(_) => None,
        }
    }
}

/// The source by SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSeen {
    /// Who it is.
    pub identity: Identity,
    /// It is not in recovery.
    pub primary: bool,
    /// New transactions are read-only unless they ask otherwise.
    pub read_only: bool,
    /// End of the WAL inserted; None on a standby.
    pub insert: Option<Lsn>,
    /// This run of its server.
    pub incarnation: Incarnation,
    /// Client sessions by `role application address`.
    pub clients: Vec<String>,
}

/// Patroni by REST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniSeen {
    /// `pause` in the dynamic configuration.
    pub paused: Option<bool>,
    /// `postgresql.parameters.default_transaction_read_only` there.
    pub read_only: Option<String>,
    /// The member whose pod carries the leader label.
    pub leader: Option<String>,
    /// Members whose server runs as a primary, by their own word.
    pub primaries: Vec<String>,
    /// Members whose own REST API did not answer.
    pub silent: Vec<String>,
}

/// The target by SQL.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSeen {
    /// Who it is.
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
}

impl Observation {
    /// Deployments that have fewer ready pods than they had.
    pub fn not_ready(&self, replicas: &BTreeMap<String, i32>) -> Option<String> {
        let missing: Vec<String> = replicas
            .iter()
            .filter_map(|(name, wanted)| {
                let ready = self.apps.get(name).map_or(0, |app| app.ready);
                (ready < *wanted).then(|| format!("{name} {ready}/{wanted}"))
            })
            .collect();
        (!missing.is_empty()).then(|| format!("waiting for pods: {}", missing.join(", ")))
    }

    /// The Zalando operator leaves the CR alone.
    pub fn operator_frozen(&self) -> bool {
        self.controller.as_deref() == Some(FROZEN)
    }

    /// Who does not answer, and why.
    pub fn silent(&self) -> String {
        let sides = [
            ("source", self.source.silence()),
            ("patroni", self.patroni.silence()),
            ("target", self.target.silence()),
        ];
        let said: Vec<String> = sides
            .into_iter()
            .filter_map(|(name, why)| Some(format!("{name}: {}", why?)))
            .collect();
        said.join("; ")
    }

    /// The gravest finding that stands against beginning a cut now.
    pub fn against(&self) -> Option<&Finding> {
        let standing = self.readiness.iter().filter(|finding| finding.verdict > Verdict::Warning);
        standing.rev().max_by_key(|finding| finding.verdict)
    }

    /// Patroni's configuration holds our block.
    pub fn held(&self) -> Option<bool> {
        self.patroni
            .answer()
            .map(|patroni| patroni.paused == Some(true) && patroni.read_only.as_deref() == Some("on"))
    }

    /// The application's Deployments, as wanted now.
    pub fn wanted(&self) -> BTreeMap<String, i32> {
        self.apps.iter().map(|(name, replicas)| (name.clone(), replicas.wanted)).collect()
    }

    /// A server of the source that runs as a primary, by its own word or by Patroni's.
    pub fn source_primary(&self) -> Option<String> {
        if self.source.answer().is_some_and(|source| source.primary) {
            return Some("the source's Service".into());
        }
        self.patroni.answer().and_then(|patroni| patroni.primaries.first().cloned())
    }
}
