//! From the Cluster's creation to a cloned data directory: the work of webhook, operator and clone
//! Job.

use anyhow::{Context, Result};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use super::{
    clone::CloneJob, cluster::Cluster, configuration, manager::Manager, objects, status::Phase,
};

impl Manager {
    /// Sets defaults, creates objects, clones the source.
    pub(super) async fn bootstrap(&mut self) -> Result<()> {
        let cluster = self.current();
        if cluster.spec.instances == 0 || cluster.spec.bootstrap.pg_basebackup.is_none() {
            self.log
                .write("only Clusters that are made by pg_basebackup are imitated");
            self.status.phase(Phase::Unrecoverable).await?;
            return std::future::pending().await;
        }
        self.default_the_spec(&cluster).await?;
        self.status.begin(&cluster.spec.image_name).await?;
        for object in objects::pki(&cluster)?
            .iter()
            .chain(&objects::services(&cluster))
        {
            self.create(object).await?;
        }
        if let Some(secret) = cluster
            .superuser_secret()
            .filter(|_| cluster.spec.superuser_secret.is_none())
        {
            self.create(&objects::credentials(
                &cluster,
                &secret,
                "postgres",
                "*",
                &random_password()?,
            ))
            .await?;
        }
        self.status.phase(Phase::SettingUpPrimary).await?;
        let job = objects::job(&cluster, &self.name, objects::job_role(1));
        self.create(&job).await?;
        let clone = CloneJob {
            shared: &self.shared,
            volume: self.server.volume(),
            cluster: &self.cluster,
            log: &self.log,
        };
        clone.run().await;
        self.install_certificates().await
    }

    /// Writes the defaults that the defaulting webhook would have set.
    async fn default_the_spec(&self, cluster: &Cluster) -> Result<()> {
        let mut spec = json!({"postgresql": {"parameters": configuration::defaulted(cluster)}});
        if let Some(backup) = &cluster.spec.bootstrap.pg_basebackup {
            let or = |given: &str, default: &str| {
                if given.is_empty() {
                    default.to_owned()
                } else {
                    given.to_owned()
                }
            };
            let database = or(&backup.database, "app");
            spec["bootstrap"] = json!({
                "pg_basebackup": {"owner": or(&backup.owner, &database), "database": database}
            });
        }
        let api: Api<Cluster> = Api::namespaced(self.shared.client.clone(), &self.shared.namespace);
        let patched = api
            .patch(
                &cluster.name_any(),
                &PatchParams::default(),
                &Patch::Merge(json!({"spec": spec})),
            )
            .await;
        patched
            .map(drop)
            .context("writing the defaults into the spec")
    }

    /// Creates an object; an existing one is kept.
    pub(super) async fn create(&self, object: &Value) -> Result<()> {
        let (version, kind) = (
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default(),
        );
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::namespaced_with(
            self.shared.client.clone(),
            &self.shared.namespace,
            &resource,
        );
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("creating {kind} {}", object.name_any()))
            }
        }
    }
}

/// A password as long as CNPG's; letters and digits only, so that it needs no quoting in a URI.
pub(super) fn random_password() -> Result<String> {
    let mut bytes = [0; 32];
    openssl::rand::rand_bytes(&mut bytes).context("reading random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
