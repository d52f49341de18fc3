//! One pod of the application: what the kubelet does, and the process inside.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    deployments::{PodEvent, Shared},
    login::Login,
    variables,
    writer::{Identity, Writer},
};
use crate::retry::until_answered;

/// Time from the creation of the Pod object until its process works, on a node that has the image.
const START: Duration = Duration::from_millis(500);
/// Time from the first write until the readiness probe succeeds.
const READY: Duration = Duration::from_millis(200);
/// How long a process takes to finish after SIGTERM; varies by pod.
const STOP: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(450),
    Duration::from_millis(700),
    Duration::from_millis(950),
];
/// The kubelet's retry interval for a container whose configuration cannot be built.
const CONFIG_AGAIN: Duration = Duration::from_secs(2);
/// How long to wait at the end of a run for answers of a paused pooler or a hung server.
const OVER: Duration = Duration::from_secs(2);
pub(super) const GRACE: Duration = Duration::from_secs(30);

fn pod_object(object: &Deployment, template: &str, number: u32) -> Pod {
    let inner = object.spec.template.clone();
    let mut metadata = inner.metadata.unwrap_or_default();
    metadata.name = Some(format!("{}-{template}-{number}", object.name_any()));
    metadata
        .labels
        .get_or_insert_default()
        .insert("pod-template-hash".into(), template.into());
    metadata.owner_references = object.controller_owner_ref(&()).map(|owner| vec![owner]);
    let mut spec = inner.spec.unwrap_or_default();
    // Only a pod assigned to a node gets a grace period when it is deleted.
    spec.node_name = Some("node0".into());
    Pod {
        metadata,
        spec: Some(spec),
        status: None,
    }
}

/// A pod whose object exists.
pub(super) struct ApplicationPod {
    shared: Shared,
    pods: Api<Pod>,
    pod: Pod,
    identities: Vec<Identity>,
    stop: Duration,
}

impl ApplicationPod {
    /// Creates the object; [`ApplicationPod::live`] runs the pod.
    pub(super) async fn create(
        shared: Shared,
        object: &Deployment,
        template: &str,
        number: u32,
        slot: u32,
        identities: Vec<Identity>,
    ) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(shared.client.clone(), &shared.namespace);
        let pod = pod_object(object, template, number);
        let params = PostParams::default();
        match until_answered(|| pods.create(&params, &pod)).await {
            // The first request succeeded, but its response was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            created => {
                drop(created.with_context(|| format!("creating the pod {}", pod.name_any()))?)
            }
        }
        let stop = STOP[slot as usize % STOP.len()];
        Ok(Self {
            shared,
            pods,
            pod,
            identities,
            stop,
        })
    }

    /// The pod's name.
    pub(super) fn name(&self) -> String {
        self.pod.name_any()
    }

    /// Runs the pod: it starts, becomes ready, works until SIGTERM, and takes its time to stop.
    pub(super) async fn live(
        self,
        mut alive: mpsc::Receiver<()>,
        application: String,
        sender: mpsc::UnboundedSender<PodEvent>,
    ) {
        let name = self.pod.name_any();
        let writers = tokio::select! {
            writers = self.begin() => writers,
            _ = alive.recv() => Vec::new(),
        };
        let _ = sender.send(PodEvent::Ready(application.clone(), name.clone()));
        // Ends when the sender is dropped: SIGTERM.
        let _ = alive.recv().await;
        let graceful = DeleteParams {
            grace_period_seconds: u32::try_from(GRACE.as_secs()).ok(),
            ..DeleteParams::default()
        };
        let terminated = Instant::now();
        // Fails only if the pod no longer exists.
        let _ = until_answered(|| self.pods.delete(&name, &graceful)).await;
        sleep(self.stop.saturating_sub(terminated.elapsed())).await;
        let ended = futures::future::join_all(writers.into_iter().map(|writer| writer.stop(GRACE)));
        let mut over = self.shared.over.clone();
        let cut_off = async {
            let _ = over.wait_for(|over| *over).await;
            sleep(OVER).await;
        };
        tokio::select! {
            _ = ended => {}
            // Each writer logs its pending writes.
            () = cut_off => {}
        }
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let _ = until_answered(|| self.pods.delete(&name, &at_once)).await;
        let _ = sender.send(PodEvent::Gone(application, name));
    }

    async fn begin(&self) -> Vec<Writer> {
        let started = Instant::now();
        let login = loop {
            match self.login().await {
                Ok(login) => break login,
                Err(error) => self.status("Pending", Some(&format!("{error:#}"))).await,
            }
            sleep(CONFIG_AGAIN).await;
        };
        sleep(START.saturating_sub(started.elapsed())).await;
        let Shared {
            services,
            log,
            epoch,
            ..
        } = &self.shared;
        let start = |identity: &Identity| {
            Writer::start(
                identity.clone(),
                login.clone(),
                Arc::clone(services),
                Arc::clone(log),
                *epoch,
            )
        };
        let writers = self.identities.iter().map(start).collect();
        sleep(READY).await;
        self.status("Running", None).await;
        writers
    }

    async fn login(&self) -> Result<Login> {
        let container = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.first())
            .context("the pod has no container")?;
        variables::login(
            &variables::read(&self.shared.client, &self.shared.namespace, container).await?,
        )
    }

    async fn status(&self, phase: &str, waiting: Option<&str>) {
        let ready = if waiting.is_none() { "True" } else { "False" };
        let now = jiff::Timestamp::now().to_string();
        let container = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.first());
        let state = match waiting {
            None => json!({"running": {"startedAt": now}}),
            Some(message) => {
                json!({"waiting": {"reason": "CreateContainerConfigError", "message": message}})
            }
        };
        let status = json!({"status": {
            "phase": phase,
            "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": now},
                {"type": "ContainersReady", "status": ready, "lastTransitionTime": now}
            ],
            "containerStatuses": [{
                "name": container.map(|c| c.name.as_str()),
                "image": container.and_then(|c| c.image.as_deref()).unwrap_or_default(),
                "imageID": "", "ready": waiting.is_none(), "restartCount": 0, "state": state,
            }],
        }});
        let (name, params, status) = (
            self.name(),
            PatchParams::default(),
            Patch::Strategic(status),
        );
        // Fails only if the pod no longer exists.
        let _ = until_answered(|| self.pods.patch_status(&name, &params, &status)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_carries_the_templates_labels_and_its_owner() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u"},
            "spec": {
                "selector": {},
                "template": {
                    "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}
                }
            },
        }))
        .unwrap();
        let pod = pod_object(&deployment, "12345678", 3);
        assert_eq!(pod.name_any(), "web-12345678-3");
        assert_eq!(pod.labels()["app"], "web");
        assert_eq!(pod.owner_references()[0].name, "web");
    }
}
