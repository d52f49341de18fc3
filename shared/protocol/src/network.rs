//! NetworkPolicies (networking.k8s.io/v1): the objects as the API server returns them, the pods
//! that they are about, and who uses which pod before and after the cutover. Whether a policy
//! admits a connection is judged in [`admission`].
//!
//! Sources: Kubernetes' reference *NetworkPolicy v1* and its page *Network Policies*.

pub mod admission;
mod selector;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Deserialize;
use serde_json::Value;

use crate::route::Route;
pub use selector::{LabelSelector, Requirement};

/// Labels of a pod or of a namespace.
pub type Labels = BTreeMap<String, String>;

/// The policies of the namespace, and the pods that matter to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The namespace of all of them.
    pub namespace: String,
    /// Its NetworkPolicies.
    pub policies: Vec<Policy>,
    /// The pods, each with what it is to the migration.
    pub pods: Vec<(PodRole, Pod)>,
}

/// What a pod is to the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// An instance of the target.
    Instance,
    /// A pod of the target's Pooler with this name.
    TargetPooler(String),
    /// A pod of the source's old poolers.
    SourcePooler,
    /// A pod of the application.
    Application,
    /// Another client with a session at the source.
    Session,
}

/// A pod, or a client that is no pod of this namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its name, or its address if it is no pod of this namespace.
    pub name: String,
    /// Its labels; None for a client that is no pod of this namespace.
    pub labels: Option<Labels>,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// The ports that its containers declare by name.
    pub ports: Vec<NamedPort>,
}

/// A port that a container declares by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The number.
    pub number: u16,
}

/// A connection that is needed after the cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Who connects.
    pub client: &'a Pod,
    /// To which pod.
    pub server: &'a Pod,
}

impl Network {
    /// The connections that are needed after the cutover: from the old poolers, or where there are
    /// none from the application, to the instances; with ROUTE=config to where `hosts` lead, the
    /// values of the application's ConfigMap.
    pub fn paths(&self, route: Route, hosts: &BTreeSet<&str>) -> Vec<Path<'_>> {
        let instances: Vec<&Pod> = self.that(|role| *role == PodRole::Instance);
        if route == Route::Service {
            let poolers = self.that(|role| *role == PodRole::SourcePooler);
            let application = self.that(|role| *role == PodRole::Application);
            let sessions = self.that(|role| *role == PodRole::Session);
            let direct = if poolers.is_empty() {
                application
            } else {
                poolers
            };
            return crossed(direct.into_iter().chain(sessions), &instances);
        }
        let used: Vec<&Pod> = self.that(|role| {
            matches!(role, PodRole::TargetPooler(name)
                if hosts.iter().any(|host| first_label(host) == name))
        });
        let application = self.that(|role| *role == PodRole::Application);
        if used.is_empty() {
            return crossed(application.into_iter(), &instances);
        }
        let mut paths = crossed(application.into_iter(), &used);
        paths.extend(crossed(used.into_iter(), &instances));
        paths
    }

    fn that(&self, wanted: impl Fn(&PodRole) -> bool) -> Vec<&Pod> {
        let pods = self.pods.iter().filter(|(role, _)| wanted(role));
        pods.map(|(_, pod)| pod).collect()
    }
}

fn crossed<'a>(clients: impl Iterator<Item = &'a Pod>, servers: &[&'a Pod]) -> Vec<Path<'a>> {
    clients
        .flat_map(|client| servers.iter().map(move |server| Path { client, server }))
        .collect()
}

/// The name of a Service from a host name that a pod can resolve.
fn first_label(host: &str) -> &str {
    host.split(['.', ':']).next().unwrap_or_default()
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What it says.
    pub spec: PolicySpec,
}

/// `spec` of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySpec {
    /// The pods that it is about; an empty selector selects all of the namespace.
    pub pod_selector: LabelSelector,
    /// `Ingress` and `Egress`; empty: Ingress, and Egress if there are egress rules.
    pub policy_types: Vec<String>,
    /// Who may connect to these pods.
    pub ingress: Vec<IngressRule>,
    /// To whom these pods may connect.
    pub egress: Vec<EgressRule>,
}

/// A rule about connections to the selected pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// From where; empty: from everywhere.
    pub from: Vec<Peer>,
    /// To which ports; empty: to all.
    pub ports: Vec<PolicyPort>,
}

/// A rule about connections of the selected pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// To where; empty: to everywhere.
    pub to: Vec<Peer>,
    /// To which ports; empty: to all.
    pub ports: Vec<PolicyPort>,
}

/// One side of a connection, as a rule names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Pods with these labels, in the policy's namespace unless there is a `namespace_selector`.
    pub pod_selector: Option<LabelSelector>,
    /// Pods of the namespaces with these labels.
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses.
    pub ip_block: Option<IpBlock>,
}

/// A range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// Address and length of the prefix.
    pub cidr: String,
    /// Ranges in it that do not count.
    pub except: Vec<String>,
}

/// A port, as a rule names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    /// TCP, UDP or SCTP; None: TCP.
    pub protocol: Option<String>,
    /// Number or name; None: all ports of the protocol.
    pub port: Option<Value>,
    /// The last port of a range that begins at `port`.
    pub end_port: Option<u16>,
}
