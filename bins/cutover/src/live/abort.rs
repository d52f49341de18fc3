//! Requests to abort the cutover: the pod's SIGTERM, an annotation, or a key of the record.

use job::{context::JobContext, error::Result, kubernetes};
use k8s_openapi::{api::batch::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Resource, ResourceExt as _};
use protocol::{reason::AbortRequest, record::Record};
use serde::Deserialize;

/// A CronJob, of which only the annotations matter here.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "v1::CronJob")]
struct CronJob {
    metadata: ObjectMeta,
}

/// The CronJob that an operator annotates to abort the cutover.
pub const CRON_JOB: &str = "replica-migration-cutover";
/// The annotation; any value but `false` counts.
pub const ANNOTATION: &str = "replica-migration/abort";

/// The request to abort, if there is one. Errors are those of the API server.
pub async fn request(run: &JobContext, record: &Record) -> Result<Option<AbortRequest>> {
    if run.stop.is_requested() {
        return Ok(Some(AbortRequest::Sigterm));
    }
    if record.abort.is_some() {
        return Ok(Some(AbortRequest::RecordKey));
    }
    let cron_jobs: Api<CronJob> = Api::namespaced(run.client.clone(), &run.namespace);
    let found = kubernetes::get(&cron_jobs, CRON_JOB).await?;
    let value = found
        .as_ref()
        .and_then(|found| found.annotations().get(ANNOTATION));
    Ok(value
        .filter(|value| *value != "false")
        .map(|_| AbortRequest::Annotation {
            cron_job: CRON_JOB,
            annotation: ANNOTATION,
        }))
}
