//! The poolers that the Zalando operator runs in front of a cluster
//! (docs/operators/zalando.md#connection-poolers): PgBouncers behind Services of their own.

use std::{net::SocketAddr, path::Path};

use kube::{Api, Client, ResourceExt as _, api::ListParams};

use job::pods::Pod;
use job::{
    config::{Connection, NonEmptyString, ObjectName, SslMode},
    error::{Context as _, Result},
};
use protocol::snapshot::poolers::PoolerPod;

/// PgBouncer's port when its container declares none.
const PORT: u16 = 5432;

/// A pod of a pooler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// What its object shows.
    pub pod: PoolerPod,
    /// Its PgBouncer runs, also while the pod is being deleted: until its containers have ended.
    pub runs: bool,
    /// Address of its PgBouncer; None until the pod has an address.
    pub address: Option<SocketAddr>,
}

/// The connection to the consoles of a cluster's poolers; the caller sets the address of each pod.
pub fn login(cluster: &ObjectName, user: &NonEmptyString, password_file: &Path) -> Connection {
    Connection {
        host: NonEmptyString::from(cluster),
        hostaddr: None,
        port: PORT,
        user: user.clone(),
        password_file: password_file.to_owned(),
        // The pod has signed its certificate itself, or the certificate names a Service.
        sslmode: SslMode::Require,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
    }
}

/// The pods of a cluster's poolers, without those that have ended.
pub async fn pods(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<Pooler>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // `application` tells them apart from the members' pods, which have cluster-name, too.
    let labels = format!("application=db-connection-pooler,cluster-name={cluster}");
    let list = api.list(&ListParams::default().labels(&labels)).await;
    let list = list.context("listing the poolers of the source")?;
    Ok(list.iter().filter(|pod| lives(pod)).map(pooler).collect())
}

fn lives(pod: &Pod) -> bool {
    !["Succeeded", "Failed"].contains(&pod.status.phase.as_str())
}

fn pooler(pod: &Pod) -> Pooler {
    let ip = pod.status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let ports = pod
        .spec
        .containers
        .iter()
        .flat_map(|container| &container.ports);
    let port = ports
        .map(|port| port.container_port)
        .find_map(|port| u16::try_from(port).ok());
    let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
    let mut conditions = pod.status.conditions.iter();
    Pooler {
        pod: PoolerPod {
            name: pod.name_any(),
            pooler: label("connection-pooler"),
            template: label("pod-template-hash"),
            ready: conditions.any(|one| one.kind == "Ready" && one.status == "True"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
        },
        runs: pod.status.phase == "Running",
        address: ip.map(|ip| SocketAddr::new(ip, port.unwrap_or(PORT))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(metadata: serde_json::Value, status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": metadata,
            "spec": {"containers": [
                {"name": "connection-pooler", "ports": [{"containerPort": 5432}]},
            ]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_running_pod_has_an_address_and_an_ended_one_does_not_count() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status = json!({"phase": "Running", "podIP": "10.0.0.9", "conditions": ready});
        let labels = json!({"connection-pooler": "pg-pooler", "pod-template-hash": "5d9"});
        let running = pod(
            json!({"name": "pg-pooler-5d9", "labels": labels}),
            status.clone(),
        );
        assert!(lives(&running));
        let found = pooler(&running);
        assert_eq!(found.address, Some(([10, 0, 0, 9], 5432).into()));
        let expected = PoolerPod {
            name: "pg-pooler-5d9".into(),
            pooler: "pg-pooler".into(),
            template: "5d9".into(),
            ready: true,
            terminating: false,
        };
        assert_eq!((found.pod, found.runs), (expected, true));
        let ended = pod(json!({"name": "old"}), json!({"phase": "Failed"}));
        assert!(!lives(&ended));
        // Until its containers have ended, a pod that is being deleted serves its clients.
        let deleted = json!({"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let terminating = pooler(&pod(deleted, status));
        assert!(terminating.runs && terminating.pod.terminating);
        let pending = pooler(&pod(json!({"name": "new"}), json!({"phase": "Pending"})));
        assert!(!pending.runs && !pending.pod.ready);
    }
}
