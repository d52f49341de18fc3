//! Controllers that revert what a cutover changes: KEDA, Flux's two controllers, Argo CD, and one
//! that cannot be paused. Every 0.2 s each does what the real controller does at its next
//! reconciliation, unless it is paused. Imitated, each with the documentation of the behaviour:
//!
//! - KEDA scales from 0 while a trigger is active, unless `autoscaling.keda.sh/paused: "true"`; its
//!   HPA belongs to the ScaledObject: KEDA, *Scaling Deployments*, *Pause autoscaling*
//! - a Kustomization restores what it applies, unless the object says
//!   `kustomize.toolkit.fluxcd.io/reconcile: disabled`: Flux, *Kustomization*
//! - a HelmRelease with drift detection restores what it has installed, unless `spec.suspend`:
//!   Flux, *HelmRelease*
//! - an Application with `automated` applies what it tracks, at once with `selfHeal` and at the
//!   next commit without, which may be now: Argo CD, *Automated Sync Policy*. An Application above
//!   it (app of apps) restores it as it does any other object
//!
//! Their schemas contain only the documented fields that are used here.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    control_plane::ControlPlane,
    objects::{Kind, resource},
};

const TURN: Duration = Duration::from_millis(200);

/// KEDA's kind; the kinds are group, version, kind.
pub const SCALED_OBJECT: Kind = ("keda.sh", "v1alpha1", "ScaledObject");
/// Flux's HelmRelease.
pub const HELM_RELEASE: Kind = ("helm.toolkit.fluxcd.io", "v2", "HelmRelease");
/// Argo CD's Application.
pub const APPLICATION: Kind = ("argoproj.io", "v1alpha1", "Application");

/// Installs the CustomResourceDefinitions.
///
/// # Errors
/// The API server refuses a definition.
pub async fn install(plane: &ControlPlane) -> Result<()> {
    let target = json!({
        "type": "object", "required": ["name"],
        "properties": {"name": {"type": "string"}, "kind": {"type": "string"}}
    });
    let triggers = json!({
        "type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    });
    let flag = json!({"type": "boolean"});
    let automated =
        json!({"type": "object", "properties": {"selfHeal": flag, "prune": flag, "enabled": flag}});
    let policy = json!({"type": "object", "properties": {"automated": automated}});
    let specs = [
        (
            SCALED_OBJECT,
            json!({
                "scaleTargetRef": target, "minReplicaCount": {"type": "integer"},
                "triggers": triggers
            }),
        ),
        (
            HELM_RELEASE,
            json!({"suspend": flag, "interval": {"type": "string"}}),
        ),
        (
            APPLICATION,
            json!({"project": {"type": "string"}, "syncPolicy": policy}),
        ),
    ];
    for ((group, version, kind), properties) in specs {
        let plural = format!("{}s", kind.to_lowercase());
        let spec = json!({"type": "object", "properties": properties});
        let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true, "schema": schema}],
            },
        });
        let kind = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let api: Api<DynamicObject> = Api::all_with(plane.admin(), &resource(kind));
        api.create(&PostParams::default(), &serde_json::from_value(definition)?)
            .await
            .with_context(|| format!("installing {plural}"))?;
        crate::control_plane::served(&plane.admin(), group, version, &plural).await?;
    }
    Ok(())
}

/// A controller that restores one field of one object.
pub struct ConflictingController {
    /// The controller's field manager.
    pub manager: &'static str,
    /// The setting that pauses the controller. None: it cannot be paused.
    pub pause_setting: Option<PauseSetting>,
    /// The object that is restored: kind and name, in the migration's namespace.
    pub object: (Kind, String),
    /// The merge patch that restores the desired state.
    pub desired: Value,
}

/// A field that pauses a controller.
#[derive(Clone)]
pub struct PauseSetting {
    /// Kind, namespace and name.
    pub object: (Kind, String, String),
    /// JSON pointer to the field.
    pub field: String,
    /// The field's value while the controller is paused; null: absent.
    pub paused_value: Value,
}

/// A running controller; it stops on drop.
pub struct RunningController(JoinHandle<()>);

impl Drop for RunningController {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConflictingController {
    /// Starts the controller.
    pub fn start(self, plane: &Arc<ControlPlane>, namespace: &str) -> RunningController {
        let (client, namespace) = (plane.admin(), namespace.to_owned());
        RunningController(tokio::spawn(async move {
            loop {
                if self.is_active(&client).await {
                    let (kind, name) = &self.object;
                    let params = PatchParams {
                        field_manager: Some(self.manager.into()),
                        ..PatchParams::default()
                    };
                    let api: Api<DynamicObject> =
                        Api::namespaced_with(client.clone(), &namespace, &resource(*kind));
                    // A failed request is repeated at the next turn.
                    let _ = api.patch(name, &params, &Patch::Merge(&self.desired)).await;
                }
                tokio::time::sleep(TURN).await;
            }
        }))
    }

    async fn is_active(&self, client: &Client) -> bool {
        let Some(pause_setting) = &self.pause_setting else {
            return true;
        };
        let (kind, namespace, name) = &pause_setting.object;
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &resource(*kind));
        let Ok(found) = api.get(name).await else {
            return false;
        };
        let found = serde_json::to_value(found).unwrap_or_default();
        let value = found.pointer(&pause_setting.field);
        *value.unwrap_or(&Value::Null) != pause_setting.paused_value
    }
}
