//! Zalando's `postgresql` resource, and the names and labels that its operator gives to objects
//! (docs/operators/zalando.md#the-postgresql-resource,
//! docs/operators/zalando.md#objects-and-labels).

use std::collections::BTreeMap;

use kube::{Api, Client, CustomResource, ResourceExt as _};
use protocol::controllers::suspension::{CONTROLLER, SUSPENDED};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The part of `spec` that the programs read.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "acid.zalan.do",
    version = "v1",
    kind = "postgresql",
    plural = "postgresqls",
    root = "Postgresql",
    namespaced,
    status = "PostgresqlStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlSpec {
    /// Requested number of members.
    #[serde(default)]
    pub number_of_instances: u32,
    /// Version and parameters.
    #[serde(default)]
    pub postgresql: PostgresqlParam,
    /// Secrets with the certificate and the CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Patroni's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patroni: Option<PatroniSpec>,
    /// Roles and their flags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, Option<Vec<String>>>,
    /// Databases and their owners.
    #[serde(default)]
    pub databases: BTreeMap<String, String>,
    /// Pooler in front of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_connection_pooler: Option<bool>,
    /// Pooler in front of the standbys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_replica_connection_pooler: Option<bool>,
    /// Settings of both poolers; for an absent one the operator's default holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pooler: Option<ConnectionPooler>,
    /// It follows another cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Value>,
    /// Of the members' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Value>,
    /// Of the members' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<Value>,
    /// Of the members' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_priority_class_name: Option<String>,
    /// Of the members' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
}

/// `spec.connectionPooler`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionPooler {
    /// `session` or `transaction`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Number of pods of each pooler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_of_instances: Option<u32>,
    /// Largest number of server connections of all pods of a pooler together.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "maxDBConnections"
    )]
    pub max_db_connections: Option<u32>,
}

/// `spec.postgresql`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PostgresqlParam {
    /// Major version, as text.
    #[serde(default)]
    pub version: String,
    /// Names and values of settings, all as text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

/// `spec.tls`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret of the server certificate.
    pub secret_name: String,
    /// Key of the certificate; tls.crt when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<String>,
    /// Key of the CA. Without it `ca_secret_name` has no effect (docs/operators/zalando.md#tls).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Secret of the CA; `secret_name` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_name: Option<String>,
}

/// `spec.patroni`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PatroniSpec {
    /// The whole pg_hba list; it replaces Spilo's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pg_hba: Option<Vec<String>>,
}

/// `status`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PostgresqlStatus {
    /// `Running`, `Updating`, …; may be stale.
    #[serde(default, rename = "PostgresClusterStatus")]
    pub cluster_status: String,
}

/// The API of a namespace's `postgresql` resources.
pub fn postgresqls(client: &Client, namespace: &str) -> Api<Postgresql> {
    Api::namespaced(client.clone(), namespace)
}

impl Postgresql {
    /// Returns true while the operator is suspended for this resource.
    pub fn is_suspended(&self) -> bool {
        self.annotations()
            .get(CONTROLLER)
            .is_some_and(|value| value == SUSPENDED)
    }
}

/// Name of the Secret that the operator creates for a role.
pub fn credentials_secret(cluster: &str, role: &str) -> String {
    format!(
        "{}.{cluster}.credentials.postgresql.acid.zalan.do",
        role.replace('_', "-")
    )
}

/// Label selector of the members' pods. It does not select the poolers' pods, which have some of
/// the same labels.
pub fn member_selector(cluster: &str) -> String {
    format!("application=spilo,cluster-name={cluster}")
}
