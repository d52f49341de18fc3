//! What a test or a rehearsal wants of a pod before it starts.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;

use super::{Ended, JobSource, Kubelet, Line, Next, RunningPod, job};

/// What most names of the manifests begin with.
const PREFIX: &str = "replica-migration-";
/// Kubernetes' default.
const BACKOFF_LIMIT: i32 = 6;

/// The CronJob and Job of a step: most carry the step's name, two the guide's own.
pub fn object_name(step: &str) -> String {
    match step {
        "final-backup" => "zalando-backup-job".to_owned(),
        step => format!("{PREFIX}{step}"),
    }
}

/// Called with each line of a log as it comes.
pub(super) type OnLine = Box<dyn Fn(&Line) + Send>;

/// A pod about to be started.
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

    /// Sets the suspended Job of the step's name going instead of creating one from the CronJob.
    #[must_use]
    pub fn suspended_job(mut self) -> Self {
        self.source = JobSource::SuspendedJob;
        self
    }

    /// A variable that differs from the manifests. Its value is passed on as it is: no mount path
    /// in it is rewritten.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.changes.push((key.to_owned(), Some(value.to_owned())));
        self
    }

    /// A variable that is missing.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.changes.push((key.to_owned(), None));
        self
    }

    /// Calls `hear` with each line of the log as it comes.
    #[must_use]
    pub fn on_line(mut self, hear: impl Fn(&Line) + Send + 'static) -> Self {
        self.on_line = Some(Arc::new(Mutex::new(Box::new(hear))));
        self
    }

    /// Creates the Job and starts its first pod.
    ///
    /// # Errors
    /// The Job cannot be created, or the pod cannot be started: with the kubelet's words where it
    /// would say something.
    pub async fn start(self) -> Result<RunningPod> {
        let job = self.job().await?;
        self.kubelet.start(&job, &self).await
    }

    /// Starts it and waits for its end, which must come within `limit`. One pod, whatever its exit
    /// code.
    ///
    /// # Errors
    /// As [`Launch::start`] and [`RunningPod::wait`].
    pub async fn run(self, limit: Duration) -> Result<Ended> {
        self.start().await?.wait(limit).await
    }

    /// Starts pod after pod until the Job is complete or has failed, as the Job controller does:
    /// the last pod's end, and how many pods there were. `each` is called with every pod that runs,
    /// for example to kill it.
    ///
    /// # Errors
    /// As [`Launch::start`] and [`RunningPod::wait`], whose `limit` is for each pod.
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
