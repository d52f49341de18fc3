//! The controllers that would undo the cutover while it runs, and the one field that suspends each.
//!
//! | controller | field | documented by |
//! |---|---|---|
//! | the Zalando operator | annotation `acid.zalan.do/controller` of the `postgresql` resource | docs/operators/zalando.md#suspending-the-operator |
//! | KEDA | annotation `autoscaling.keda.sh/paused` of the ScaledObject | KEDA, *Pause autoscaling* |
//! | Flux, a Kustomization | annotation `kustomize.toolkit.fluxcd.io/reconcile` of the object that it manages, also of a HelmRelease or an Application | Flux, *Kustomization* |
//! | Flux, a HelmRelease | `spec.suspend` | Flux, *HelmRelease* |
//! | Argo CD | `spec.syncPolicy.automated` of the Application, and of the Applications above it | Argo CD, *Automated Sync Policy* |
//! | the application's CronJobs | `spec.suspend` | Kubernetes |
//!
//! A HorizontalPodAutoscaler needs none: it ignores a workload with 0 replicas. KEDA's
//! `paused-replicas` is not used, because it would scale the application down by itself, before the
//! block.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The annotation of the `postgresql` resource that names the operator that owns it. Any other
/// value suspends the source's operator
/// (docs/operators/zalando.md#suspending-the-operator).
pub const CONTROLLER: &str = "acid.zalan.do/controller";

/// The value that this program writes to [`CONTROLLER`].
pub const SUSPENDED: &str = "frozen-by-replica-migration";

/// An object by its type and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Its name in paths and Roles.
    pub plural: String,
    /// Namespace; None is that of the migration.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl Object {
    /// An object of the migration's own namespace.
    pub fn of(group: &str, version: &str, kind: &str, plural: &str, name: &str) -> Self {
        let [group, version, kind, plural, name] =
            [group, version, kind, plural, name].map(str::to_owned);
        Self {
            group,
            version,
            kind,
            plural,
            namespace: None,
            name,
        }
    }

    /// The same in another namespace.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// A field that suspends a controller, with its original value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspension {
    /// The object that has the field.
    pub object: Object,
    /// The keys that lead to it.
    pub field: Vec<String>,
    /// Its value while the cutover runs.
    #[serde(alias = "frozen")]
    pub suspended: Value,
    /// Its original value; null: absent.
    #[serde(alias = "was")]
    pub original: Value,
    /// It stays after the cutover, because the controller would undo a permanent change.
    #[serde(alias = "stays")]
    pub permanent: bool,
    /// What would happen without the suspension.
    pub why: String,
}

impl Suspension {
    /// The operator restarts, scales and alters the source.
    pub fn zalando_operator(cluster: &str, was: Option<&str>) -> Self {
        Self::annotation(
            Object::of("acid.zalan.do", "v1", "postgresql", "postgresqls", cluster),
            CONTROLLER,
            SUSPENDED,
            was,
        )
        .permanently()
        .because("the Zalando operator would start the source again")
    }

    /// An annotation of an object.
    pub fn annotation(object: Object, name: &str, suspended: &str, was: Option<&str>) -> Self {
        Self::field(
            object,
            &["metadata", "annotations", name],
            json!(suspended),
            json!(was),
        )
    }

    /// Any field of an object.
    pub fn field(object: Object, field: &[&str], suspended: Value, original: Value) -> Self {
        Self {
            object,
            field: field.iter().map(|key| (*key).to_owned()).collect(),
            suspended,
            original,
            permanent: false,
            why: String::new(),
        }
    }

    /// Keeps the suspension after the cutover.
    #[must_use]
    pub fn permanently(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// Says what would happen without the suspension.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// The name of the suspension, which stays the same before, during and after the cutover.
    pub fn key(&self) -> String {
        format!(
            "{} {}",
            self.object,
            self.field.last().map_or("", String::as_str)
        )
    }

    /// The field's value in an object as the API returned it.
    pub fn read(&self, object: &Value) -> Value {
        let found = self
            .field
            .iter()
            .try_fold(object, |value, key| value.get(key));
        found.cloned().unwrap_or_default()
    }

    /// The merge patch that gives the field this value, if the object still has this version.
    pub fn patch(&self, value: &Value, version: &str) -> Value {
        let mut patch = self
            .field
            .iter()
            .rev()
            .fold(value.clone(), |inner, key| json!({key: inner}));
        patch["metadata"]["resourceVersion"] = json!(version);
        patch
    }

    /// The command by which an administrator restores the original value.
    pub fn by_hand(&self, namespace: &str) -> String {
        let patch = self
            .field
            .iter()
            .rev()
            .fold(self.original.clone(), |inner, key| json!({key: inner}));
        format!(
            "kubectl patch {}.{} {} -n {} --type merge -p '{patch}'",
            self.object.plural,
            self.object.group,
            self.object.name,
            self.object.namespace.as_deref().unwrap_or(namespace)
        )
    }
}

/// A recorded or required suspension with the current state of its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspensionState {
    /// The field; `original` is its current value.
    pub now: Suspension,
    /// The object's resourceVersion; None when it is gone.
    pub version: Option<String>,
}

impl SuspensionState {
    /// The controller is suspended, or its object is gone.
    pub fn is_suspended(&self) -> bool {
        self.version.is_none() || self.now.original == self.now.suspended
    }

    /// The field has its recorded value, or its object is gone.
    pub fn as_recorded(&self, recorded: &Suspension) -> bool {
        self.version.is_none() || self.now.original == recorded.original
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paused(was: Option<&str>) -> Suspension {
        let object = Object::of(
            "keda.sh",
            "v1alpha1",
            "ScaledObject",
            "scaledobjects",
            "web",
        );
        Suspension::annotation(object, "autoscaling.keda.sh/paused", "true", was)
    }

    #[test]
    fn a_patch_changes_one_field_of_the_observed_version() {
        let patch = paused(None).patch(&json!("true"), "7");
        assert_eq!(
            patch,
            json!({"metadata": {
                "annotations": {"autoscaling.keda.sh/paused": "true"},
                "resourceVersion": "7",
            }})
        );
        let suspend = Suspension::field(
            paused(None).object,
            &["spec", "suspend"],
            json!(true),
            Value::Null,
        );
        assert_eq!(
            suspend.patch(&Value::Null, "8"),
            json!({"spec": {"suspend": null}, "metadata": {"resourceVersion": "8"}})
        );
    }

    #[test]
    fn a_missing_field_is_read_as_null() {
        let object = json!({"metadata": {"annotations": {"autoscaling.keda.sh/paused": "false"}}});
        assert_eq!(paused(None).read(&object), json!("false"));
        assert_eq!(paused(None).read(&json!({"metadata": {}})), Value::Null);
    }

    #[test]
    fn an_object_that_is_gone_is_neither_suspended_nor_restored() {
        let now = |was, version: Option<&str>| SuspensionState {
            now: paused(was),
            version: version.map(str::to_owned),
        };
        assert!(!now(None, Some("1")).is_suspended());
        assert!(now(Some("true"), Some("1")).is_suspended());
        assert!(now(None, None).is_suspended() && now(Some("x"), None).as_recorded(&paused(None)));
        assert!(now(None, Some("1")).as_recorded(&paused(None)));
        assert!(!now(Some("true"), Some("1")).as_recorded(&paused(None)));
    }
}
