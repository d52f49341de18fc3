//! The namespace's objects of any kind, by kind and name, as a person reads and changes them with
//! kubectl.

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::Value;

/// Group, version and kind.
pub type Kind = (&'static str, &'static str, &'static str);

/// The application's workloads.
pub const DEPLOYMENT: Kind = ("apps", "v1", "Deployment");
/// Settings and records.
pub const CONFIG_MAP: Kind = ("", "v1", "ConfigMap");
/// The source's resource.
pub const POSTGRESQL: Kind = ("acid.zalan.do", "v1", "postgresql");
/// The target's resource.
pub const CNPG: Kind = ("postgresql.cnpg.io", "v1", "Cluster");
/// The target's poolers.
pub const POOLER: Kind = ("postgresql.cnpg.io", "v1", "Pooler");
/// Names of servers.
pub const SERVICE: Kind = ("", "v1", "Service");
/// Where a Service leads to.
pub const SLICE: Kind = ("discovery.k8s.io", "v1", "EndpointSlice");
/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Passwords and certificates.
pub const SECRET: Kind = ("", "v1", "Secret");
/// Permissions.
pub const ROLE: Kind = ("rbac.authorization.k8s.io", "v1", "Role");
/// The steps.
pub const CRON_JOB: Kind = ("batch", "v1", "CronJob");
/// What was made of them.
pub const JOB: Kind = ("batch", "v1", "Job");
/// Pods.
pub const POD: Kind = ("", "v1", "Pod");
/// What keeps a second cutover out.
pub const LEASE: Kind = ("coordination.k8s.io", "v1", "Lease");

/// The objects of one namespace.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    /// As somebody who may do everything.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// The API of a kind.
    pub fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(kind))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Value> {
        let found = self.find(kind, name).await?;
        found.with_context(|| format!("there is no {} {name}", kind.2))
    }

    /// Reads an object that may not be there.
    pub async fn find(&self, kind: Kind, name: &str) -> Result<Option<Value>> {
        let found = self.api(kind).get_opt(name).await;
        let found = found.with_context(|| format!("reading {} {name}", kind.2))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind with these labels, `key=value,…`; an empty text is no condition.
    pub async fn list(&self, kind: Kind, labels: &str) -> Result<Vec<Value>> {
        let list = self
            .api(kind)
            .list(&ListParams::default().labels(labels))
            .await;
        let list = list.with_context(|| format!("listing {}", kind.2))?;
        list.into_iter()
            .map(|object| Ok(serde_json::to_value(object)?))
            .collect()
    }

    /// Merges into an object; null removes a key.
    pub async fn patch(&self, kind: Kind, name: &str, change: Value) -> Result<()> {
        let patched = self
            .api(kind)
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await;
        patched
            .map(drop)
            .with_context(|| format!("changing {} {name}", kind.2))
    }

    /// Removes an object, if it is there.
    pub async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        match self.api(kind).delete(name, &at_once()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            removed => removed
                .map(drop)
                .with_context(|| format!("removing {} {name}", kind.2)),
        }
    }

    /// Removes all objects of a kind with these labels.
    pub async fn remove_all(&self, kind: Kind, labels: &str) -> Result<()> {
        let removed = self
            .api(kind)
            .delete_collection(&at_once(), &ListParams::default().labels(labels))
            .await;
        removed
            .map(drop)
            .with_context(|| format!("removing {} with {labels}", kind.2))
    }
}

/// The API's name for a kind.
pub fn resource((group, version, kind): Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn at_once() -> DeleteParams {
    DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    }
}
