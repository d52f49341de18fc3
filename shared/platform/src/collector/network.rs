//! The NetworkPolicies of the namespace and the pods that they are about, for the check whether who
//! uses the database today can reach it after the cutover.

use std::net::IpAddr;

use job::{
    error::{Context as _, Result},
    pods::{self, Port},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use protocol::{
    network::{LabelSelector, Labels, NamedPort, Network, Pod, PodRole},
    snapshot::source::ClientSession,
};

use crate::kubernetes::network_policies;

/// How the pods of the migration are told apart.
pub(super) struct Known<'a> {
    /// The `postgresql` resource.
    pub source: &'a str,
    /// The CloudNativePG Cluster.
    pub target: &'a str,
    /// The selectors of the application's workloads.
    pub application: &'a [LabelSelector],
    /// Client sessions at the source's leader.
    pub sessions: &'a [ClientSession],
}

/// Reads policies and pods.
///
/// # Errors
/// Those of the API server.
pub(super) async fn observe(
    client: &Client,
    namespace: &str,
    known: &Known<'_>,
) -> Result<Network> {
    let api: Api<pods::Pod> = Api::namespaced(client.clone(), namespace);
    let everything = ListParams::default();
    let (policies, found) = futures::join!(
        network_policies::list(client, namespace),
        api.list(&everything)
    );
    let found = found.context("listing the pods")?;
    let living = found.iter().filter(|pod| lives(pod));
    let mut pods = Vec::new();
    for pod in living {
        let pod = described(pod);
        pods.extend(known.role(&pod).map(|role| (role, pod)));
    }
    let addresses = found.iter().filter_map(|pod| pod.status.pod_ip.as_deref());
    pods.extend(known.elsewhere(addresses.collect()));
    Ok(Network {
        namespace: namespace.to_owned(),
        policies: policies?,
        pods,
    })
}

impl Known<'_> {
    /// What a pod is to the migration; None for one that has nothing to do with it.
    fn role(&self, pod: &Pod) -> Option<PodRole> {
        let labels = pod.labels.as_ref()?;
        let is = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
        if is("application", "db-connection-pooler") {
            let cluster = is("cluster-name", self.source);
            return cluster.then_some(PodRole::SourcePooler);
        }
        if let Some(pooler) = labels.get("cnpg.io/poolerName") {
            return Some(PodRole::TargetPooler(pooler.clone()));
        }
        if is("cnpg.io/cluster", self.target) {
            return is_instance(labels).then_some(PodRole::Instance);
        }
        let selected = |selector: &LabelSelector| selector.matches(labels, true) == Some(true);
        if self.application.iter().any(selected) {
            return Some(PodRole::Application);
        }
        let address = pod.address?.to_string();
        self.addresses()
            .any(|session| session == address)
            .then_some(PodRole::Session)
    }

    /// Clients with a session at the source that are no pods of this namespace.
    fn elsewhere(&self, pods: Vec<&str>) -> Vec<(PodRole, Pod)> {
        let mut addresses: Vec<&str> = self.addresses().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let elsewhere = addresses.into_iter().filter(|one| !pods.contains(one));
        elsewhere
            .filter_map(|address| {
                let ip: IpAddr = address.parse().ok()?;
                // A sidecar of the source's own pod.
                if ip.is_loopback() {
                    return None;
                }
                let pod = Pod {
                    name: address.to_owned(),
                    address: Some(ip),
                    ..Pod::default()
                };
                Some((PodRole::Session, pod))
            })
            .collect()
    }

    fn addresses(&self) -> impl Iterator<Item = &str> {
        let sessions = self.sessions.iter();
        sessions.filter_map(|session| session.address.as_deref())
    }
}

/// A pod of a Cluster that runs PostgreSQL: neither one of a Job, such as that of a new instance,
/// nor, before CloudNativePG 1.23, one without the label of its role.
fn is_instance(labels: &Labels) -> bool {
    let role = labels.get("cnpg.io/podRole");
    role.is_none_or(|role| role == "instance") && !labels.contains_key("cnpg.io/jobRole")
}

fn lives(pod: &pods::Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && ["Pending", "Running"].contains(&pod.status.phase.as_str())
}

fn described(pod: &pods::Pod) -> Pod {
    let containers = pod.spec.containers.iter();
    let ports = containers.flat_map(|container| &container.ports);
    Pod {
        name: pod.name_any(),
        labels: Some(pod.labels().clone()),
        address: pod.status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        ports: ports.filter_map(named).collect(),
    }
}

fn named(port: &Port) -> Option<NamedPort> {
    Some(NamedPort {
        name: port.name.clone()?,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: u16::try_from(port.container_port).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(labels: &[(&str, &str)], address: &str) -> Pod {
        let labels = labels.iter();
        Pod {
            labels: Some(
                labels
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            address: address.parse().ok(),
            ..Pod::default()
        }
    }

    #[test]
    fn each_pod_has_its_role_by_its_labels_or_its_session() {
        let session = |address: &str| ClientSession {
            pid: 1,
            role: "app".into(),
            application_name: String::new(),
            address: Some(address.into()),
            transaction_seconds: None,
        };
        let sessions = [
            session("10.0.0.7"),
            session("192.0.2.1"),
            session("192.0.2.1"),
            session("127.0.0.1"),
        ];
        let web = LabelSelector {
            match_labels: [("app".to_owned(), "web".to_owned())].into(),
            ..LabelSelector::default()
        };
        let known = Known {
            source: "pg",
            target: "database",
            application: &[web],
            sessions: &sessions,
        };
        let role = |labels: &[(&str, &str)]| known.role(&pod(labels, "10.0.0.1"));
        let pooler = ("application", "db-connection-pooler");
        let of_cluster = ("cnpg.io/cluster", "database");
        for (labels, expected) in [
            (
                &[pooler, ("cluster-name", "pg")][..],
                Some(PodRole::SourcePooler),
            ),
            (&[pooler, ("cluster-name", "other")], None),
            (&[of_cluster], Some(PodRole::Instance)),
            (
                &[of_cluster, ("cnpg.io/podRole", "instance")],
                Some(PodRole::Instance),
            ),
            (&[of_cluster, ("cnpg.io/jobRole", "join")], None),
            (
                &[of_cluster, ("cnpg.io/poolerName", "database-pooler-rw")],
                Some(PodRole::TargetPooler("database-pooler-rw".into())),
            ),
            (&[("cnpg.io/cluster", "other")], None),
            (&[("app", "web")], Some(PodRole::Application)),
            (&[("app", "exporter")], None),
        ] {
            assert_eq!(role(labels), expected, "{labels:?}");
        }
        let with_session = pod(&[("app", "exporter")], "10.0.0.7");
        assert_eq!(known.role(&with_session), Some(PodRole::Session));
        let elsewhere: Vec<String> = known
            .elsewhere(vec!["10.0.0.7"])
            .into_iter()
            .map(|(_, pod)| pod.name)
            .collect();
        assert_eq!(elsewhere, ["192.0.2.1"]);
    }
}
