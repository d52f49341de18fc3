//! Which controllers act on the objects that the cutover changes, judged from the objects
//! themselves: labels, annotations, owner references, managedFields, and the autoscalers that name
//! them. The owners that have an object of their own are in [`owners`](super::owners).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    controllers::suspension::{Object, Suspension},
    snapshot::prechecks::ReplicaOwners,
};

pub(super) const FLUX_KUSTOMIZATION: &str = "kustomize.toolkit.fluxcd.io/name";
const FLUX_RECONCILE: &str = "kustomize.toolkit.fluxcd.io/reconcile";
/// Field managers of spec.replicas that are command-line tools, this program, or controllers that
/// are detected by the objects that they own.
const KNOWN_MANAGERS: [&str; 9] = [
    "replica-migration",
    "kubectl",
    "helm",
    "Helm",
    "kube-controller-manager",
    "keda",
    "kustomize-controller",
    "helm-controller",
    "argocd",
];

/// The part of an object's `metadata` that shows which controllers manage it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `ownerReferences`.
    pub owner_references: Vec<OwnerReference>,
    /// `managedFields`.
    pub managed_fields: Vec<ManagedFields>,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    /// Kind of the owner.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// True for the one owner that controls the object.
    pub controller: Option<bool>,
}

/// An entry of `metadata.managedFields`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedFields {
    /// Name of the field manager.
    pub manager: Option<String>,
    /// The fields that it owns, as the API server lists them.
    #[serde(rename = "fieldsV1")]
    pub fields_v1: Value,
}

/// An object that the cutover changes.
#[derive(Clone, Debug)]
pub struct ChangedObject {
    /// The object.
    pub object: Object,
    /// Its metadata.
    pub metadata: Metadata,
    /// The change is permanent: it is not reverted after the cutover.
    pub for_good: bool,
}

impl ChangedObject {
    pub(super) fn label(&self, name: &str) -> Option<&String> {
        self.metadata.labels.get(name)
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&String> {
        self.metadata.annotations.get(name)
    }

    fn managers(&self) -> impl Iterator<Item = &ManagedFields> {
        self.metadata.managed_fields.iter()
    }
}

/// The annotations by which a Flux Kustomization leaves these objects alone. They are set on the
/// objects themselves, which requires no permission on the Kustomization.
pub fn flux(changed: &[ChangedObject]) -> Vec<Suspension> {
    let managed = changed
        .iter()
        .filter_map(|one| Some((one, one.label(FLUX_KUSTOMIZATION)?)));
    managed
        .map(|(one, name)| {
            let was = one.annotation(FLUX_RECONCILE).map(String::as_str);
            let suspension =
                Suspension::annotation(one.object.clone(), FLUX_RECONCILE, "disabled", was)
                    .because(format!(
                        "Flux's Kustomization {name} would put {} back",
                        one.object
                    ));
            if one.for_good {
                suspension.permanently()
            } else {
                suspension
            }
        })
        .collect()
}

/// KEDA's ScaledObjects that scale one of these workloads.
pub fn keda(scaled_objects: &[Value], workloads: &[Object]) -> Vec<Suspension> {
    const PAUSED: &str = "autoscaling.keda.sh/paused";
    let scales = |scaled: &&Value| {
        let target = &scaled["spec"]["scaleTargetRef"];
        let kind = target["kind"].as_str().unwrap_or("Deployment");
        workloads
            .iter()
            .any(|one| one.kind == kind && Some(one.name.as_str()) == target["name"].as_str())
    };
    scaled_objects
        .iter()
        .filter(scales)
        .map(|scaled| {
            let name = scaled["metadata"]["name"].as_str().unwrap_or_default();
            let object = Object::of("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects", name);
            let target = scaled["spec"]["scaleTargetRef"]["name"]
                .as_str()
                .unwrap_or_default();
            Suspension::annotation(
                object,
                PAUSED,
                "true",
                scaled["metadata"]["annotations"][PAUSED].as_str(),
            )
            .because(format!("KEDA would scale {target} up again"))
        })
        .collect()
}

/// The workloads that KEDA scales, found by the autoscalers that it creates for them.
pub fn keda_scales(autoscalers: &[Value], workloads: &[Object]) -> Vec<String> {
    let by_keda = |scaler: &&Value| {
        let owners = scaler["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        owners
            .into_iter()
            .any(|owner| owner["kind"] == "ScaledObject")
    };
    let targets = autoscalers
        .iter()
        .filter(by_keda)
        .map(|scaler| &scaler["spec"]["scaleTargetRef"]["name"]);
    let scaled = targets
        .filter_map(Value::as_str)
        .filter(|name| workloads.iter().any(|one| one.name == *name));
    scaled.map(str::to_owned).collect()
}

/// A CronJob of the application, which would start writers.
pub fn cron_job(found: &Value) -> Suspension {
    let name = found["metadata"]["name"].as_str().unwrap_or_default();
    let object = Object::of("batch", "v1", "CronJob", "cronjobs", name);
    let was = found["spec"]["suspend"].clone();
    Suspension::field(object, &["spec", "suspend"], json!(true), was)
        .because(format!("the CronJob {name} would start pods that write"))
}

/// The workloads whose replicas are also set by controllers that this program cannot pause.
pub fn replica_owners(changed: &[ChangedObject], workloads: &[Object]) -> Vec<ReplicaOwners> {
    let scaled = changed.iter().filter(|one| workloads.contains(&one.object));
    scaled
        .map(|one| ReplicaOwners {
            workload: one.object.to_string(),
            owners: unknown_managers(one),
        })
        .filter(|found| !found.owners.is_empty())
        .collect()
}

/// The autoscalers of these workloads that no other controller owns. They ignore a workload
/// with 0 replicas.
pub fn autoscalers(autoscalers: &[Value], workloads: &[Object]) -> Vec<String> {
    let scales = |scaler: &&Value| {
        let target = &scaler["spec"]["scaleTargetRef"];
        let owned = scaler["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|owners| !owners.is_empty());
        let names = |one: &Object| target["kind"] == one.kind && target["name"] == one.name;
        !owned && workloads.iter().any(names)
    };
    let found = autoscalers.iter().filter(scales);
    found
        .filter_map(|scaler| scaler["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// Controllers by owner reference, and unknown field managers of `spec.replicas`.
fn unknown_managers(one: &ChangedObject) -> Vec<String> {
    let references = one.metadata.owner_references.iter();
    let controllers = references
        .filter(|owner| owner.controller == Some(true))
        .map(|owner| format!("its owner {} {}", owner.kind, owner.name));
    let replicas = |entry: &&ManagedFields| !entry.fields_v1["f:spec"]["f:replicas"].is_null();
    let known = |name: &str| KNOWN_MANAGERS.iter().any(|known| name.starts_with(known));
    let managers = one
        .managers()
        .filter(replicas)
        .filter_map(|entry| entry.manager.clone());
    controllers
        .chain(
            managers
                .filter(|name| !known(name))
                .map(|name| format!("the field manager {name}")),
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::owners::Owners;

    fn deployment(metadata: Value) -> ChangedObject {
        ChangedObject {
            object: Object::of("apps", "v1", "Deployment", "deployments", "web"),
            metadata: serde_json::from_value(metadata).unwrap(),
            for_good: false,
        }
    }

    fn config(metadata: Value) -> ChangedObject {
        ChangedObject {
            object: Object::of("", "v1", "ConfigMap", "configmaps", "settings"),
            metadata: serde_json::from_value(metadata).unwrap(),
            for_good: true,
        }
    }

    #[test]
    fn an_object_that_no_controller_manages_has_no_owner() {
        let plain = [deployment(
            json!({"labels": {"app.kubernetes.io/instance": "shop"}}),
        )];
        assert!(Owners::of(&plain, "argocd").unread().is_empty() && flux(&plain).is_empty());
        assert!(replica_owners(&plain, &[plain[0].object.clone()]).is_empty());
    }

    #[test]
    fn flux_is_suspended_at_the_object_and_permanently_where_the_change_is_permanent() {
        let labels = json!({"labels": {FLUX_KUSTOMIZATION: "apps"}});
        let suspensions = flux(&[deployment(labels.clone()), config(labels)]);
        assert_eq!(
            suspensions[0].field,
            ["metadata", "annotations", FLUX_RECONCILE]
        );
        assert_eq!(
            (suspensions[0].permanent, suspensions[1].permanent),
            (false, true)
        );
    }

    #[test]
    fn keda_is_paused_where_it_scales_one_of_the_workloads() {
        let scaled = |name: &str, target: &str| {
            json!({
                "metadata": {"name": name},
                "spec": {"scaleTargetRef": {"name": target}},
            })
        };
        let web = deployment(json!({})).object;
        let paused = keda(&[scaled("ours", "web"), scaled("theirs", "other")], &[web]);
        assert_eq!(
            paused.iter().map(Suspension::key).collect::<Vec<_>>(),
            ["ScaledObject ours autoscaling.keda.sh/paused"]
        );
    }

    #[test]
    fn unknown_owners_of_replicas_and_autoscalers_are_named() {
        let metadata = json!({
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Mastodon",
                "name": "m",
                "uid": "1",
                "controller": true,
            }],
            "managedFields": [
                {"manager": "robot", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                {
                    "manager": "kubectl-client-side-apply",
                    "fieldsV1": {"f:spec": {"f:replicas": {}}},
                },
                {"manager": "labeller", "fieldsV1": {"f:metadata": {}}},
            ],
        });
        let changed = [deployment(metadata)];
        let web = changed[0].object.clone();
        let scaler = |owned: bool| {
            let owners = if owned {
                json!([{"kind": "ScaledObject"}])
            } else {
                json!([])
            };
            json!({
                "metadata": {"name": "web", "ownerReferences": owners},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}},
            })
        };
        let found = replica_owners(&changed, std::slice::from_ref(&web));
        assert_eq!(found[0].workload, "Deployment web");
        assert_eq!(
            found[0].owners,
            ["its owner Mastodon m", "the field manager robot"]
        );
        let workloads = [web];
        assert_eq!(autoscalers(&[scaler(false)], &workloads), ["web"]);
        assert!(autoscalers(&[scaler(true)], &workloads).is_empty());
    }
}
