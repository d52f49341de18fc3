//! The Pod object of a Job's pod; other programs see its name and phase.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::retry::until_answered;

/// Creates the object in the phase Running.
pub(super) async fn announce(
    client: &Client,
    namespace: &str,
    name: &str,
    job: &str,
    template: &PodTemplateSpec,
) -> Result<()> {
    let mut spec = serde_json::to_value(&template.spec)?;
    spec["nodeName"] = "node0".into();
    // No controller creates ServiceAccount tokens here; the imitated kubelet mounts its own.
    let labels = json!({"batch.kubernetes.io/job-name": job, "job-name": job});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": spec
    });
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

/// Reports the pod's end, also if the API server is unreachable for a while.
pub(super) async fn ended(client: &Client, namespace: &str, name: &str, succeeded: bool) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let phase = if succeeded { "Succeeded" } else { "Failed" };
    let change = Patch::Merge(json!({"status": {"phase": phase}}));
    // The update fails only if a test removed the pod.
    let params = PatchParams::default();
    let _ = until_answered(|| api.patch_status(name, &params, &change)).await;
}
