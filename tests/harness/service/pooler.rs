//! Imitates a CloudNativePG Pooler without pooling: a pod behind an existing Service that forwards
//! every connection to another Service. It has a pooler's name, labels and network hop, but no
//! PgBouncer console, authentication or waiting for a server: PAUSE and server_login_retry are
//! **not imitated**.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};

use super::{Services, forwarder::Forwarder};
use crate::instance::Instance;

const FIELD_MANAGER: &str = "pooler";
const PORT: u16 = 5432;

/// A running pooler; it stops accepting connections on drop.
#[derive(Debug)]
pub struct Pooler {
    _forwarder: Forwarder,
    task: JoinHandle<()>,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pooler {
    /// Creates a ready pod for the Service `name`, with the labels that it selects, at `host` of
    /// the network, and forwards connections to the Service `upstream` once that exists.
    ///
    /// # Errors
    /// The Service is missing or selects nothing, or the API server refuses the pod.
    pub async fn start(
        client: &Client,
        instance: &Instance,
        services: Arc<Services>,
        name: &str,
        upstream: &str,
        host: u8,
    ) -> Result<Self> {
        let ip = instance.kubernetes_address(host).to_string();
        make_pod(
            client,
            services.namespace(),
            name,
            &format!("{name}-0"),
            &ip,
        )
        .await
        .with_context(|| format!("making the pooler {name}"))?;
        let (sender, backends) = watch::channel(Vec::new());
        let forwarder =
            Forwarder::start(SocketAddr::from((instance.address(host), PORT)), backends);
        let upstream = upstream.to_owned();
        let task = tokio::spawn(async move {
            let mut known = None;
            loop {
                known = services.address_changed(&upstream, known).await;
                sender.send_replace(
                    known
                        .iter()
                        .map(|address| SocketAddr::new(*address, PORT))
                        .collect(),
                );
            }
        });
        Ok(Self {
            _forwarder: forwarder,
            task,
        })
    }
}

/// Creates a ready pod at this address, with the labels that the Service `name` selects.
pub(super) async fn make_pod(
    client: &Client,
    namespace: &str,
    name: &str,
    pod_name: &str,
    ip: &str,
) -> Result<()> {
    let service = Api::<Service>::namespaced(client.clone(), namespace)
        .get(name)
        .await?;
    let selector = service
        .spec
        .and_then(|spec| spec.selector)
        .context("the service selects nothing")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name, "labels": selector},
        "spec": {
            "nodeName": "node0",
            "containers": [{
                "name": "pgbouncer", "image": "pgbouncer", "ports": [{"containerPort": PORT}]
            }]
        }
    });
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    pods.patch(pod_name, &apply, &Patch::Apply(pod)).await?;
    let now = jiff::Timestamp::now().to_string();
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": now});
    let status = json!({
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}
    });
    pods.patch_status(pod_name, &PatchParams::default(), &Patch::Strategic(status))
        .await?;
    Ok(())
}
