//! Imitates CloudNativePG 1.30: does to a real PostgreSQL what the operator and its instance
//! manager do, without being more forgiving. Imitated, each with the place where the behaviour was
//! seen:
//!
//! - defaults written into the spec ([`configuration`]): api/v1/cluster_defaults.go
//! - Secrets `-ca`, `-server`, `-replication`, `-superuser`, `-app`; Services `-rw`, `-ro`, `-r`;
//!   Job, pod ([`objects`]): pkg/specs
//! - the clone: retries without end, pg_basebackup with a spread checkpoint, keeps the source's
//!   postgresql.conf ([`clone`]): pkg/management/postgres/join.go
//! - custom.conf, override.conf without a slot, pg_hba.conf, pg_ident.conf ([`configuration`]):
//!   pkg/postgres/configuration.go
//! - the pod's patch and its init containers ([`objects`], [`init_container`]): a real cluster
//! - a server that does not start: crash loop with the kubelet's back-off ([`manager`]): a real
//!   cluster
//! - promotion without waiting for the last WAL, restart for archive_mode, phases and their delays
//!   ([`promotion`]): a real cluster
//! - passwords set, nulled or kept; managed extensions dropped without cascade; an error skips the
//!   rest ([`roles`]): instance_controller.go
//! - `streaming_replica` only at the restart ([`roles`]): lifecycle/run.go
//! - fencing by annotation; reload and restart for changed settings ([`manager`]): a real cluster
//!
//! - further instances, which copy the designated primary and follow it by `-rw` ([`join`]):
//!   pkg/management/postgres/join.go, conninfo.go
//! - failover while the Cluster follows and afterwards ([`election`]):
//!   internal/controller/replicas.go, pkg/postgres/status.go
//!
//! All of these facts are described in docs/operators/cloudnative-pg.md. **Not imitated**: a change
//! of the number of instances, replication slots of instances, pg_rewind (a former primary is
//! copied again), a requested switchover and the primary's Lease; promotion tokens; demotion
//! (`enabled` back to true); the webhook's refusals; the rollout after a change of the pod's
//! specification (delete the pod instead); `managed.roles`; backups and a WAL archive
//! (`archive_command` takes its time and discards, `restore_command` takes its time and fails);
//! metrics and the status port; PodDisruptionBudgets, volume claims; the Job's backoffLimit;
//! raising the five settings from pg_control; another image's glibc: the server is the same
//! PostgreSQL 17.10 as the source's on the same machine, so collation versions never differ.
//! Poolers are [`crate::service::pooler`]s, without PgBouncer. The conninfo in pg_stat_wal_receiver
//! has a `hostaddr` that replaces DNS.

mod bootstrap;
mod clone;
pub mod cluster;
pub mod configuration;
pub mod connection;
mod election;
pub mod init_container;
mod join;
mod leadership;
mod log;
mod manager;
pub mod objects;
mod operator;
mod pod;
mod promotion;
pub mod promotion_times;
mod reconcile;
mod roles;
mod server;
mod socket_users;
mod status;
mod volume;

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kube::{Api, Client, runtime::wait::await_condition};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{instance::Instance, service::Services, session::Session, setup::Setup};
use cluster::Cluster;
use log::Log;
use operator::{Instances, Operator};
pub use promotion_times::PromotionTimes;
use server::{Server, StopMode};

/// Host number of the first instance in the network.
pub const FIRST_HOST: u8 = 21;
/// Host number of the first pooler in the network.
const FIRST_POOLER_HOST: u8 = 31;
const POLL: Duration = Duration::from_millis(20);

/// What the controller needs.
pub struct Options {
    /// Programs and the servers' user.
    pub setup: &'static Setup,
    /// Network and directory.
    pub instance: Arc<Instance>,
    /// A client with all permissions.
    pub client: Client,
    /// The Services, used as DNS; their namespace is the one that is watched.
    pub services: Arc<Services>,
    /// The directory of the init containers' programs: cargo's build directory.
    pub programs: PathBuf,
    /// The home directories of the source's members on this machine, which a pod could not see:
    /// paths below them are replaced by Spilo's `/home/postgres/…`.
    pub hidden: Vec<PathBuf>,
}

/// The imitated operator and its instances; everything ends on drop.
pub struct Target {
    client: Client,
    namespace: String,
    instances: watch::Receiver<Instances>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Target {
    /// Starts watching Clusters and Poolers.
    pub fn start(options: Options) -> Self {
        let (client, namespace) = (
            options.client.clone(),
            options.services.namespace().to_owned(),
        );
        let (sender, instances) = watch::channel(Instances::default());
        let task = tokio::spawn(Operator::new(options, sender).run());
        Self {
            client,
            namespace,
            instances,
            task,
        }
    }

    /// The instance of a Cluster, once the operator has observed the Cluster.
    ///
    /// # Errors
    /// The Cluster is not observed within `limit`.
    pub async fn instance(&self, cluster: &str, limit: Duration) -> Result<InstanceHandle> {
        let mut instances = self.instances.clone();
        let seen = timeout(
            limit,
            instances.wait_for(|instances| instances.contains_key(cluster)),
        )
        .await;
        let seen = seen.with_context(|| {
            format!("waiting for the operator to observe the Cluster {cluster}")
        })??;
        let first = seen.get(cluster).and_then(|known| known.all.first());
        first.cloned().context("the Cluster is gone")
    }

    /// All instances of a Cluster that the operator has observed.
    pub fn instances(&self, cluster: &str) -> Vec<InstanceHandle> {
        let known = self.instances.borrow();
        known
            .get(cluster)
            .map_or_else(Vec::new, |known| known.all.clone())
    }

    /// The instance that is the primary, or the designated one; None without the Cluster.
    pub fn primary(&self, cluster: &str) -> Option<InstanceHandle> {
        let known = self.instances.borrow().get(cluster).cloned()?;
        let current = known.leadership.now().current;
        known.all.into_iter().find(|one| one.name() == current)
    }

    /// Waits until all objects and files of a deleted Cluster are removed.
    ///
    /// # Errors
    /// Something is left after `limit`.
    pub async fn gone(&self, cluster: &str, limit: Duration) -> Result<()> {
        let mut instances = self.instances.clone();
        let gone = timeout(
            limit,
            instances.wait_for(|instances| !instances.contains_key(cluster)),
        )
        .await;
        gone.with_context(|| format!("waiting for the Cluster {cluster} to be removed"))??;
        Ok(())
    }

    /// Waits until the Cluster's phase begins with `phase`.
    ///
    /// # Errors
    /// The phase is not reached within `limit`; the error holds the logs.
    pub async fn phase(&self, cluster: &str, phase: &str, limit: Duration) -> Result<()> {
        let api: Api<kube::api::DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            &self.namespace,
            &kube::api::ApiResource::erase::<Cluster>(&()),
        );
        let has_phase = |object: Option<&kube::api::DynamicObject>| {
            object
                .and_then(|object| object.data["status"]["phase"].as_str())
                .is_some_and(|now| now.starts_with(phase))
        };
        let reached = timeout(limit, await_condition(api, cluster, has_phase)).await;
        if !matches!(reached, Ok(Ok(_))) {
            let logs: Vec<String> = self
                .instances(cluster)
                .iter()
                .map(InstanceHandle::logs)
                .collect();
            let logs = logs.join("\n");
            anyhow::bail!("the Cluster {cluster} did not reach {phase:?} within {limit:?}\n{logs}");
        }
        Ok(())
    }

    /// Stops the operator and all servers immediately.
    pub async fn stop(self) {
        self.task.abort();
        for known in self.instances.borrow().clone().into_values() {
            for handle in known.all {
                let _ = handle.server.stop(StopMode::Immediate).await;
            }
        }
    }
}

/// Access to one instance for tests and the rehearsal.
#[derive(Clone)]
pub struct InstanceHandle {
    server: Server,
    promotion_times: watch::Receiver<PromotionTimes>,
    log: Log,
}

impl InstanceHandle {
    /// Its name, which is that of its pod.
    pub fn name(&self) -> &str {
        self.server.name()
    }

    /// Where its server listens on port 5432.
    pub fn address(&self) -> Ipv4Addr {
        self.server.address()
    }

    /// Its data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.server.pgdata()
    }

    /// A superuser's session over the Unix socket.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn admin(&self, database: &str) -> Result<Session> {
        self.server.connect(database).await
    }

    /// The connection string of such a session, for psql.
    pub fn connection_string(&self, database: &str) -> String {
        self.server.connection_string(database)
    }

    /// The instants of the latest promotion.
    pub fn promotion_times(&self) -> PromotionTimes {
        *self.promotion_times.borrow()
    }

    /// Waits until the latest promotion is complete: restarted if necessary, and in its Service.
    ///
    /// # Errors
    /// The promotion is not complete within `limit`.
    pub async fn promoted(&self, limit: Duration) -> Result<PromotionTimes> {
        let mut promotion_times = self.promotion_times.clone();
        let over = async {
            // Whether a restart follows is known only once it begins.
            while promotion_times.borrow_and_update().over().is_none() {
                promotion_times.changed().await?;
            }
            anyhow::Ok(*promotion_times.borrow())
        };
        timeout(limit, over)
            .await
            .with_context(|| format!("the promotion is not complete\n{}", self.logs()))?
    }

    /// Kills the postmaster (SIGKILL); the pod's container restarts on its own.
    pub async fn kill(&self) {
        self.server.kill().await;
    }

    /// Suspends the server, as if its node hung: connections stay open, nothing answers.
    pub fn suspend(&self) {
        self.server.suspend();
    }

    /// Resumes the server after [`InstanceHandle::suspend`].
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Waits until the server's or the pod's log contains `text`.
    ///
    /// # Errors
    /// The text does not appear within `limit`.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<()> {
        let logged = async {
            while !self.logs().contains(text) {
                sleep(POLL).await;
            }
        };
        timeout(limit, logged)
            .await
            .with_context(|| format!("no log contains {text:?}\n{}", self.logs()))
    }

    /// The logs of operator, Job, pod and server.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.log.text(), self.server.log_tail())
    }
}
