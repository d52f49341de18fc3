//! What the Kubernetes objects of both sides show.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Labels that pods must have to stand behind a Service.
pub type Selector = BTreeMap<String, String>;

/// A Service as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// Its selector; None: another controller writes its Endpoints, as Patroni does for the
    /// leader.
    pub selector: Option<Selector>,
    /// Where clients reach it: its cluster IP and its port. None for a headless Service, and for
    /// one with several ports.
    pub address: Option<SocketAddr>,
    /// The port that its pods must listen on, by its target port or its name; None where it has
    /// other ports than PostgreSQL's.
    pub port: Option<i32>,
    /// EndpointSlices that a selector has left behind: traffic still goes there. Looked for only
    /// where there is no selector.
    pub leftovers: Vec<String>,
}

/// What runs pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
}

/// How many pods there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// Whose.
    pub kind: Kind,
    /// `spec.replicas`.
    pub wanted: i32,
    /// `status.readyReplicas`.
    pub ready: i32,
    /// `status.replicas`: pods that exist and were not told to end.
    pub existing: i32,
    /// The controller has seen what is wanted. Until then the other two numbers are of what was
    /// wanted before.
    pub followed: bool,
    /// `metadata.resourceVersion`, for a change that must not hit what has moved since.
    pub version: String,
}

/// The Cluster as its resource shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Its name, which is also the application_name of its WAL receiver.
    pub name: String,
    /// It does not exist: it was deleted while the cutover was under way.
    pub missing: bool,
    /// `spec.replica.enabled`.
    pub follows: bool,
    /// `spec.instances`.
    pub instances: u32,
    /// `status.readyInstances`.
    pub ready_instances: u32,
    /// Names of the instances that are ready (`status.instancesStatus.healthy`).
    pub ready: Vec<String>,
    /// The instance that is the primary, or the designated one (`status.currentPrimary`).
    pub current_primary: String,
    /// The instance that is to be it (`status.targetPrimary`).
    pub target_primary: String,
    /// `status.phase`.
    pub phase: String,
    /// Annotation `cnpg.io/skipWalArchiving: enabled`: archive_mode is off before and after the
    /// promotion.
    pub skip_wal_archiving: bool,
    /// What archives WAL and takes backups, by its spec.
    pub wal_archiver: Option<String>,
    /// Annotation `cnpg.io/fencedInstances`, unless it is an empty list.
    pub fenced: Option<String>,
    /// What its spec says about the superuser's login.
    pub superuser: SuperuserAccess,
}

impl ClusterState {
    /// A Cluster that was deleted.
    pub fn missing() -> Self {
        Self {
            missing: true,
            ..Self::default()
        }
    }
}

/// What the manifest that prepare-zalando has stored (ConfigMap `<target>-cluster-replica`) means
/// for a promoted Cluster; [`manifest`](crate::manifest) judges it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredManifest {
    /// It was not asked for.
    #[default]
    Unread,
    /// There is none.
    Missing,
    /// As one of these programs wrote it, with `spec.replica.enabled: true`: applied, it would make
    /// the Cluster a standby again.
    Follows,
    /// Not as one of these programs wrote it, and not seen to say `spec.replica.enabled: false`.
    Edited,
    /// With `spec.replica.enabled: false`, as the promoted Cluster has it.
    Promoted,
}

/// What the Cluster's spec says about the superuser's login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuperuserAccess {
    /// `spec.enableSuperuserAccess`.
    pub enabled: bool,
    /// `spec.superuserSecret.name`.
    pub secret: Option<String>,
}
