//! Further instances of the target that join while it follows the source.
//!
//! The base backup of a joining instance comes from the designated primary and begins with a
//! restartpoint there, which is spread over minutes and waits for a checkpoint of the source
//! (docs/operators/cloudnative-pg.md#instances). A CHECKPOINT on both, in this order, ends the
//! wait.

use std::time::Duration;

use job::{
    context::JobContext,
    error::{Error, Result},
    report::Reporter,
};
use platform::{
    collector::{Collector, endpoints::Endpoints},
    postgres::{Source, Target},
};
use protocol::snapshot::kubernetes::ClusterState;
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    clone::{BaseBackup, CopyProgress},
    wait_clone::{LINE, WAITS_FOR_CHECKPOINT, base_backup},
};

/// Time between two requests while a join still waits: the source's checkpoint record must have
/// been replayed, which the first restartpoint need not have found (seen: three requests, 6 s
/// apart).
const AGAIN: Duration = Duration::from_secs(6);

/// What is remembered of the joins from one observation to the next.
pub struct Joins {
    begun: Instant,
    progress: CopyProgress,
    logged: Option<(Instant, String)>,
    checkpoints: Option<JoinHandle<()>>,
    asked: Option<Instant>,
}

impl Joins {
    /// No join has been seen yet.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            progress: CopyProgress::default(),
            logged: None,
            checkpoints: None,
            asked: None,
        }
    }

    /// True while an instance is being copied from the target. One that waits for a checkpoint gets
    /// it; what cannot be read is looked for again at the next observation.
    pub async fn advance(
        &mut self,
        run: &JobContext,
        collector: &Collector,
        cluster: &ClusterState,
    ) -> bool {
        if cluster.instances < 2 || cluster.ready_instances >= cluster.instances {
            return false;
        }
        let Ok(target) = collector.target.session() else {
            return false;
        };
        let Ok(Some(backup)) = base_backup(target).await else {
            return false;
        };
        if backup.phase == WAITS_FOR_CHECKPOINT {
            self.checkpoint(run, collector);
        }
        self.log(run, &backup);
        true
    }

    fn log(&mut self, run: &JobContext, backup: &BaseBackup) {
        let due = |(at, phase): &(Instant, String)| at.elapsed() >= LINE || *phase != backup.phase;
        if self.logged.as_ref().is_none_or(due) {
            self.logged = Some((Instant::now(), backup.phase.clone()));
            let line = self.progress.line(self.begun.elapsed(), backup);
            run.report.progress(format!("a further instance: {line}"));
        }
    }

    /// Requests both checkpoints beside the wait: they may take as long as the disks need.
    fn checkpoint(&mut self, run: &JobContext, collector: &Collector) {
        let runs = self
            .checkpoints
            .as_ref()
            .is_some_and(|it| !it.is_finished());
        if runs || self.asked.is_some_and(|asked| asked.elapsed() < AGAIN) {
            return;
        }
        if self.asked.is_none() {
            run.report.info(
                "a further instance waits for the target's next restartpoint, which takes minutes; \
                 asking the source and then the target for one now (CHECKPOINT)",
            );
        }
        self.asked = Some(Instant::now());
        let endpoints = collector.endpoints().clone();
        let report = run.report.clone();
        self.checkpoints = Some(tokio::spawn(async move {
            both(&endpoints, &report).await.unwrap_or_else(|error| {
                report.warning(
                    "CheckpointFailed",
                    format!("{error}; the instance joins after the servers' own checkpoints"),
                );
            });
        }));
    }
}

impl Drop for Joins {
    fn drop(&mut self) {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.abort();
        }
    }
}

async fn both(endpoints: &Endpoints, report: &Reporter) -> Result<()> {
    let (source, target): (Source, Target) =
        futures::try_join!(endpoints.source(), endpoints.target())?;
    source.checkpoint().await?;
    target.checkpoint().await?;
    report.step("Checkpoint", "source and target have written a checkpoint");
    Ok::<(), Error>(())
}
