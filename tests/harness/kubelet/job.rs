//! The Job object, as kubectl creates or changes it.

use anyhow::{Context, Result};
use k8s_openapi::{
    api::batch::v1::{CronJob, Job},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Where a Job comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSource {
    /// `kubectl create job --from=cronjob/NAME`.
    CronJob,
    /// `kubectl patch job NAME -p '{"spec":{"suspend":false}}'`.
    SuspendedJob,
}

/// Creates or resumes the Job; returns it with all defaults set.
pub(super) async fn create(
    client: &Client,
    namespace: &str,
    name: &str,
    source: JobSource,
    new_name: &str,
) -> Result<Job> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    match source {
        JobSource::SuspendedJob => {
            let change = Patch::Merge(json!({"spec": {"suspend": false}}));
            jobs.patch(name, &PatchParams::default(), &change)
                .await
                .with_context(|| format!("resuming the Job {name}"))
        }
        JobSource::CronJob => {
            let cron_jobs: Api<CronJob> = Api::namespaced(client.clone(), namespace);
            let cron_job = cron_jobs
                .get(name)
                .await
                .with_context(|| format!("reading the CronJob {name}"))?;
            let job = from(&cron_job, new_name)?;
            jobs.create(&PostParams::default(), &job)
                .await
                .with_context(|| format!("creating a Job from the CronJob {name}"))
        }
    }
}

/// The Job that kubectl creates from a CronJob (kubectl pkg/cmd/create/create_job.go,
/// createJobFromCronJob).
fn from(cron_job: &CronJob, name: &str) -> Result<Job> {
    let template = cron_job.spec.job_template.clone();
    let metadata = template.metadata.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert("cronjob.kubernetes.io/instantiate".into(), "manual".into());
    let owner = OwnerReference {
        api_version: "batch/v1".into(),
        kind: "CronJob".into(),
        name: cron_job.name_any(),
        uid: cron_job.uid().context("a CronJob without uid")?,
        ..OwnerReference::default()
    };
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(annotations),
            labels: metadata.labels,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    })
}
