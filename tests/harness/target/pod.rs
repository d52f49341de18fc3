//! The instance's Pod object, with the status that the kubelet would write.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{cluster::Cluster, objects};
use crate::retry::until_answered;

const WATCH_AGAIN: Duration = Duration::from_millis(500);

/// The container's state.
#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    /// An init container runs, or the server has not answered yet.
    Starting,
    /// Ready: the pod is a backend of its Services.
    Ready,
    /// Running, but not a backend of any Service.
    NotReady,
    /// Waiting for the next restart; the text is the reason of the last failure.
    BackOff(&'a str),
}

/// The pod of one instance.
pub struct InstancePod {
    api: Api<Pod>,
    name: String,
    ip: String,
    restarts: u32,
    role: &'static str,
}

impl InstancePod {
    /// The pod with this name, whose address in Kubernetes objects is `ip`.
    pub fn new(api: Api<Pod>, name: &str, ip: &str) -> Self {
        Self {
            api,
            name: name.to_owned(),
            ip: ip.to_owned(),
            restarts: 0,
            role: "",
        }
    }

    /// The pod's address in Kubernetes objects.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// Creates the object from the Cluster's current spec; an existing one is deleted first.
    ///
    /// # Errors
    /// The patch annotation is invalid, or the API server refuses the pod.
    pub async fn create(&mut self, cluster: &Cluster, role: &'static str) -> Result<Pod> {
        self.remove().await?;
        (self.restarts, self.role) = (0, role);
        let pod = objects::instance_pod(cluster, &self.name, role)?;
        self.api
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("creating the pod {}", self.name))
    }

    /// Sets the label by which the Services select (pkg/reconciler/instance/metadata.go).
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn set_role(&mut self, role: &'static str) -> Result<()> {
        if self.role == role {
            return Ok(());
        }
        let labels = json!({"cnpg.io/instanceRole": role, "role": role});
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let params = PatchParams::default();
        match until_answered(|| self.api.patch(&self.name, &params, &patch)).await {
            // The pod was deleted; the next one is created with its role.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            patched => patched.with_context(|| format!("labelling the pod {}", self.name))?,
        };
        self.role = role;
        Ok(())
    }

    /// Deletes the object immediately, as the kubelet does when all containers have stopped.
    pub async fn remove(&self) -> Result<()> {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        match until_answered(|| self.api.delete(&self.name, &now)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting the pod {}", self.name)),
        }
    }

    /// Resolves when the pod's deletion is requested.
    pub fn deletion_requested(&self) -> impl Future<Output = ()> + use<> {
        let (api, name) = (self.api.clone(), self.name.clone());
        let gone =
            |pod: Option<&Pod>| pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        async move {
            // An error is a watch that ended, for example because the API server is unreachable.
            while await_condition(api.clone(), &name, gone).await.is_err() {
                sleep(WATCH_AGAIN).await;
            }
        }
    }

    /// Counts a restart of the container.
    pub fn restarted(&mut self) {
        self.restarts += 1;
    }

    /// Writes the status as the kubelet would.
    pub async fn report(&self, state: State<'_>) -> Result<()> {
        let (ready, container) = match state {
            State::Starting => (false, json!({"running": {}})),
            State::Ready => (true, json!({"running": {}})),
            State::NotReady => (false, json!({"running": {}})),
            State::BackOff(reason) => (
                false,
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": reason}}),
            ),
        };
        let status = Patch::Strategic(json!({"status": self.status(ready, &container)}));
        let params = PatchParams::default();
        match until_answered(|| self.api.patch_status(&self.name, &params, &status)).await {
            // The pod was deleted; [`InstancePod::deletion_requested`] reports that.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            written => written
                .map(drop)
                .with_context(|| format!("writing the status of the pod {}", self.name)),
        }
    }

    fn status(&self, ready: bool, container: &Value) -> Value {
        let now = jiff::Timestamp::now().to_string();
        let word = if ready { "True" } else { "False" };
        json!({
            "phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}],
            "conditions": [
                {"type": "Ready", "status": word, "lastTransitionTime": now},
                {"type": "ContainersReady", "status": word, "lastTransitionTime": now}
            ],
            "containerStatuses": [{
                "name": "postgres", "image": "", "imageID": "", "ready": ready,
                "restartCount": self.restarts, "state": container
            }],
        })
    }
}
