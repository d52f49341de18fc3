//! The application's Kubernetes objects.

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{PART_OF, Settings};

const FIELD_MANAGER: &str = "application";

/// True when the controller has observed the Deployment and all replicas are ready.
pub(super) fn is_ready(deployment: &Deployment) -> bool {
    let (spec, Some(status)) = (&deployment.spec, &deployment.status) else {
        return false;
    };
    let wanted = spec.replicas.unwrap_or(1);
    status.observed_generation == deployment.metadata.generation
        && status.ready_replicas.unwrap_or(0) == wanted
        && status.updated_replicas.unwrap_or(0) == wanted
}

/// Applies the ConfigMap and the Deployments.
pub(super) async fn apply(client: &Client, settings: &Settings) -> Result<()> {
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let config: serde_json::Map<_, _> = settings
        .config
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": settings.config_map},
        "data": config
    });
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &settings.namespace);
    api.patch(&settings.config_map, &apply, &Patch::Apply(object))
        .await
        .context("applying the application's ConfigMap")?;
    let api: Api<Deployment> = Api::namespaced(client.clone(), &settings.namespace);
    for (name, replicas) in &settings.deployments {
        let object = deployment(name, *replicas, settings);
        api.patch(name, &apply, &Patch::Apply(object))
            .await
            .with_context(|| format!("applying the Deployment {name}"))?;
    }
    Ok(())
}

fn deployment(name: &str, replicas: u32, settings: &Settings) -> serde_json::Value {
    let labels =
        json!({"app": name, "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": PART_OF});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [container(name, settings)]}
            },
        },
    })
}

/// The only container of each Deployment's pods.
pub(super) fn container(name: &str, settings: &Settings) -> serde_json::Value {
    json!({
        "name": name, "image": "ghcr.io/mastodon/mastodon:v4.4.3",
        "envFrom": [{"configMapRef": {"name": settings.config_map}}],
        "env": [{
            "name": "DB_PASS",
            "valueFrom": {"secretKeyRef": {"name": settings.owner_secret, "key": "password"}}
        }],
    })
}
