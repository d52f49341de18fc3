//! The target: does to a real PostgreSQL what CloudNativePG 1.30 does to it, and nothing kinder.
//!
//! | imitated | where it was seen |
//! |---|---|
//! | defaults written into the spec ([`configuration`]) | facts/cnpg.md §1.2, §4.2; api/v1/cluster_defaults.go |
//! | Secrets `-ca`, `-server`, `-replication`, `-superuser`, `-app`; Services `-rw`, `-ro`, `-r`; Job, pod ([`objects`]) | §2.7, §6; pkg/specs |
//! | the clone: asks for ever, pg_basebackup with a spread checkpoint, keeps the source's postgresql.conf ([`clone`]) | verified.md, *What stops the guide's way*; §3.1 |
//! | custom.conf, override.conf without a slot, pg_hba.conf, pg_ident.conf ([`configuration`]) | §3.2, §4; pkg/postgres/configuration.go |
//! | the pod's patch and its init containers ([`objects`], [`init_container`]) | verified.md, point 7 |
//! | a server that does not start: crash loop with the kubelet's back-off ([`manager`]) | verified.md, point 6 |
//! | promotion without asking for the last WAL, restart for archive_mode, phases and their delays ([`promotion`]) | verified.md, *Cuts by hand*; §2.1, §2.3 |
//! | passwords set, nulled or kept; managed extensions dropped without cascade; an error ends the rest ([`roles`]) | §2.2; instance_controller.go |
//! | `streaming_replica` only at the restart ([`roles`]) | §2.1, point 9 |
//! | fencing by annotation; reload and restart for changed settings ([`manager`]) | §2.5; verified.md, *Fences* |
//!
//! **Not imitated**: more than one instance, switchover, failover and the primary's Lease;
//! promotion tokens; demotion (`enabled` back to true); the webhook's refusals; the rollout when
//! the pod's specification changes (delete the pod instead); `managed.roles`; backups and a WAL
//! archive (`archive_command` takes its time and throws away, `restore_command` takes its time and
//! fails); metrics and the status port; PodDisruptionBudgets, volume claims; the Job's
//! backoffLimit; raising the five settings from pg_control; the glibc of another image: the server
//! is the same PostgreSQL 17.10 as the source's, on the same machine, so that no collation version
//! differs. The Poolers are [`crate::service::pooler`]s, without PgBouncer. pg_stat_wal_receiver's
//! conninfo has a `hostaddr` that the real one has not: it is the harness's DNS.

mod bootstrap;
mod clone;
pub mod cluster;
pub mod configuration;
pub mod connection;
pub mod init_container;
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

/// The first instance's host number in the network.
pub const FIRST_HOST: u8 = 21;
/// The first pooler's host number in the network.
const FIRST_POOLER_HOST: u8 = 31;
const POLL: Duration = Duration::from_millis(20);

/// What the controller needs.
pub struct Options {
    /// Programs and their user.
    pub setup: &'static Setup,
    /// Network and directory.
    pub instance: Arc<Instance>,
    /// A client that may do everything.
    pub client: Client,
    /// The cluster's DNS; its namespace is the one that is watched.
    pub services: Arc<Services>,
    /// Where init containers find their programs by name: cargo's directory of built binaries.
    pub programs: PathBuf,
    /// The home directories of the source's members on this machine, which a pod could not see:
    /// paths below them are copied as `/home/postgres/…`, as they read at Spilo.
    pub hidden: Vec<PathBuf>,
}

/// The controller, and all instances that it has made; everything ends with this value.
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
    /// Begins to watch Clusters and Poolers.
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

    /// The instance of a Cluster, once the controller has seen that.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn instance(&self, cluster: &str, limit: Duration) -> Result<InstanceHandle> {
        let mut instances = self.instances.clone();
        let seen = timeout(
            limit,
            instances.wait_for(|instances| instances.contains_key(cluster)),
        )
        .await;
        let seen =
            seen.with_context(|| format!("waiting for the Cluster {cluster} to be seen"))??;
        seen.get(cluster).cloned().context("the Cluster is gone")
    }

    /// Waits until nothing is left of a Cluster that was deleted.
    ///
    /// # Errors
    /// Something is after `limit`.
    pub async fn gone(&self, cluster: &str, limit: Duration) -> Result<()> {
        let mut instances = self.instances.clone();
        let gone = timeout(
            limit,
            instances.wait_for(|instances| !instances.contains_key(cluster)),
        )
        .await;
        gone.with_context(|| format!("waiting for the Cluster {cluster} to be gone"))??;
        Ok(())
    }

    /// Waits until the Cluster's phase begins with `phase`.
    ///
    /// # Errors
    /// It does not within `limit`; the text holds the log and the server's last words.
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
            let logs = self
                .instances
                .borrow()
                .get(cluster)
                .map(InstanceHandle::logs)
                .unwrap_or_default();
            anyhow::bail!(
                "the Cluster {cluster} did not come to {phase:?} within {limit:?}\n{logs}"
            );
        }
        Ok(())
    }

    /// Stops the controller and all servers at once.
    pub async fn stop(self) {
        self.task.abort();
        for handle in self.instances.borrow().clone().into_values() {
            let _ = handle.server.stop(StopMode::Immediate).await;
        }
    }
}

/// What tests and the rehearsal may look at and do to one instance.
#[derive(Clone)]
pub struct InstanceHandle {
    server: Server,
    promotion_times: watch::Receiver<PromotionTimes>,
    log: Log,
}

impl InstanceHandle {
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

    /// The same as a connection string for psql.
    pub fn connection_string(&self, database: &str) -> String {
        self.server.connection_string(database)
    }

    /// When what happened in the latest promotion.
    pub fn promotion_times(&self) -> PromotionTimes {
        *self.promotion_times.borrow()
    }

    /// Waits until the latest promotion is over: restarted if it has to be, and in its Service.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub async fn promoted(&self, limit: Duration) -> Result<PromotionTimes> {
        let mut promotion_times = self.promotion_times.clone();
        let over = async {
            // Whether a restart follows is known only when it begins: the phase is the end of both.
            while promotion_times.borrow_and_update().over().is_none() {
                promotion_times.changed().await?;
            }
            anyhow::Ok(*promotion_times.borrow())
        };
        timeout(limit, over)
            .await
            .with_context(|| format!("the promotion is not over\n{}", self.logs()))?
    }

    /// Kills the server (SIGKILL of the postmaster); the pod's container is started again by
    /// itself.
    pub async fn kill(&self) {
        self.server.kill().await;
    }

    /// Stops the server where it is, as when its node hangs: its connections stay open, nothing
    /// answers.
    pub fn suspend(&self) {
        self.server.suspend();
    }

    /// Lets it go on after [`InstanceHandle::suspend`].
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Waits until the server's log or the pod's holds `text`.
    ///
    /// # Errors
    /// Neither does within `limit`.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<()> {
        let said = async {
            while !self.logs().contains(text) {
                sleep(POLL).await;
            }
        };
        timeout(limit, said)
            .await
            .with_context(|| format!("nobody said {text:?}\n{}", self.logs()))
    }

    /// What operator, Job, pod and server have logged.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.log.text(), self.server.log_tail())
    }
}
