//! The poolers that the Zalando operator runs in front of a cluster
//! (docs/operators/zalando.md#connection-poolers): PgBouncers behind Services of their own.

use std::{net::SocketAddr, path::Path};

use kube::{Api, Client, ResourceExt as _, api::ListParams};

use job::pods::Pod;
use job::{
    config::{Connection, NonEmptyString, ObjectName, SslMode},
    error::{Context as _, Result},
};

/// PgBouncer's port when its container declares none.
const PORT: u16 = 5432;

/// A pod of a pooler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolerPod {
    /// Name of the pod.
    pub name: String,
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

/// The pods of a cluster's poolers that run and are not being deleted.
pub async fn pods(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<PoolerPod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // `application` tells them apart from the members' pods, which have cluster-name, too.
    let labels = format!("application=db-connection-pooler,cluster-name={cluster}");
    let list = api.list(&ListParams::default().labels(&labels)).await;
    let list = list.context("listing the poolers of the source")?;
    Ok(list.iter().filter(|pod| runs(pod)).map(pooler).collect())
}

fn runs(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && pod.status.phase == "Running"
}

fn pooler(pod: &Pod) -> PoolerPod {
    let ip = pod.status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let ports = pod
        .spec
        .containers
        .iter()
        .flat_map(|container| &container.ports);
    let port = ports
        .map(|port| port.container_port)
        .find_map(|port| u16::try_from(port).ok());
    PoolerPod {
        name: pod.name_any(),
        address: ip.map(|ip| SocketAddr::new(ip, port.unwrap_or(PORT))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "pg-pooler-5d9"},
            "spec": {"containers": [
                {"name": "connection-pooler", "ports": [{"containerPort": 5432}]},
            ]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_running_pod_has_an_address_and_a_pending_one_does_not_count() {
        let running = pod(serde_json::json!({"phase": "Running", "podIP": "10.0.0.9"}));
        assert!(runs(&running));
        assert_eq!(pooler(&running).address, Some(([10, 0, 0, 9], 5432).into()));
        assert!(!runs(&pod(serde_json::json!({"phase": "Pending"}))));
    }
}
