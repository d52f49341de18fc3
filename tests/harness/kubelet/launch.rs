//! How a pod is to be started: changes to its environment, and a callback for its log.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;

use super::{Ended, JobSource, Kubelet, Line, Next, RunningPod, job};

/// Prefix of most object names in the manifests.
const PREFIX: &str = "replica-migration-";
/// Kubernetes' default.
const BACKOFF_LIMIT: i32 = 6;

/// The name of a step's CronJob and Job.
pub fn object_name(step: &str) -> String {
    match step {
        "final-backup" => "zalando-backup-job".to_owned(),
        step => format!("{PREFIX}{step}"),
    }
}

/// Called with each log line as it arrives.
pub(super) type OnLine = Box<dyn Fn(&Line) + Send>;

/// A pod that is about to be started.
pub struct Launch<'a> {
    kubelet: &'a Kubelet,
    step: String,
    source: JobSource,
    pub(super) changes: Vec<(String, Option<String>)>,
    pub(super) on_line: Option<Arc<Mutex<OnLine>>>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(kubelet: &'a Kubelet, step: &str) -> Self {
        Self {
            kubelet,
            step: step.to_owned(),
            source: JobSource::CronJob,
            changes: Vec::new(),
            on_line: None,
        }
    }

    /// Resumes the suspended Job of the step's name instead of creating one from the CronJob.
    #[must_use]
    pub fn suspended_job(mut self) -> Self {
        self.source = JobSource::SuspendedJob;
        self
    }

    /// Sets a variable that differs from the manifests. Mount paths in its value are not rewritten.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.changes.push((key.to_owned(), Some(value.to_owned())));
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.changes.push((key.to_owned(), None));
        self
    }

    /// Calls `hear` with each log line as it arrives.
    #[must_use]
    pub fn on_line(mut self, hear: impl Fn(&Line) + Send + 'static) -> Self {
        self.on_line = Some(Arc::new(Mutex::new(Box::new(hear))));
        self
    }

    /// Creates the Job and starts its first pod.
    ///
    /// # Errors
    /// The Job cannot be created, or the pod cannot be started; the error has the kubelet's words
    /// where it would report one.
    pub async fn start(self) -> Result<RunningPod> {
        let job = self.job().await?;
        self.kubelet.start(&job, &self).await
    }

    /// Starts one pod and waits at most `limit` for its end, whatever its exit code.
    ///
    /// # Errors
    /// As [`Launch::start`] and [`RunningPod::wait`].
    pub async fn run(self, limit: Duration) -> Result<Ended> {
        self.start().await?.wait(limit).await
    }

    /// Starts pods until the Job is complete or has failed, as the Job controller does; returns the
    /// last pod's end and the number of pods. `each` is called with every running pod, for example
    /// to kill it.
    ///
    /// # Errors
    /// As [`Launch::start`] and [`RunningPod::wait`]; `limit` applies to each pod.
    pub async fn to_the_end(
        self,
        limit: Duration,
        each: impl AsyncFn(u32, &RunningPod),
    ) -> Result<(Ended, u32)> {
        let job = self.job().await?;
        let backoff_limit = job
            .spec
            .as_ref()
            .and_then(|spec| spec.backoff_limit)
            .unwrap_or(BACKOFF_LIMIT)
            .unsigned_abs();
        let mut pods = 0;
        loop {
            pods += 1;
            let running = self.kubelet.start(&job, &self).await?;
            each(pods, &running).await;
            let ended = running.wait(limit).await?;
            if ended.next != Next::Again || pods > backoff_limit {
                return Ok((ended, pods));
            }
        }
    }

    async fn job(&self) -> Result<Job> {
        let name = object_name(&self.step);
        let number = self.kubelet.pods.fetch_add(1, Ordering::Relaxed);
        job::create(
            &self.kubelet.plane.admin(),
            &self.kubelet.namespace,
            &name,
            self.source,
            &format!("{}-{number}", self.step),
        )
        .await
    }
}
