//! Reads and sets the fields that suspend other controllers, whatever kind of object they are in.
//! Errors are those of the API server unless a function states others.

use job::{
    error::{Context as _, Error, ErrorKind, Result, is_conflict, is_not_found},
    kubernetes::patch_params,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch},
};
use protocol::{
    controllers::{
        detection::{self, ChangedObject},
        owners::Owners,
        suspension::{Object, Suspension, SuspensionState},
    },
    snapshot::prechecks::{ConflictingControllers, UnreadableOwner},
};
use serde_json::Value;

/// What is looked for in one namespace.
pub struct Where<'a> {
    /// As this Job's ServiceAccount.
    pub client: &'a Client,
    /// The migration's own.
    pub namespace: &'a str,
}

impl Where<'_> {
    fn api(&self, object: &Object) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(&object.group, &object.version, &object.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &object.plural);
        let namespace = object.namespace.as_deref().unwrap_or(self.namespace);
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    async fn get(&self, object: &Object) -> Result<Option<Value>> {
        match self.api(object).get(&object.name).await {
            Ok(found) => Ok(Some(serde_json::to_value(found)?)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error).context(format!("reading {object}")),
        }
    }

    /// All objects of this object's kind; none where the kind is not installed.
    async fn list(&self, like: &Object, labels: Option<&str>) -> Result<Vec<Value>> {
        let params = labels.map_or_else(ListParams::default, |labels| {
            ListParams::default().labels(labels)
        });
        match self.api(like).list(&params).await {
            Ok(list) => Ok(list
                .items
                .into_iter()
                .map(serde_json::to_value)
                .collect::<Result<_, _>>()?),
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            Err(error) => Err(error).context(format!("listing {}.{}", like.plural, like.group)),
        }
    }

    /// How a field stands now, and the Jobs that run when its object is a CronJob.
    async fn standing(&self, suspension: &Suspension) -> Result<(SuspensionState, Vec<String>)> {
        let found = self.get(&suspension.object).await?;
        let now = Suspension {
            original: found
                .as_ref()
                .map_or(Value::Null, |object| suspension.read(object)),
            ..suspension.clone()
        };
        let version = found
            .as_ref()
            .and_then(|object| object["metadata"]["resourceVersion"].as_str());
        let version = version.map(str::to_owned);
        Ok((
            SuspensionState { now, version },
            found.as_ref().map(active_jobs).unwrap_or_default(),
        ))
    }

    /// How these fields stand now, and the Jobs of the application that run.
    pub async fn read(
        &self,
        suspensions: impl Iterator<Item = &Suspension>,
    ) -> Result<(Vec<SuspensionState>, Vec<String>)> {
        let each =
            futures::future::try_join_all(suspensions.map(|suspension| self.standing(suspension)))
                .await?;
        let (standing, jobs): (Vec<_>, Vec<_>) = each.into_iter().unzip();
        Ok((standing, jobs.concat()))
    }

    /// Sets a field of an object at the version that was observed: a late write must not overwrite
    /// a newer change.
    ///
    /// # Errors
    /// Transient when the object has changed since.
    pub async fn set(&self, suspension: &Suspension, value: &Value, version: &str) -> Result<()> {
        let patch = Patch::Merge(suspension.patch(value, version));
        match self
            .api(&suspension.object)
            .patch(&suspension.object.name, &patch_params(), &patch)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => Err(Error::transient(format!(
                "{} has just been changed",
                suspension.object
            ))),
            Err(error) => Err(error).context(format!("patching {}", suspension.object)),
        }
    }

    /// The fields that suspend the controllers that would revert a change of these objects, as they
    /// stand, and the controllers that cannot be suspended. `cron_jobs` are names, `labels` selects
    /// more of them.
    ///
    /// # Errors
    /// Config for a CronJob that does not exist.
    pub async fn find(
        &self,
        changed: &[ChangedObject],
        argo: &str,
        cron_jobs: &[String],
        labels: Option<&str>,
    ) -> Result<(Vec<SuspensionState>, ConflictingControllers)> {
        let workloads: Vec<Object> = changed
            .iter()
            .map(|one| one.object.clone())
            .filter(|object| object.group == "apps")
            .collect();
        let ((owners, unreadable_owners), (scalers, keda), cron_jobs) = futures::try_join!(
            self.owners(changed, argo),
            self.scalers(&workloads),
            self.cron_jobs(cron_jobs, labels)
        )?;
        let suspensions: Vec<Suspension> = owners
            .suspensions()
            .into_iter()
            .chain(keda.suspensions)
            .chain(cron_jobs.iter().map(detection::cron_job))
            .collect();
        let (standing, _) = self.read(suspensions.iter()).await?;
        let mut unreadable = unreadable_owners;
        unreadable.extend(keda.unreadable);
        let found = ConflictingControllers {
            replica_owners: detection::replica_owners(changed, &workloads),
            autoscalers: detection::autoscalers(&scalers, &workloads),
            unreadable,
            generated: owners.generated(),
            managed: owners.managed(),
        };
        Ok((standing, found))
    }

    /// The owners of these objects, and the owners of those: the metadata of one names the next.
    async fn owners<'a>(
        &self,
        changed: &'a [ChangedObject],
        argo: &'a str,
    ) -> Result<(Owners<'a>, Vec<UnreadableOwner>)> {
        let (mut owners, mut failed) = (Owners::of(changed, argo), Vec::new());
        loop {
            let unread = owners.unread();
            if unread.is_empty() {
                return Ok((owners, failed));
            }
            for owner in unread {
                let found = match self.get(&owner.object).await {
                    Ok(found) => found.unwrap_or_default(),
                    Err(error) => {
                        let manages = owner.manages.join(", ");
                        failed.push(unreadable(&owner.object, &manages, error)?);
                        Value::Null
                    }
                };
                owners.add(owner.object, found);
            }
        }
    }

    /// HorizontalPodAutoscalers and KEDA's ScaledObjects; without workloads that are scaled they
    /// are not read.
    async fn scalers(&self, workloads: &[Object]) -> Result<(Vec<Value>, Found)> {
        let mut found = Found::default();
        if workloads.is_empty() {
            return Ok((Vec::new(), found));
        }
        let scaler = Object::of(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "",
        );
        let scaled = Object::of("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects", "");
        let scalers = self.list(&scaler, None).await?;
        // KEDA's autoscalers show it; without any, ScaledObjects are not read, because the Role may
        // not allow it.
        let by_keda = detection::keda_scales(&scalers, workloads);
        if !by_keda.is_empty() {
            match self.list(&scaled, None).await {
                Ok(objects) => found.suspensions = detection::keda(&objects, workloads),
                Err(error) => {
                    found
                        .unreadable
                        .push(unreadable(&scaled, &by_keda.join(", "), error)?)
                }
            }
        }
        Ok((scalers, found))
    }

    async fn cron_jobs(&self, names: &[String], labels: Option<&str>) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for name in names {
            let object = Object::of("batch", "v1", "CronJob", "cronjobs", name);
            all.push(self.get(&object).await?.ok_or_else(|| {
                Error::config(format!("the CronJob {name} does not exist"))
                    .hint("correct APP_CRONJOBS in the ConfigMap replica-migration")
            })?);
        }
        if labels.is_some() {
            let any = Object::of("batch", "v1", "CronJob", "cronjobs", "");
            all.extend(self.list(&any, labels).await?);
        }
        Ok(all)
    }
}

#[derive(Default)]
struct Found {
    suspensions: Vec<Suspension>,
    unreadable: Vec<UnreadableOwner>,
}

/// What the check needs of an owner that exists and may not be read.
fn unreadable(object: &Object, manages: &str, error: Error) -> Result<UnreadableOwner> {
    if error.kind() != ErrorKind::Config {
        return Err(error);
    }
    Ok(UnreadableOwner {
        kind: object.kind.clone(),
        manages: manages.to_owned(),
        failure: error.into(),
    })
}

fn active_jobs(object: &Value) -> Vec<String> {
    let active = object["status"]["active"].as_array().into_iter().flatten();
    active
        .filter_map(|job| job["name"].as_str().map(str::to_owned))
        .collect()
}
