//! The imitated fields of Cluster and Pooler, and what follows from them. Pure.

use std::collections::BTreeMap;

use kube::{CustomResource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::setup::POSTGRES_MAJOR;

/// The annotation that patches the instances' pods.
pub const POD_PATCH: &str = "cnpg.io/podPatch";
/// The annotation that fences instances, or all (`["*"]`).
const FENCED: &str = "cnpg.io/fencedInstances";
/// The annotation that switches archive_mode off.
const SKIP_WAL_ARCHIVING: &str = "cnpg.io/skipWalArchiving";

/// `spec` of a Cluster.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "postgresql.cnpg.io",
    version = "v1",
    kind = "Cluster",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterSpec {
    /// Their number when the Cluster is created; a change is not imitated.
    pub instances: u32,
    /// The image; its tag carries PostgreSQL's version.
    pub image_name: String,
    /// If false, the superuser's password is set to NULL at promotion.
    pub enable_superuser_access: Option<bool>,
    /// The Secret of the superuser's password.
    pub superuser_secret: Option<Named>,
    /// Seconds that a shutdown waits for sessions to end.
    pub smart_shutdown_timeout: Option<u32>,
    /// Seconds for the whole shutdown.
    pub stop_delay: Option<u32>,
    /// How the first instance is created.
    pub bootstrap: Bootstrap,
    /// Replica mode.
    pub replica: Option<Replica>,
    /// Servers that the bootstrap and the replica mode refer to.
    pub external_clusters: Vec<ExternalCluster>,
    /// PostgreSQL's configuration.
    pub postgresql: Postgresql,
}

impl ClusterSpec {
    /// The major version of PostgreSQL, by the image's tag.
    pub fn major_version(&self) -> u32 {
        let tag = self.image_name.rsplit(':').next().unwrap_or_default();
        let digits: String = tag.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(POSTGRES_MAJOR)
    }
}

/// A reference to an object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// A reference to a key of a Secret.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct SecretKey {
    /// The Secret.
    pub name: String,
    /// The key in it.
    pub key: String,
}

/// `spec.bootstrap`; only `pg_basebackup` is imitated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Bootstrap {
    /// A physical copy of a running server.
    pub pg_basebackup: Option<PgBaseBackup>,
}

/// `spec.bootstrap.pg_basebackup`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PgBaseBackup {
    /// Name of the external cluster.
    pub source: String,
    /// The application's database.
    pub database: String,
    /// The database's owner, whose password is set at promotion.
    pub owner: String,
    /// The Secret of that password; without it one is generated.
    pub secret: Option<Named>,
}

/// `spec.replica`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Replica {
    /// Name of the external cluster that is followed.
    pub source: String,
    /// Overrides `primary` if set.
    pub enabled: Option<bool>,
    /// This Cluster's name in the distributed topology.
    #[serde(rename = "self")]
    pub own: String,
    /// The name of the primary in the distributed topology.
    pub primary: String,
    /// Not imitated: a Cluster with a token is not promoted.
    pub promotion_token: String,
}

/// An entry of `spec.externalClusters`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalCluster {
    /// Its name.
    pub name: String,
    /// libpq's parameters.
    pub connection_parameters: BTreeMap<String, String>,
    /// Client certificate.
    pub ssl_cert: Option<SecretKey>,
    /// Client key.
    pub ssl_key: Option<SecretKey>,
    /// CA certificates.
    pub ssl_root_cert: Option<SecretKey>,
    /// Password.
    pub password: Option<SecretKey>,
}

/// `spec.postgresql`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Postgresql {
    /// GUCs.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf between CNPG's own.
    pub pg_hba: Vec<String>,
    /// Lines at the end of pg_ident.conf.
    pub pg_ident: Vec<String>,
    /// Libraries besides those of managed extensions.
    pub shared_preload_libraries: Vec<String>,
    /// ALTER SYSTEM is off otherwise.
    #[serde(rename = "enableAlterSystem")]
    pub enable_alter_system: bool,
}

/// `spec` of a Pooler.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "postgresql.cnpg.io",
    version = "v1",
    kind = "Pooler",
    namespaced,
    schema = "disabled"
)]
#[serde(default)]
pub struct PoolerSpec {
    /// The Cluster behind the Pooler.
    pub cluster: Named,
    /// `rw`, `ro` or `r`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Cluster {
    /// CNPG's `IsReplica` (api/v1/cluster_funcs.go:1087): `enabled` decides if it is set; without
    /// the stanza the Cluster is no replica.
    pub fn is_replica(&self) -> bool {
        let Some(replica) = &self.spec.replica else {
            return false;
        };
        replica.enabled.unwrap_or_else(|| {
            let name = self.name_any();
            let own = if replica.own.is_empty() {
                &name
            } else {
                &replica.own
            };
            *own != replica.primary
        })
    }

    /// True if the fencing annotation names `instance`.
    pub fn is_fenced(&self, instance: &str) -> bool {
        let Some(annotation) = self.annotations().get(FENCED) else {
            return false;
        };
        let names: Vec<String> = serde_json::from_str(annotation).unwrap_or_default();
        names.iter().any(|name| name == "*" || name == instance)
    }

    /// archive_mode's value (pkg/postgres/configuration.go:737).
    pub fn archive_mode(&self) -> &'static str {
        if self
            .annotations()
            .get(SKIP_WAL_ARCHIVING)
            .is_some_and(|value| value == "enabled")
        {
            "off"
        } else if self.is_replica() {
            "always"
        } else {
            "on"
        }
    }

    /// The entry of `externalClusters` with this name.
    pub fn external(&self, name: &str) -> Option<&ExternalCluster> {
        self.spec
            .external_clusters
            .iter()
            .find(|external| external.name == name)
    }

    /// The Secret of the superuser's password; None if its login is disabled.
    pub fn superuser_secret(&self) -> Option<String> {
        let given = self
            .spec
            .superuser_secret
            .as_ref()
            .map(|secret| secret.name.clone());
        self.spec
            .enable_superuser_access
            .unwrap_or(false)
            .then(|| given.unwrap_or_else(|| format!("{}-superuser", self.name_any())))
    }

    /// The Secret of the application's owner (api/v1/cluster_funcs.go, `GetApplicationSecretName`).
    pub fn owner_secret(&self) -> String {
        let given = self
            .spec
            .bootstrap
            .pg_basebackup
            .as_ref()
            .and_then(|backup| backup.secret.as_ref());
        given.map_or_else(
            || format!("{}-app", self.name_any()),
            |secret| secret.name.clone(),
        )
    }

    /// True if a Secret for the owner must be generated: none is named, and this is a primary.
    pub fn generates_owner_password(&self) -> bool {
        let given = self
            .spec
            .bootstrap
            .pg_basebackup
            .as_ref()
            .and_then(|backup| backup.secret.as_ref());
        !self.is_replica() && given.is_none()
    }

    /// Seconds of smart shutdown before a fast one (180 by default; none if the stop delay is not
    /// longer).
    pub fn smart_shutdown_seconds(&self) -> u32 {
        let smart = self.spec.smart_shutdown_timeout.unwrap_or(180);
        if self.spec.stop_delay.unwrap_or(1_800) <= smart {
            0
        } else {
            smart
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(spec: serde_json::Value, annotations: serde_json::Value) -> Cluster {
        let object = json!({"apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
            "metadata": {"name": "database", "annotations": annotations}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn replica_mode_ends_when_enabled_turns_false_or_the_stanza_goes() {
        let replica = |replica| cluster(json!({"replica": replica}), json!({})).is_replica();
        assert!(replica(json!({"source": "z", "enabled": true})));
        assert!(!replica(json!({"source": "z", "enabled": false})));
        assert!(replica(json!({"source": "z", "primary": "z"})));
        assert!(!replica(json!({"source": "z", "primary": "database"})));
        assert!(!cluster(json!({}), json!({})).is_replica());
    }

    #[test]
    fn archive_mode_follows_the_mode_unless_the_annotation_turns_it_off() {
        let mode = |enabled, annotations| {
            cluster(
                json!({"replica": {"source": "z", "enabled": enabled}}),
                annotations,
            )
            .archive_mode()
        };
        assert_eq!(mode(true, json!({})), "always");
        assert_eq!(mode(false, json!({})), "on");
        assert_eq!(mode(true, json!({SKIP_WAL_ARCHIVING: "enabled"})), "off");
        assert_eq!(mode(false, json!({SKIP_WAL_ARCHIVING: "disabled"})), "on");
    }

    #[test]
    fn fencing_names_an_instance_or_all() {
        let fenced =
            |names: &str| cluster(json!({}), json!({FENCED: names})).is_fenced("database-1");
        assert!(fenced(r#"["*"]"#) && fenced(r#"["database-1"]"#));
        assert!(!fenced(r#"["database-2"]"#) && !fenced("[]") && !fenced("no list"));
    }

    #[test]
    fn passwords_come_from_the_secrets_that_the_spec_names() {
        let given = json!({"enableSuperuserAccess": true, "superuserSecret": {"name": "s"},
            "bootstrap": {"pg_basebackup": {"source": "z", "secret": {"name": "o"}}}});
        let given = cluster(given, json!({}));
        assert_eq!(
            (
                given.superuser_secret().as_deref(),
                given.owner_secret().as_str()
            ),
            (Some("s"), "o")
        );
        assert!(!given.generates_owner_password());
        let silent = cluster(
            json!({"bootstrap": {"pg_basebackup": {"source": "z"}}}),
            json!({}),
        );
        assert_eq!(
            (silent.superuser_secret(), silent.owner_secret().as_str()),
            (None, "database-app")
        );
        assert!(silent.generates_owner_password());
    }

    #[test]
    fn smart_shutdown_is_left_out_when_the_stop_delay_is_not_longer() {
        let seconds = |spec| cluster(spec, json!({})).smart_shutdown_seconds();
        assert_eq!(seconds(json!({})), 180);
        assert_eq!(seconds(json!({"smartShutdownTimeout": 1})), 1);
        assert_eq!(
            seconds(json!({"smartShutdownTimeout": 10, "stopDelay": 10})),
            0
        );
    }
}
