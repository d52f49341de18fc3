//! What is observed only while nothing is blocked yet, because only then a finding can still keep
//! the cutover from beginning.

use std::collections::BTreeMap;

use crate::{
    controllers::owners::GitOpsManaged, failure::Failure, network::Network,
    snapshot::poolers::PoolerPod,
};

/// Which server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The source's leader.
    Source,
    /// The target's designated primary.
    Target,
}

/// A question to one server, named by the check that needs the answer; `platform::collector` holds
/// the SQL. The answer is a list of texts, one for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The server.
    pub side: Side,
    /// What is asked.
    pub name: &'static str,
}

impl Question {
    /// A question to the source.
    pub const fn source(name: &'static str) -> Self {
        let side = Side::Source;
        Self { side, name }
    }

    /// A question to the target.
    pub const fn target(name: &'static str) -> Self {
        let side = Side::Target;
        Self { side, name }
    }
}

/// The answers of the servers that answered.
pub type Answers = BTreeMap<Question, Vec<String>>;

/// What is observed only before the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prechecks {
    /// What the servers were asked for the checks.
    pub answers: Answers,
    /// The start is recorded, so that this program's own suspension of the Zalando operator is in
    /// place.
    pub started: bool,
    /// Annotation acid.zalan.do/controller of the `postgresql` resource.
    pub operator: Option<String>,
    /// The pods of the source's poolers, also those that have not started yet.
    pub pooler_pods: Vec<PoolerPod>,
    /// How the source's poolers hand out their connections, where that is set.
    pub pool_mode: Option<String>,
    /// The owner's stored password hash; None where the route does not need it.
    pub owner_password: Option<OwnerPassword>,
    /// Words of APPS that no workload matches.
    pub apps_missing: Vec<String>,
    /// Why the application's ConfigMap cannot be changed; None where it can.
    pub config_failure: Option<Failure>,
    /// The NetworkPolicies and the pods that they are about.
    pub network: Option<Network>,
    /// Controllers that change the same objects; None where they were not looked for.
    pub controllers: Option<ConflictingControllers>,
}

/// The password hash of the database's owner at the source, compared with the one that
/// CloudNativePG sets at the promotion. The hashes themselves are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerPassword {
    /// The role.
    pub owner: String,
    /// What the comparison showed.
    pub comparison: HashComparison,
}

/// How two stored hashes compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashComparison {
    /// They are the same.
    Same,
    /// They differ.
    Different,
    /// The role has none, or there is no such role.
    RoleWithout,
    /// The Secret cannot be read.
    SecretMissing,
}

impl HashComparison {
    /// Compares the hash in the database with the one in the Secret.
    pub fn of(stored: Option<&str>, secret: Option<&str>) -> Self {
        match (stored, secret) {
            (None, _) => Self::RoleWithout,
            (_, None) => Self::SecretMissing,
            (Some(stored), Some(secret)) if stored == secret => Self::Same,
            _ => Self::Different,
        }
    }
}

/// Controllers that change the same objects as the cutover, beside those that it suspends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictingControllers {
    /// Workloads whose replicas others set, too.
    pub replica_owners: Vec<ReplicaOwners>,
    /// HorizontalPodAutoscalers of the application.
    pub autoscalers: Vec<String>,
    /// Owners that exist and cannot be read.
    pub unreadable: Vec<UnreadableOwner>,
    /// Owners that are suspended, and whose own owner would resume them and cannot be suspended.
    pub generated: Vec<GeneratedOwner>,
    /// The objects whose change is permanent, where a GitOps controller applies them.
    pub managed: Vec<GitOpsManaged>,
}

/// A workload whose replicas others set, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaOwners {
    /// The workload.
    pub workload: String,
    /// Owners and field managers.
    pub owners: Vec<String>,
}

/// An owner that exists and cannot be read: it would act in the middle of the cutover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableOwner {
    /// Its kind.
    pub kind: String,
    /// The objects that it manages.
    pub manages: String,
    /// Why it cannot be read.
    pub failure: Failure,
}

/// An owner that is suspended, and that a controller without a field for a pause keeps as it was
/// generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedOwner {
    /// The owner, such as an Application.
    pub owner: String,
    /// Kind of what generates it, such as ApplicationSet.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The objects that the owner manages.
    pub manages: Vec<String>,
}
