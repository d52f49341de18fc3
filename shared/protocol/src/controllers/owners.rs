//! The HelmReleases and Applications that manage what the cutover changes, and the owners of those
//! in turn: a parent (an app of apps, a Kustomization that applies a HelmRelease) would put back
//! the field that suspends its child.
//!
//! Which owners there are is seen step by step, because the metadata of one names the next:
//! [`Owners::unread`] says what to read, [`Owners::add`] takes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    detection::{ChangedObject, FLUX_KUSTOMIZATION, Metadata, flux},
    suspension::{Object, Suspension},
};
use crate::snapshot::prechecks::GeneratedOwner;

const FLUX_KUSTOMIZATION_NAMESPACE: &str = "kustomize.toolkit.fluxcd.io/namespace";
const FLUX_RELEASE: (&str, &str) = (
    "helm.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/namespace",
);
const ARGO_TRACKING: &str = "argocd.argoproj.io/tracking-id";
const ARGO_LABELS: [&str; 2] = ["argocd.argoproj.io/instance", "app.kubernetes.io/instance"];
const ARGO_MANAGERS: [&str; 2] = ["argocd-controller", "argocd-application-controller"];
const RELEASE: &str = "HelmRelease";
const APPLICATION: &str = "Application";
/// Generates Applications and keeps them as generated; it has no field for a pause (Argo CD,
/// *Controlling Resource Modification*).
const APPLICATION_SET: &str = "ApplicationSet";

/// An owner whose own object has to be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// A HelmRelease or an Application.
    pub object: Object,
    /// It manages an object that the cutover changes permanently.
    pub for_good: bool,
    /// What it manages: changed objects, and owners that are suspended.
    pub manages: Vec<String>,
}

/// An object that the cutover changes permanently and that a GitOps controller applies from
/// elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitOpsManaged {
    /// The object.
    pub object: Object,
    /// What applies it, such as `Application argocd/shop`.
    pub by: String,
}

/// The owners of the changed objects, as far as they were read.
#[derive(Clone, Debug)]
pub struct Owners<'a> {
    changed: &'a [ChangedObject],
    /// The namespace of Applications that name no other.
    argo_namespace: &'a str,
    /// Null: it does not exist, or cannot be read.
    read: BTreeMap<Object, Value>,
}

impl<'a> Owners<'a> {
    /// None is read yet.
    pub fn of(changed: &'a [ChangedObject], argo_namespace: &'a str) -> Self {
        Self {
            changed,
            argo_namespace,
            read: BTreeMap::new(),
        }
    }

    /// The owners that are to be read next; empty when all are known.
    pub fn unread(&self) -> Vec<Owner> {
        let mut owners = self.owners();
        owners.retain(|owner| !self.read.contains_key(&owner.object));
        owners
    }

    /// Takes an owner as it was read; null where it does not exist or cannot be read.
    pub fn add(&mut self, object: Object, found: Value) {
        self.read.insert(object, found);
    }

    /// The fields that suspend these owners, and the annotations by which Flux's Kustomizations
    /// leave the changed objects and the suspended owners alone: parents before their children.
    pub fn suspensions(&self) -> Vec<Suspension> {
        let owners = self.owners();
        let mut order = Vec::new();
        for owner in &owners {
            self.visit(&owner.object, &mut BTreeSet::new(), &mut order);
        }
        let suspended = order.iter().filter_map(|object| {
            let owner = owners.iter().find(|owner| owner.object == *object)?;
            pause(owner, self.read.get(object)?)
        });
        flux(&self.all()).into_iter().chain(suspended).collect()
    }

    /// The suspended Applications that an ApplicationSet generates, which would put their field
    /// back.
    pub fn generated(&self) -> Vec<GeneratedOwner> {
        let owners = self.owners();
        let suspended = owners
            .iter()
            .filter_map(|owner| Some((owner, self.suspended(owner)?)));
        let of = |(owner, changed): (&Owner, ChangedObject)| {
            let references = changed.metadata.owner_references.into_iter();
            let sets = references.filter(|reference| reference.kind == APPLICATION_SET);
            let generated = sets.map(|set| GeneratedOwner {
                owner: owner.object.to_string(),
                kind: set.kind,
                name: set.name,
                manages: owner.manages.clone(),
            });
            generated.collect::<Vec<_>>()
        };
        suspended.flat_map(of).collect()
    }

    /// The objects whose change is permanent, and what applies them.
    pub fn managed(&self) -> Vec<GitOpsManaged> {
        let mut managed = Vec::new();
        for one in self.changed.iter().filter(|one| one.for_good) {
            let kustomization = one.label(FLUX_KUSTOMIZATION).map(|name| {
                let namespace = one.label(FLUX_KUSTOMIZATION_NAMESPACE);
                let prefix = namespace.map_or_else(String::new, |name| format!("{name}/"));
                format!("Kustomization {prefix}{name}")
            });
            let exists = |object: &Object| self.read.get(object) != Some(&Value::Null);
            let owners = named(one, self.argo_namespace).into_iter().filter(exists);
            let all = kustomization
                .into_iter()
                .chain(owners.map(|object| object.to_string()));
            managed.extend(all.map(|by| GitOpsManaged {
                object: one.object.clone(),
                by,
            }));
        }
        managed
    }

    /// The owners of the changed objects, and those of the suspended owners.
    fn owners(&self) -> Vec<Owner> {
        owners(&self.all(), self.argo_namespace)
    }

    /// The changed objects and the suspended owners, whose field is a change as well. It grows
    /// until no owner is added, and none that manages a permanent change is taken for a temporary
    /// one.
    fn all(&self) -> Vec<ChangedObject> {
        let mut all = self.changed.to_vec();
        loop {
            let owners = owners(&all, self.argo_namespace);
            let suspended = owners.iter().filter_map(|owner| self.suspended(owner));
            let next: Vec<ChangedObject> = self.changed.iter().cloned().chain(suspended).collect();
            if keys(&next) == keys(&all) {
                return all;
            }
            all = next;
        }
    }

    /// An owner as a changed object, where the cutover suspends it.
    fn suspended(&self, owner: &Owner) -> Option<ChangedObject> {
        let found = self.read.get(&owner.object)?;
        pause(owner, found)?;
        Some(ChangedObject {
            object: owner.object.clone(),
            metadata: metadata(found),
            for_good: owner.for_good,
        })
    }

    /// Appends an owner behind its own owners. `path`: those that are being visited, because an
    /// Application may manage itself.
    fn visit(&self, object: &Object, path: &mut BTreeSet<Object>, order: &mut Vec<Object>) {
        if order.contains(object) || !path.insert(object.clone()) {
            return;
        }
        if let Some(found) = self.read.get(object) {
            let changed = ChangedObject {
                object: object.clone(),
                metadata: metadata(found),
                for_good: false,
            };
            for parent in named(&changed, self.argo_namespace) {
                self.visit(&parent, path, order);
            }
        }
        order.push(object.clone());
    }
}

fn metadata(found: &Value) -> Metadata {
    Metadata::deserialize(&found["metadata"]).unwrap_or_default()
}

fn keys(changed: &[ChangedObject]) -> BTreeSet<(&Object, bool)> {
    changed
        .iter()
        .map(|one| (&one.object, one.for_good))
        .collect()
}

/// The HelmReleases and Applications that manage these objects.
fn owners(changed: &[ChangedObject], argo_namespace: &str) -> Vec<Owner> {
    let mut found: BTreeMap<Object, Owner> = BTreeMap::new();
    for one in changed {
        for object in named(one, argo_namespace) {
            let owner = found.entry(object.clone()).or_insert(Owner {
                object,
                for_good: false,
                manages: Vec::new(),
            });
            owner.for_good |= one.for_good;
            owner.manages.push(one.object.to_string());
        }
    }
    found.into_values().collect()
}

/// The owners that the metadata of an object names.
fn named(changed: &ChangedObject, argo_namespace: &str) -> Vec<Object> {
    let release = changed
        .label(FLUX_RELEASE.0)
        .zip(changed.label(FLUX_RELEASE.1));
    let release = release.map(|(name, namespace)| {
        Object::of(
            "helm.toolkit.fluxcd.io",
            "v2",
            RELEASE,
            "helmreleases",
            name,
        )
        .within(namespace)
    });
    let application = application(changed).map(|name| {
        // Applications outside Argo CD's own namespace are tracked as `namespace_name`.
        let (namespace, name) = name.split_once('_').unwrap_or((argo_namespace, name));
        Object::of("argoproj.io", "v1alpha1", APPLICATION, "applications", name).within(namespace)
    });
    release.into_iter().chain(application).collect()
}

/// The name of the Application that tracks an object, by its annotation or, where Argo CD applied
/// the object, by its label.
fn application(changed: &ChangedObject) -> Option<&str> {
    let tracked = changed
        .annotation(ARGO_TRACKING)
        .and_then(|id| id.split(':').next());
    let by_label = || {
        let mut managers = changed.metadata.managed_fields.iter();
        // In every Application Argo CD writes the status; only what it applies it gives a spec.
        let status_only =
            |fields: &Value| changed.object.kind == APPLICATION && fields["f:spec"].is_null();
        let applied = managers.any(|entry| {
            let manager = entry.manager.as_deref();
            manager.is_some_and(|name| ARGO_MANAGERS.contains(&name))
                && !status_only(&entry.fields_v1)
        });
        let label = ARGO_LABELS.iter().find_map(|label| changed.label(label));
        label.filter(|_| applied).map(String::as_str)
    };
    tracked.or_else(by_label)
}

/// The field that pauses this owner, from the object as it was read; None when the owner does not
/// act by itself.
fn pause(owner: &Owner, found: &Value) -> Option<Suspension> {
    if found.is_null() {
        return None;
    }
    let object = owner.object.clone();
    let why = format!("{object} would put back {}", owner.manages.join(", "));
    let suspension = if object.kind == RELEASE {
        let was = found["spec"]["suspend"].clone();
        Suspension::field(object, &["spec", "suspend"], json!(true), was)
    } else {
        // Without selfHeal it leaves a changed object alone, until the next commit: then it applies
        // all of them. The field is removed, because Argo CD up to 3.0 does not know
        // `enabled: false`.
        let automated = &found["spec"]["syncPolicy"]["automated"];
        if !automated.is_object() || automated["enabled"] == json!(false) {
            return None;
        }
        let field = ["spec", "syncPolicy", "automated"];
        Suspension::field(object, &field, Value::Null, automated.clone())
    };
    let suspension = suspension.because(why);
    Some(if owner.for_good {
        suspension.permanently()
    } else {
        suspension
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTOMATED: &str = "Application argocd/shop automated";

    fn changed(kind: &str, name: &str, for_good: bool, metadata: Value) -> ChangedObject {
        let plural = format!("{}s", kind.to_lowercase());
        ChangedObject {
            object: Object::of("", "v1", kind, &plural, name),
            metadata: serde_json::from_value(metadata).unwrap(),
            for_good,
        }
    }

    fn deployment(metadata: Value) -> ChangedObject {
        changed("Deployment", "web", false, metadata)
    }

    fn cluster(metadata: Value) -> ChangedObject {
        changed("Cluster", "database", true, metadata)
    }

    /// An object that the Application `app` tracks.
    fn tracked_by(app: &str) -> Value {
        json!({"annotations": {ARGO_TRACKING: format!("{app}:apps/Deployment:ns/web")}})
    }

    /// An Application as Argo CD keeps it: the controller writes status into every one of them.
    fn app(metadata: Value, sync_policy: Value) -> Value {
        let mut app = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
            "metadata": {"managedFields": [{
                "manager": "argocd-application-controller", "operation": "Update",
                "fieldsV1": {"f:status": {"f:sync": {}}},
            }]},
            "spec": {"project": "default", "syncPolicy": sync_policy},
        });
        for (key, value) in metadata.as_object().unwrap() {
            app["metadata"][key] = value.clone();
        }
        app
    }

    /// Reads the owners until none is left, from these; any other does not exist.
    fn read<'a>(changed: &'a [ChangedObject], found: &[(&str, Value)]) -> Owners<'a> {
        let mut owners = Owners::of(changed, "argocd");
        for _ in 0..10 {
            let unread = owners.unread();
            if unread.is_empty() {
                return owners;
            }
            for owner in unread {
                let name = owner.object.to_string();
                let object = found.iter().find(|(named, _)| *named == name);
                let object = object.map_or(Value::Null, |(_, object)| object.clone());
                owners.add(owner.object, object);
            }
        }
        panic!("there is always one more to read: {owners:?}");
    }

    fn keys(owners: &Owners<'_>) -> Vec<String> {
        owners.suspensions().iter().map(Suspension::key).collect()
    }

    #[test]
    fn a_release_and_an_application_are_found_by_their_labels_and_annotations() {
        let by_helm = json!({"labels": {FLUX_RELEASE.0: "shop", FLUX_RELEASE.1: "flux-system"}});
        let labelled = json!({
            "labels": {"app.kubernetes.io/instance": "shop"},
            "managedFields": [{"manager": "argocd-controller", "operation": "Apply"}],
        });
        for (metadata, wanted) in [
            (by_helm, "HelmRelease flux-system/shop"),
            (tracked_by("shop"), "Application argocd/shop"),
            (tracked_by("team_shop"), "Application team/shop"),
            (labelled, "Application argocd/shop"),
        ] {
            let found = Owners::of(&[deployment(metadata)], "argocd").unread();
            assert_eq!(found[0].object.to_string(), wanted);
            assert!(!found[0].for_good && found.len() == 1);
        }
    }

    #[test]
    fn an_application_is_paused_where_it_syncs_by_itself() {
        let objects = [deployment(tracked_by("shop")), cluster(tracked_by("shop"))];
        for automated in [
            json!({}),
            json!({"selfHeal": true, "prune": true}),
            json!({"enabled": true}),
        ] {
            let found = app(json!({}), json!({"automated": automated}));
            let paused = read(&objects, &[("Application argocd/shop", found)]).suspensions();
            assert_eq!(paused.len(), 1, "{automated}");
            assert_eq!(paused[0].key(), AUTOMATED);
            assert_eq!(
                (
                    &paused[0].suspended,
                    &paused[0].original,
                    paused[0].permanent
                ),
                (&Value::Null, &automated, true)
            );
            assert_eq!(
                paused[0].why,
                "Application argocd/shop would put back Deployment web, Cluster database"
            );
            // Restoring the field gives the object back what it had.
            let patch = paused[0].patch(&paused[0].original, "7");
            assert_eq!(patch["spec"]["syncPolicy"]["automated"], automated);
        }
        for by_hand in [
            json!({}),
            json!({"automated": {"enabled": false, "selfHeal": true}}),
            Value::Null,
        ] {
            let found = app(json!({}), by_hand.clone());
            let owners = read(&objects, &[("Application argocd/shop", found)]);
            assert_eq!(keys(&owners), Vec::<String>::new(), "{by_hand}");
            // It applies its manifests when a person asks for it.
            assert_eq!(owners.managed()[0].by, "Application argocd/shop");
        }
    }

    #[test]
    fn a_release_is_suspended_and_restored_to_what_it_was() {
        let labels = json!({"labels": {FLUX_RELEASE.0: "shop", FLUX_RELEASE.1: "ns"}});
        let objects = [deployment(labels)];
        let release = json!({"metadata": {}, "spec": {"interval": "5m"}});
        let paused = read(&objects, &[("HelmRelease ns/shop", release)]).suspensions();
        assert_eq!(paused[0].key(), "HelmRelease ns/shop suspend");
        assert_eq!(
            (
                &paused[0].suspended,
                &paused[0].original,
                paused[0].permanent
            ),
            (&json!(true), &Value::Null, false)
        );
    }

    /// An app of apps, whose root manages itself, by annotation and by label.
    #[test]
    fn the_applications_above_an_application_are_paused_before_it() {
        let automated = json!({"automated": {"selfHeal": true}});
        let tracking = |parent: &str, name: &str| {
            let id = format!("{parent}:argoproj.io/Application:argocd/{name}");
            json!({"annotations": {ARGO_TRACKING: id}})
        };
        let by_label = json!({
            "labels": {"app.kubernetes.io/instance": "apps"},
            "managedFields": [{
                "manager": "argocd-application-controller", "operation": "Update",
                "fieldsV1": {"f:metadata": {"f:labels": {}}, "f:spec": {"f:source": {}}},
            }],
        });
        let objects = [deployment(tracked_by("shop")), cluster(tracked_by("data"))];
        for labelled in [tracking("apps", "data"), by_label] {
            let owners = read(
                &objects,
                &[
                    (
                        "Application argocd/shop",
                        app(tracking("apps", "shop"), automated.clone()),
                    ),
                    ("Application argocd/data", app(labelled, automated.clone())),
                    (
                        "Application argocd/apps",
                        app(tracking("apps", "apps"), automated.clone()),
                    ),
                ],
            );
            assert_eq!(
                keys(&owners),
                [
                    "Application argocd/apps automated",
                    "Application argocd/data automated",
                    AUTOMATED,
                ]
            );
            let suspensions = owners.suspensions();
            let permanent: Vec<bool> = suspensions.iter().map(|one| one.permanent).collect();
            assert_eq!(
                permanent,
                [true, true, false],
                "resumed, it would put data back"
            );
            assert!(
                suspensions[0]
                    .why
                    .contains("would put back Application argocd/"),
                "{}",
                suspensions[0].why
            );
            assert_eq!(owners.generated(), []);
        }
    }

    #[test]
    fn a_label_of_helm_on_an_application_is_no_parent() {
        let labels = json!({"labels": {"app.kubernetes.io/instance": "argo-cd"}});
        let objects = [cluster(tracked_by("shop"))];
        let found = app(labels, json!({"automated": {}}));
        let mut owners = Owners::of(&objects, "argocd");
        let owner = owners.unread().remove(0);
        owners.add(owner.object, found);
        assert_eq!(owners.unread(), []);
    }

    #[test]
    fn an_application_set_is_named_because_it_would_put_the_field_back() {
        let generated = json!({"ownerReferences": [{
            "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "shops",
            "uid": "1", "controller": true, "blockOwnerDeletion": true,
        }]});
        let objects = [cluster(tracked_by("shop"))];
        let with = |sync_policy: Value| {
            let found = app(generated.clone(), sync_policy);
            read(&objects, &[("Application argocd/shop", found)])
        };
        assert_eq!(
            with(json!({"automated": {}})).generated(),
            [GeneratedOwner {
                owner: "Application argocd/shop".into(),
                kind: "ApplicationSet".into(),
                name: "shops".into(),
                manages: vec!["Cluster database".into()],
            }]
        );
        // One that does not act by itself has no field to put back.
        assert_eq!(with(json!({})).generated(), []);
    }

    #[test]
    fn the_kustomization_above_a_release_or_an_application_leaves_it_alone() {
        let flux = json!({"labels": {
            FLUX_KUSTOMIZATION: "apps", FLUX_KUSTOMIZATION_NAMESPACE: "flux-system",
        }});
        let labels = json!({"labels": {FLUX_RELEASE.0: "shop", FLUX_RELEASE.1: "ns"}});
        let objects = [cluster(labels), deployment(tracked_by("shop"))];
        let owners = read(
            &objects,
            &[
                ("HelmRelease ns/shop", json!({"metadata": flux, "spec": {}})),
                (
                    "Application argocd/shop",
                    app(flux.clone(), json!({"automated": {}})),
                ),
            ],
        );
        assert_eq!(
            keys(&owners),
            [
                "Application argocd/shop kustomize.toolkit.fluxcd.io/reconcile",
                "HelmRelease ns/shop kustomize.toolkit.fluxcd.io/reconcile",
                AUTOMATED,
                "HelmRelease ns/shop suspend",
            ]
        );
        let permanent: Vec<bool> = owners
            .suspensions()
            .iter()
            .map(|one| one.permanent)
            .collect();
        assert_eq!(permanent, [false, true, false, true]);
    }

    #[test]
    fn what_applies_a_permanent_change_is_named() {
        let both = json!({
            "labels": {FLUX_KUSTOMIZATION: "apps", FLUX_KUSTOMIZATION_NAMESPACE: "flux-system"},
            "annotations": {ARGO_TRACKING: "gone:apps/Deployment:ns/web"},
        });
        let objects = [cluster(both), deployment(tracked_by("shop"))];
        let by: Vec<String> = read(&objects, &[])
            .managed()
            .into_iter()
            .map(|one| format!("{} {}", one.object, one.by))
            .collect();
        assert_eq!(by, ["Cluster database Kustomization flux-system/apps"]);
    }
}
