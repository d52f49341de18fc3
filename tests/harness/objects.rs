//! Reads and changes objects of any kind in one namespace, as people do with kubectl.

use anyhow::{Context, Result};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::Value;

/// Group, version and kind.
pub type Kind = (&'static str, &'static str, &'static str);

/// Deployments: the application's workloads.
pub const DEPLOYMENT: Kind = ("apps", "v1", "Deployment");
/// ConfigMaps: settings and records.
pub const CONFIG_MAP: Kind = ("", "v1", "ConfigMap");
/// The Zalando resource of the source.
pub const POSTGRESQL: Kind = ("acid.zalan.do", "v1", "postgresql");
/// The CNPG Cluster: the target.
pub const CNPG: Kind = ("postgresql.cnpg.io", "v1", "Cluster");
/// The target's poolers.
pub const POOLER: Kind = ("postgresql.cnpg.io", "v1", "Pooler");
/// Services.
pub const SERVICE: Kind = ("", "v1", "Service");
/// EndpointSlices.
pub const SLICE: Kind = ("discovery.k8s.io", "v1", "EndpointSlice");
/// The label that names the Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Secrets.
pub const SECRET: Kind = ("", "v1", "Secret");
/// Roles.
pub const ROLE: Kind = ("rbac.authorization.k8s.io", "v1", "Role");
/// CronJobs: one per step.
pub const CRON_JOB: Kind = ("batch", "v1", "CronJob");
/// Jobs.
pub const JOB: Kind = ("batch", "v1", "Job");
/// Pods.
pub const POD: Kind = ("", "v1", "Pod");
/// Leases: one prevents a second cutover.
pub const LEASE: Kind = ("coordination.k8s.io", "v1", "Lease");

/// The objects of one namespace.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    /// Objects of `namespace`, accessed with the permissions of `client`.
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

    /// Reads an object that may not exist.
    pub async fn find(&self, kind: Kind, name: &str) -> Result<Option<Value>> {
        let found = self.api(kind).get_opt(name).await;
        let found = found.with_context(|| format!("reading {} {name}", kind.2))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind with these labels, `key=value,…`; an empty text selects all.
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

    /// Deletes an object, if it exists.
    pub async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        match self.api(kind).delete(name, &at_once()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            removed => removed
                .map(drop)
                .with_context(|| format!("removing {} {name}", kind.2)),
        }
    }

    /// Deletes all objects of a kind with these labels.
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
