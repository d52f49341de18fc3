//! The Cluster's status as CNPG reports it: phases, conditions, and the instance's report.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::retry::until_answered;

/// Phases (api/v1/cluster_types.go:699) with their reasons, in the order of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The clone is not finished, or never will be.
    SettingUpPrimary,
    /// The pod exists, but its server does not answer, or never will.
    WaitingForInstances,
    /// A further instance is being copied.
    CreatingReplica,
    /// The server answers. Implies nothing about replication.
    Healthy,
    /// A reload was not enough for the new configuration.
    ApplyingConfiguration,
    /// The server is being restarted.
    RestartingInPlace,
    /// The server was restarted.
    RestartedInPlace,
    /// A Cluster that is not imitated.
    Unrecoverable,
}

impl Phase {
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::SettingUpPrimary => ("Setting up primary", "Creating primary instance"),
            Self::WaitingForInstances => (
                "Waiting for the instances to become active",
                "Some instances are not yet active. Please wait.",
            ),
            Self::CreatingReplica => ("Creating a new replica", "Creating replica"),
            Self::Healthy => (HEALTHY, ""),
            Self::ApplyingConfiguration => {
                ("Applying configuration", "PostgreSQL configuration changed")
            }
            Self::RestartingInPlace => (
                "Primary instance is being restarted in-place",
                "Postgres needs a restart to apply some configuration changes",
            ),
            Self::RestartedInPlace => (HEALTHY, "Primary instance restarted in-place"),
            Self::Unrecoverable => (
                "Cluster is unrecoverable and needs manual intervention",
                "not imitated by the harness",
            ),
        }
    }
}

const HEALTHY: &str = "Cluster in healthy state";

/// The status that an instance reports (`/pg/status`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the server is out of recovery.
    pub is_primary: bool,
    /// Its timeline.
    pub timeline: i32,
    /// pg_control's system identifier.
    pub system_identifier: String,
}

/// Writes the status of one Cluster, for one of its instances.
#[derive(Clone)]
pub struct Status {
    api: Api<Cluster>,
    cluster: String,
    instance: String,
    shared: Arc<Mutex<Shared>>,
}

/// What all instances of a Cluster write together.
#[derive(Default)]
struct Shared {
    conditions: BTreeMap<&'static str, Condition>,
    instances: BTreeSet<String>,
    ready: BTreeSet<String>,
}

#[derive(Clone, PartialEq)]
struct Condition {
    status: &'static str,
    reason: &'static str,
    message: String,
    since: String,
}

impl Status {
    /// The status of the Cluster, written for its first instance.
    pub fn new(api: Api<Cluster>, cluster: &str, instance: &str) -> Self {
        Self {
            api,
            cluster: cluster.to_owned(),
            instance: instance.to_owned(),
            shared: Arc::default(),
        }
    }

    /// The same status, written for another instance.
    pub fn of(&self, instance: &str) -> Self {
        Self {
            instance: instance.to_owned(),
            ..self.clone()
        }
    }

    /// True if this instance is ready.
    pub fn is_ready(&self, instance: &str) -> bool {
        self.shared().ready.contains(instance)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first entries, before there is an instance.
    pub async fn begin(&self, image: &str) -> Result<()> {
        self.condition(
            "Initialized",
            "False",
            "BootstrapPending",
            "Cluster has not been bootstrapped yet",
        );
        let name = &self.cluster;
        let certificates = json!({
            "serverCASecret": format!("{name}-ca"), "clientCASecret": format!("{name}-ca"),
            "serverTLSSecret": format!("{name}-server"),
            "replicationTLSSecret": format!("{name}-replication")
        });
        let (write, read) = (format!("{name}-rw"), format!("{name}-r"));
        let now = jiff::Timestamp::now().to_string();
        self.write(json!({
            "image": image, "certificates": certificates, "writeService": write,
            "readService": read, "targetPrimary": self.instance, "targetPrimaryTimestamp": now
        }))
        .await
    }

    /// The instance's pod exists.
    pub async fn bootstrapped(&self) -> Result<()> {
        self.condition(
            "Initialized",
            "True",
            "BootstrapCompleted",
            "Cluster has been bootstrapped",
        );
        let instances: Vec<String> = {
            let mut shared = self.shared();
            shared.instances.insert(self.instance.clone());
            shared.instances.iter().cloned().collect()
        };
        self.write(json!({"instances": instances.len(), "instanceNames": instances}))
            .await
    }

    /// The instance has become the primary or the designated one.
    pub async fn current_primary(&self) -> Result<()> {
        let now = jiff::Timestamp::now().to_string();
        self.write(json!({"currentPrimary": self.instance, "currentPrimaryTimestamp": now}))
            .await
    }

    /// This instance is to become it.
    pub async fn target_primary(&self, instance: &str) -> Result<()> {
        let now = jiff::Timestamp::now().to_string();
        self.write(json!({"targetPrimary": instance, "targetPrimaryTimestamp": now}))
            .await
    }

    /// Another primary is to be elected.
    pub async fn failing_over(&self, from: &str) -> Result<()> {
        let reason = format!("Initiating a failover from {from}");
        self.write(json!({"phase": "Failing over", "phaseReason": reason}))
            .await?;
        self.target_primary("pending").await
    }

    /// Sets the phase, its reason and the condition Ready.
    pub async fn phase(&self, phase: Phase) -> Result<()> {
        let (text, reason) = phase.texts();
        if text == HEALTHY {
            self.condition("Ready", "True", "ClusterIsReady", "Cluster is Ready");
        } else {
            self.condition(
                "Ready",
                "False",
                "ClusterIsNotReady",
                "Cluster Is Not Ready",
            );
        }
        let named = if matches!(phase, Phase::SettingUpPrimary | Phase::CreatingReplica) {
            format!("{reason} {}", self.instance)
        } else {
            reason.to_owned()
        };
        self.write(json!({"phase": text, "phaseReason": named}))
            .await
    }

    /// Sets whether the instance is ready.
    pub async fn ready(&self, ready: bool) -> Result<()> {
        let (healthy, others) = {
            let mut shared = self.shared();
            if ready {
                shared.ready.insert(self.instance.clone());
            } else {
                shared.ready.remove(&self.instance);
            }
            let others = shared.instances.difference(&shared.ready);
            (shared.ready.clone(), others.cloned().collect::<Vec<_>>())
        };
        self.write(json!({
            "readyInstances": healthy.len(),
            "instancesStatus": {"healthy": healthy, "replicating": others}
        }))
        .await
    }

    /// Writes the instance's report. The Cluster's timeline is set from a primary only
    /// (cluster_status.go:771).
    pub async fn report(&self, ip: &str, report: &Report) -> Result<()> {
        self.condition(
            "ConsistentSystemID",
            "True",
            "Unique",
            "A single, unique system ID was found across reporting instances.",
        );
        let state =
            json!({"isPrimary": report.is_primary, "timeLineID": report.timeline, "ip": ip});
        let mut status = json!({
            "systemID": report.system_identifier,
            "instancesReportedState": {self.instance.as_str(): state}
        });
        if report.is_primary {
            status["timelineID"] = json!(report.timeline);
        }
        self.write(status).await
    }

    /// Sets the condition ContinuousArchiving after a segment was archived.
    pub async fn archives(&self) -> Result<()> {
        self.condition(
            "ContinuousArchiving",
            "True",
            "ContinuousArchivingSuccess",
            "Continuous archiving is working",
        );
        self.write(json!({})).await
    }

    /// Sets a condition; the transition time changes with the status only, as Kubernetes requires.
    fn condition(
        &self,
        kind: &'static str,
        status: &'static str,
        reason: &'static str,
        message: &str,
    ) {
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let mut shared = self.shared();
        let since = shared
            .conditions
            .get(kind)
            .filter(|old| old.status == status)
            .map_or(now, |old| old.since.clone());
        shared.conditions.insert(
            kind,
            Condition {
                status,
                reason,
                message: message.to_owned(),
                since,
            },
        );
    }

    async fn write(&self, mut status: Value) -> Result<()> {
        let condition = |(kind, condition): (&&str, &Condition)| {
            json!({
                "type": kind, "status": condition.status, "reason": condition.reason,
                "message": condition.message, "lastTransitionTime": condition.since
            })
        };
        status["conditions"] = self.shared().conditions.iter().map(condition).collect();
        let patch = Patch::Merge(json!({"status": status}));
        let params = PatchParams::default();
        let written =
            until_answered(|| self.api.patch_status(&self.cluster, &params, &patch)).await;
        written
            .map(drop)
            .with_context(|| format!("writing the status of the Cluster {}", self.cluster))
    }
}
