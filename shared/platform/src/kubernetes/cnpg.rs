//! CloudNativePG's Cluster, with the fields that the programs read or write
//! (docs/operators/cloudnative-pg.md#cluster-fields).

use std::collections::BTreeMap;

use kube::{Api, Client, CustomResource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use job::error::Result;
use protocol::snapshot::kubernetes::{ClusterState, SuperuserAccess};

/// The part of `spec` that the programs read. prepare-zalando renders the manifest from a text
/// template.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "postgresql.cnpg.io",
    version = "v1",
    kind = "Cluster",
    namespaced,
    status = "ClusterStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Requested number of instances.
    #[serde(default)]
    pub instances: u32,
    /// Replica mode; setting `enabled: false` promotes the Cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaMode>,
    /// Origin of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Connections to other servers, the source among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_clusters: Vec<ExternalCluster>,
    /// Settings of PostgreSQL.
    #[serde(default)]
    pub postgresql: PostgresConfiguration,
    /// When it is false, the promotion removes the superuser's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_superuser_access: Option<bool>,
    /// Secret with the superuser's password; without it CNPG generates another password at the
    /// promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superuser_secret: Option<SecretName>,
    /// Backups without a plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// Plugins, one of which may archive WAL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<Plugin>,
}

/// `spec.backup`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The object store, as CloudNativePG reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barman_object_store: Option<Value>,
}

/// An entry of `spec.plugins`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// It is used; None is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// It archives WAL.
    #[serde(
        default,
        rename = "isWALArchiver",
        skip_serializing_if = "Option::is_none"
    )]
    pub is_wal_archiver: Option<bool>,
}

impl ClusterSpec {
    /// What archives WAL and takes backups. Without it archive_command succeeds and keeps nothing
    /// (`internalRun` in CloudNativePG's pkg/management/postgres/archiver/archiver.go).
    pub fn wal_archiver(&self) -> Option<String> {
        let archives = |plugin: &&Plugin| {
            plugin.enabled != Some(false) && plugin.is_wal_archiver == Some(true)
        };
        let plugin = self.plugins.iter().find(archives);
        let store = self.backup.as_ref();
        let store = store.and_then(|backup| backup.barman_object_store.as_ref());
        plugin
            .map(|plugin| format!("plugin {}", plugin.name))
            .or_else(|| store.map(|_| "spec.backup.barmanObjectStore".to_owned()))
    }
}

/// A reference to a Secret of the same namespace.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SecretName {
    /// Its name.
    pub name: String,
}

/// `spec.bootstrap`, whose keys are not in camelCase.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bootstrap {
    /// Bootstrap by a physical copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pg_basebackup: Option<PgBaseBackup>,
}

/// `spec.bootstrap.pg_basebackup`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PgBaseBackup {
    /// The role whose password CNPG sets at the promotion.
    #[serde(default)]
    pub owner: String,
}

/// `spec.replica`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaMode {
    /// Name of the external cluster that the Cluster follows.
    #[serde(default)]
    pub source: String,
    /// True while the Cluster follows the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// An entry of `spec.externalClusters`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalCluster {
    /// Its name.
    pub name: String,
    /// Connection parameters of libpq: host, port, user, sslmode, …
    #[serde(default)]
    pub connection_parameters: BTreeMap<String, String>,
}

/// `spec.postgresql`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresConfiguration {
    /// Names and values of settings, all as text.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

/// The part of `status` that the programs read. CNPG's phase says nothing about replication
/// (docs/operators/cloudnative-pg.md#phase).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// CNPG's description of its state, for logs.
    #[serde(default)]
    pub phase: String,
    /// The reason for the phase, for logs.
    #[serde(default)]
    pub phase_reason: String,
    /// Pod of the primary, or of the designated primary.
    #[serde(default)]
    pub current_primary: String,
    /// Pod that is to be it.
    #[serde(default)]
    pub target_primary: String,
    /// Names of the instances by their state: healthy, replicating, failed.
    #[serde(default)]
    pub instances_status: BTreeMap<String, Vec<String>>,
    /// Number of instances that are ready.
    #[serde(default)]
    pub ready_instances: u32,
    /// System identifier of the data, as text.
    #[serde(default, rename = "systemID")]
    pub system_id: String,
    /// Timeline; None until a promotion.
    #[serde(default, rename = "timelineID")]
    pub timeline_id: Option<u32>,
}

impl Cluster {
    /// Returns true while the Cluster follows a source.
    pub fn follows(&self) -> bool {
        self.spec
            .replica
            .as_ref()
            .is_some_and(|replica| replica.enabled == Some(true))
    }

    /// The role whose password CNPG sets at the promotion; empty when the manifest names none.
    pub fn owner(&self) -> String {
        let copied = self
            .spec
            .bootstrap
            .clone()
            .and_then(|bootstrap| bootstrap.pg_basebackup);
        copied.unwrap_or_default().owner
    }

    /// The state that the checks before a cutover read.
    pub fn state(&self) -> ClusterState {
        let annotation = |name: &str| self.annotations().get(name);
        let mut status = self.status.clone().unwrap_or_default();
        ClusterState {
            name: self.name_any(),
            missing: false,
            follows: self.follows(),
            instances: self.spec.instances,
            ready_instances: status.ready_instances,
            ready: status
                .instances_status
                .remove("healthy")
                .unwrap_or_default(),
            current_primary: status.current_primary,
            target_primary: status.target_primary,
            phase: status.phase,
            skip_wal_archiving: annotation("cnpg.io/skipWalArchiving")
                .is_some_and(|value| value == "enabled"),
            fenced: annotation("cnpg.io/fencedInstances")
                .filter(|value| value.trim() != "[]")
                .cloned(),
            superuser: self.superuser(),
            wal_archiver: self.spec.wal_archiver(),
        }
    }

    /// The settings that decide whether the superuser can log in after the promotion.
    fn superuser(&self) -> SuperuserAccess {
        SuperuserAccess {
            enabled: self.spec.enable_superuser_access == Some(true),
            secret: self
                .spec
                .superuser_secret
                .as_ref()
                .map(|secret| secret.name.clone()),
        }
    }
}

/// The API of a namespace's Clusters.
pub fn clusters(client: &Client, namespace: &str) -> Api<Cluster> {
    Api::namespaced(client.clone(), namespace)
}

/// Requests the promotion of the designated primary. CNPG does not check that the source's last WAL
/// has arrived; the caller must have verified it.
pub async fn promote(clusters: &Api<Cluster>, name: &str) -> Result<()> {
    job::kubernetes::merge(clusters, name, promotion())
        .await
        .map(drop)
}

/// Asks the API server whether it would accept [`promote`]; nothing changes.
pub async fn try_promote(clusters: &Api<Cluster>, name: &str) -> Result<()> {
    job::kubernetes::try_merge(clusters, name, promotion()).await
}

fn promotion() -> Value {
    json!({"spec": {"replica": {"enabled": false}}})
}
