//! The instance's Pod object and the kubelet's part in it.

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

/// What the kubelet says of the container.
#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    /// An init container runs, or the server has not answered yet.
    Starting,
    /// Ready: Services lead to it.
    Ready,
    /// Runs, but is in no Service.
    NotReady,
    /// Waits for the next try; the text is the reason of the last failure.
    BackOff(&'a str),
}

/// The pod of one instance.
pub struct InstancePod {
    api: Api<Pod>,
    name: String,
    ip: String,
    restarts: u32,
}

impl InstancePod {
    /// The pod with this name, whose address in Kubernetes objects is `ip`.
    pub fn new(api: Api<Pod>, name: &str, ip: &str) -> Self {
        Self {
            api,
            name: name.to_owned(),
            ip: ip.to_owned(),
            restarts: 0,
        }
    }

    /// Its address in Kubernetes objects.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// Makes the object as the Cluster wants it now; one that is there already goes first.
    ///
    /// # Errors
    /// The annotation with the patch is wrong, or the API server refuses the pod.
    pub async fn create(&mut self, cluster: &Cluster) -> Result<Pod> {
        self.remove().await?;
        self.restarts = 0;
        let pod = objects::instance_pod(cluster)?;
        self.api
            .create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("creating the pod {}", self.name))
    }

    /// Removes the object at once, as the kubelet does when everything in it has stopped.
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

    /// Ends when somebody has asked for its deletion.
    pub fn deletion_requested(&self) -> impl Future<Output = ()> + use<> {
        let (api, name) = (self.api.clone(), self.name.clone());
        let gone =
            |pod: Option<&Pod>| pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        async move {
            // An error is a watch that ended, as when the API server is away.
            while await_condition(api.clone(), &name, gone).await.is_err() {
                sleep(WATCH_AGAIN).await;
            }
        }
    }

    /// The container is being started once more.
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
            // Somebody has removed it: whoever waits for that is told so.
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
            "conditions": [{"type": "Ready", "status": word, "lastTransitionTime": now}, {"type": "ContainersReady", "status": word, "lastTransitionTime": now}],
            "containerStatuses": [{"name": "postgres", "image": "", "imageID": "", "ready": ready, "restartCount": self.restarts, "state": container}],
        })
    }
}
