//! The Pod object of a Job's pod: its name and phase are what others can know of it.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::retry::until_answered;

/// Makes it, running.
pub(super) async fn announce(
    client: &Client,
    namespace: &str,
    name: &str,
    job: &str,
    template: &PodTemplateSpec,
) -> Result<()> {
    let mut spec = serde_json::to_value(&template.spec)?;
    spec["nodeName"] = "node0".into();
    // No controller makes ServiceAccounts' tokens here, and the kubelet mounts its own.
    let labels = json!({"batch.kubernetes.io/job-name": job, "job-name": job});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec});
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await
        .with_context(|| format!("making the pod {name}"))?;
    let change = Patch::Merge(json!({"status": {"phase": "Running"}}));
    api.patch_status(name, &PatchParams::default(), &change)
        .await
        .map(drop)?;
    Ok(())
}

/// Tells that it has ended; the API server may be away just then.
pub(super) async fn ended(client: &Client, namespace: &str, name: &str, succeeded: bool) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let phase = if succeeded { "Succeeded" } else { "Failed" };
    let change = Patch::Merge(json!({"status": {"phase": phase}}));
    // A pod that a test has removed needs no phase any more.
    let params = PatchParams::default();
    let _ = until_answered(|| api.patch_status(name, &params, &change)).await;
}
