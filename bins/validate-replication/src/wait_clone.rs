//! The wait for a target that accepts connections: what is logged meanwhile, and the only effect of
//! this step, a CHECKPOINT.

use std::time::Duration;

use job::{
    context::JobContext,
    error::{Context as _, Error, ErrorKind, Result},
    pods::{ContainerStatus, Pod},
    wait::{ProbeResult, until},
};
use kube::{Api, ResourceExt as _, api::ListParams};
use platform::{
    collector::{Collector, endpoints::Endpoints},
    postgres::{Session, Source, Target},
};
use protocol::{checks, failure::Failure, finding::worst};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    clone::{self, BaseBackup, CloneState, CopyProgress, PodState, Stage},
    settings::Settings,
};

/// The annotation by which adopt-pgdata gets into the instance pods.
const POD_PATCH: &str = "cnpg.io/podPatch";
const POLL: Duration = Duration::from_secs(1);
/// Interval between two lines of progress; each new phase also gets one.
pub const LINE: Duration = Duration::from_secs(10);
/// The phase in which a CHECKPOINT helps: a spread checkpoint takes minutes
/// (checkpoint_completion_target of checkpoint_timeout), a requested one is fast.
pub const WAITS_FOR_CHECKPOINT: &str = "waiting for checkpoint to finish";

/// Connects to the target; while it does not answer, logs how far the clone is.
///
/// # Errors
/// Config for a wrong login or certificate; Refused when CNPG has given up or the Cluster does not
/// follow the source; Transient at the deadline, with the likely cause.
pub async fn wait(
    run: &JobContext,
    settings: &Settings,
    collector: &Collector,
    source: Source,
    deadline: Instant,
) -> Result<Target> {
    let mut watch = Watch::new(run, settings, collector, source);
    let outcome = until(deadline, POLL, async || watch.probe().await).await;
    outcome.map_err(|error| match (error.kind(), watch.cure.take()) {
        (ErrorKind::Transient, Some(cure)) => error.hint(cure),
        (ErrorKind::Transient, None) => error.hint(
            "run this step again; VALIDATE_MAX_SECONDS is the longest that it waits for the clone",
        ),
        _ => error,
    })
}

/// What is remembered from one probe to the next.
struct Watch<'a> {
    run: &'a JobContext,
    settings: &'a Settings,
    collector: &'a Collector,
    begun: Instant,
    source: Option<Source>,
    checkpoint: Option<JoinHandle<Result<()>>>,
    connecting_since: Option<Instant>,
    observed: bool,
    progress: CopyProgress,
    logged: Option<(Instant, String)>,
    warned: Vec<String>,
    cure: Option<String>,
    /// The Cluster does not follow the source any more.
    promoted: Option<Failure>,
}

impl<'a> Watch<'a> {
    fn new(
        run: &'a JobContext,
        settings: &'a Settings,
        collector: &'a Collector,
        source: Source,
    ) -> Self {
        Self {
            run,
            settings,
            collector,
            begun: Instant::now(),
            source: Some(source),
            checkpoint: None,
            connecting_since: None,
            observed: false,
            progress: CopyProgress::default(),
            logged: None,
            warned: Vec::new(),
            cure: None,
            promoted: None,
        }
    }

    fn endpoints(&self) -> &Endpoints {
        self.collector.endpoints()
    }

    async fn probe(&mut self) -> Result<ProbeResult<Target>> {
        let refusal = match self.endpoints().target().await {
            Ok(target) => return Ok(ProbeResult::Ready(target)),
            Err(error) if error.kind() == ErrorKind::Transient => error.to_string(),
            Err(error) => return Err(error),
        };
        if let Some(cure) = clone::permanent_error(&refusal) {
            return Err(Error::refused(refusal).hint(cure));
        }
        let state = match self.observe(refusal.clone()).await {
            Ok(state) => state,
            // A permission that was granted a moment ago is not missing: an API server that starts
            // refuses requests until it has read its Roles.
            Err(error) if error.kind() == ErrorKind::Transient || self.observed => {
                self.run.report.waiting(format!("waiting: {error}"));
                return Ok(ProbeResult::NotYet(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        self.observed = true;
        if let Some(promoted) = self.promoted.take() {
            return Err(promoted.into());
        }
        let missing =
            match clone::stage(&state) {
                Stage::GivenUp(what) => {
                    return Err(Error::refused(format!("the target cannot be cloned: {what}"))
                    .hint("read the log of its pods, delete the Cluster, fix the cause, and apply \
                        the manifest again"));
                }
                Stage::Copying(backup) => self.copying(&backup).await,
                Stage::Stuck { what, cure } => self.stuck(what, cure),
                // A container in a crash loop runs between two crashes: the cause is kept until the
                // copy begins.
                Stage::Pending(what) => {
                    self.run
                        .report
                        .waiting(format!("waiting for the target: {what}"));
                    what
                }
            };
        Ok(ProbeResult::NotYet(format!(
            "the target does not accept connections: {missing}"
        )))
    }

    /// Observes the Cluster, its pods and the source.
    async fn observe(&mut self, refusal: String) -> Result<CloneState> {
        let ((_, cluster), pods) = futures::try_join!(
            self.collector.resources(),
            pods(self.run, &self.settings.target_cluster)
        )?;
        // What helps a clone would make a promoted Cluster a standby again, or delete it.
        self.promoted = worst(&[checks::replica_mode(&cluster.state(), None)]).err();
        let status = cluster.status.clone().unwrap_or_default();
        let backup = self.backup().await;
        let mut state = CloneState {
            phase: status.phase,
            phase_reason: status.phase_reason,
            patched: cluster.annotations().contains_key(POD_PATCH),
            pods,
            backup,
            job: format!("{}-1-pgbasebackup", self.settings.target_cluster),
            connecting: Duration::ZERO,
            refusal,
        };
        if state.is_connecting() {
            state.connecting = self
                .connecting_since
                .get_or_insert_with(Instant::now)
                .elapsed();
        } else {
            self.connecting_since = None;
        }
        Ok(state)
    }

    /// The base backup at the source; a source that fails over meanwhile is asked again at the next
    /// probe.
    async fn backup(&mut self) -> Option<BaseBackup> {
        if self.source.is_none() {
            self.source = self.endpoints().source().await.ok();
        }
        match base_backup(self.source.as_ref()?).await {
            Ok(backup) => backup,
            Err(_) => {
                self.source = None;
                None
            }
        }
    }

    async fn copying(&mut self, backup: &BaseBackup) -> String {
        self.cure = None;
        if backup.phase == WAITS_FOR_CHECKPOINT {
            self.checkpoint_once().await;
        }
        let due = |(at, phase): &(Instant, String)| at.elapsed() >= LINE || *phase != backup.phase;
        if self.logged.as_ref().is_none_or(due) {
            self.logged = Some((Instant::now(), backup.phase.clone()));
            let line = self.progress.line(self.begun.elapsed(), backup);
            self.run.report.progress(line);
        }
        format!("the clone is being made ({})", backup.phase)
    }

    /// Requests a checkpoint in a session of its own, beside the wait: it may take as long as the
    /// source's disks need.
    async fn checkpoint_once(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        self.run.report.info(
            "the clone waits for the source's next checkpoint, which takes minutes; asking \
             the source for one now (CHECKPOINT)",
        );
        let (report, session) = (self.run.report.clone(), self.endpoints().source().await);
        self.checkpoint = Some(tokio::spawn(async move {
            let outcome = match session {
                Ok(source) => source.checkpoint().await,
                Err(error) => Err(error),
            };
            match &outcome {
                Ok(()) => report.step("Checkpoint", "the source has written a checkpoint"),
                Err(error) => report.warning(
                    "CheckpointFailed",
                    format!("{error}; the clone continues after the source's own checkpoint"),
                ),
            }
            outcome
        }));
    }

    fn stuck(&mut self, what: String, cure: String) -> String {
        if !self.warned.contains(&cure) {
            // Kubernetes counts Events with the same reason as one that is repeated.
            let reason = format!("CloneStuck{}", self.warned.len() + 1);
            self.run.report.warning(&reason, format!("{what} → {cure}"));
            self.warned.push(cure.clone());
        }
        self.cure = Some(cure);
        what
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.abort();
        }
    }
}

/// The base backup that a server is giving; the youngest, because an older one was there before the
/// clone.
pub async fn base_backup(server: &Session) -> Result<Option<BaseBackup>> {
    let row = server
        .query_opt(
            "select p.phase, p.backup_total, coalesce(p.backup_streamed, 0)
               from pg_stat_progress_basebackup p left join pg_stat_activity a using (pid)
              order by a.backend_start desc nulls last limit 1",
            &[],
        )
        .await
        .context("reading the progress of a base backup")?;
    Ok(row.map(|row| BaseBackup {
        phase: row.get(0),
        bytes_total: row.get::<_, Option<i64>>(1).map(i64::unsigned_abs),
        bytes_streamed: row.get::<_, i64>(2).unsigned_abs(),
    }))
}

/// The Cluster's pods, the clone Job's among them.
async fn pods(run: &JobContext, cluster: &str) -> Result<Vec<PodState>> {
    let api: Api<Pod> = Api::namespaced(run.client.clone(), &run.namespace);
    let list = api
        .list(&ListParams::default().labels(&format!("cnpg.io/cluster={cluster}")))
        .await
        .context("listing the target's pods")?;
    Ok(list.iter().map(pod_state).collect())
}

fn pod_state(pod: &Pod) -> PodState {
    let status = &pod.status;
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    let unschedulable = status
        .conditions
        .iter()
        .find(|condition| condition.reason.as_deref() == Some("Unschedulable"));
    PodState {
        name: pod.name_any(),
        clones: pod
            .labels()
            .get("cnpg.io/jobRole")
            .is_some_and(|role| role == "pgbasebackup"),
        stuck: containers
            .filter_map(stuck)
            .next()
            .or_else(|| Some(("-".to_owned(), unschedulable?.reason.clone()?))),
        phase: status.phase.clone(),
    }
}

/// The name of a container that cannot start, and the reason; one that waits for its turn is not
/// stuck.
fn stuck(container: &ContainerStatus) -> Option<(String, String)> {
    let reason = container.state.waiting.as_ref()?.reason.clone()?;
    (!matches!(reason.as_str(), "ContainerCreating" | "PodInitializing"))
        .then(|| (container.name.clone(), reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod_with(status: serde_json::Value) -> PodState {
        pod_state(
            &serde_json::from_value(json!({"metadata": {"name": "database-1"}, "status": status}))
                .unwrap(),
        )
    }

    #[test]
    fn the_first_container_that_cannot_start_is_named() {
        let waiting = |name: &str, reason: &str| {
            json!({
                "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": reason}},
            })
        };
        let pod = pod_with(json!({
            "phase": "Pending",
            "initContainerStatuses": [waiting("adopt-pgdata", "CrashLoopBackOff")],
            "containerStatuses": [waiting("postgres", "PodInitializing")],
        }));
        assert_eq!(
            pod.stuck,
            Some(("adopt-pgdata".into(), "CrashLoopBackOff".into()))
        );
        assert_eq!(
            pod_with(json!({"containerStatuses": [waiting("postgres", "ContainerCreating")]}))
                .stuck,
            None
        );
    }

    #[test]
    fn a_pod_without_a_node_is_stuck() {
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
        let pod = pod_with(json!({"phase": "Pending", "conditions": [condition]}));
        assert_eq!(pod.stuck, Some(("-".into(), "Unschedulable".into())));
    }
}
