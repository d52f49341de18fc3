//! The life of one instance: the joint work of operator and instance manager, as one task.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kube::Client;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    cluster::Cluster,
    init_container,
    leadership::{Leadership, Primary},
    log::Log,
    objects,
    pod::{InstancePod, State},
    promotion_times::PromotionTimes,
    roles::{self, Poolers},
    server::{Server, StopMode},
    status::{Phase, Report, Status},
};
use crate::{service::Services, session::Session, setup::Setup};

/// The kubelet's back-off before a container restarts; the first restart is immediate.
const BACK_OFF: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(80),
    Duration::from_secs(160),
];
/// CNPG's startDelay: a server that does not answer within it is restarted.
const START_LIMIT: Duration = Duration::from_secs(3_600);
/// The operator's polling interval, used for retries.
const TICK: Duration = Duration::from_secs(1);

/// What all managers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub setup: &'static Setup,
    pub client: Client,
    pub namespace: String,
    pub services: Arc<Services>,
    /// The directory of the init containers' programs.
    pub programs: PathBuf,
    /// Home directories of the source's members on this machine.
    pub hidden: Vec<PathBuf>,
}

/// Runs one instance until its task is aborted.
pub(super) struct Manager {
    pub shared: Shared,
    /// The instance's name.
    pub name: String,
    /// The first one is cloned from the source, the others from the primary.
    pub is_first: bool,
    /// It has been reported as the Cluster's first designated primary.
    pub announced: bool,
    pub leadership: Leadership,
    pub primary: watch::Receiver<Primary>,
    pub cluster: watch::Receiver<Arc<Cluster>>,
    pub poolers: watch::Receiver<Poolers>,
    pub server: Server,
    pub pod: InstancePod,
    pub status: Status,
    pub promotion_times: watch::Sender<PromotionTimes>,
    pub log: Log,
    pub due: Due,
    /// Whether a segment was archived and the condition was set.
    pub archives: bool,
}

/// Pending work for the running server; kept until it has succeeded.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The Cluster changed: check the configuration files.
    pub files: bool,
    /// Files changed: reload the server.
    pub reload: bool,
    /// Reconcile passwords, extensions and roles of a primary.
    pub sql: bool,
    /// Report the instance's status, not before this instant.
    pub report: Option<Instant>,
    /// Report the phase after a restart, not before this instant.
    pub healthy: Option<Instant>,
}

/// Why a container's life ended.
enum End {
    /// The postmaster ended without being stopped.
    Died,
    /// The pod was deleted.
    Deleted,
}

impl Manager {
    /// Runs from the Cluster's creation on.
    pub(super) async fn run(mut self) {
        while let Err(error) = self.create_instance().await {
            self.log.write(&format!("bootstrap: {error:#}"));
            sleep(TICK).await;
        }
        loop {
            if let Err(error) = self.run_pod().await {
                self.log.write(&format!("{error:#}"));
                sleep(TICK).await;
            } else if self.cluster.borrow().spec.instances > 1 {
                // The operator elects another primary before it creates a pod again.
                sleep(TICK).await;
            }
        }
    }

    async fn create_instance(&mut self) -> Result<()> {
        if self.is_first {
            self.bootstrap().await
        } else {
            self.join().await
        }
    }

    /// True if this instance is, or is to be, the primary or the designated one.
    pub(super) fn leads(&self) -> bool {
        self.leadership.is_target(&self.name)
    }

    /// The role of the instance's pod.
    fn role(&self) -> &'static str {
        if self.leadership.now().current == self.name {
            "primary"
        } else {
            "replica"
        }
    }

    /// Sets the Cluster's phase, which describes its primary.
    pub(super) async fn phase(&self, phase: Phase) -> Result<()> {
        if self.leads() {
            self.status.phase(phase).await?;
        }
        Ok(())
    }

    pub(super) fn current(&mut self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow_and_update())
    }

    /// Runs a pod from its creation to its deletion: init containers once, then the server,
    /// restarted after each failure.
    async fn run_pod(&mut self) -> Result<()> {
        let cluster = self.current();
        let pod = self.pod.create(&cluster, self.role()).await?;
        self.status.bootstrapped().await?;
        // Later ones are set by who takes over, which a pod that is created again must not undo.
        if self.is_first && !std::mem::replace(&mut self.announced, true) {
            self.status.current_primary().await?;
        }
        self.phase(Phase::WaitingForInstances).await?;
        self.pod.report(State::Starting).await?;
        let volume = self.server.volume().clone();
        let mounts = [
            ("pgdata", volume.path("data")),
            ("scratch-data", volume.root().to_owned()),
        ];
        for container in pod.spec.iter().flat_map(objects::added_init_containers) {
            let mut tries = 0;
            while let Err(error) = init_container::run(
                self.shared.setup,
                &self.shared.programs,
                &volume,
                container,
                &mounts,
            )
            .await
            {
                if let End::Deleted = self.back_off(&mut tries, &format!("{error:#}")).await? {
                    return self.pod.remove().await;
                }
            }
        }
        let mut tries = 0;
        loop {
            let end = match self.run_server().await {
                Ok(End::Deleted) => End::Deleted,
                Ok(End::Died) => self.back_off(&mut tries, "the server has ended").await?,
                Err(error) => self.back_off(&mut tries, &format!("{error:#}")).await?,
            };
            if let End::Deleted = end {
                if self.server.runs() {
                    let seconds = self.cluster.borrow().smart_shutdown_seconds();
                    self.server.stop(StopMode::SmartThenFast(seconds)).await?;
                }
                self.status.ready(false).await?;
                return self.pod.remove().await;
            }
        }
    }

    /// Waits as the kubelet does after a failure; `Deleted` if the pod is deleted in the meantime.
    async fn back_off(&mut self, tries: &mut usize, why: &str) -> Result<End> {
        self.log.write(why);
        self.status.ready(false).await?;
        self.phase(Phase::WaitingForInstances).await?;
        self.pod.report(State::BackOff(why)).await?;
        let pause = BACK_OFF[(*tries).min(BACK_OFF.len() - 1)];
        *tries += 1;
        self.pod.restarted();
        tokio::select! {
            () = sleep(pause) => Ok(End::Died),
            () = self.pod.deletion_requested() => Ok(End::Deleted),
        }
    }

    /// Runs the postmaster once: writes files, starts it, and reconciles changes of the Cluster.
    async fn run_server(&mut self) -> Result<End> {
        let cluster = self.current();
        while self.leadership.now().target.is_none() {
            self.primary
                .changed()
                .await
                .context("the operator has ended")?;
        }
        if !self.leads() && !self.server.is_standby() {
            self.copy_primary(&cluster).await?;
        }
        self.pod.set_role(self.role()).await?;
        self.refresh(&cluster).await?;
        if !cluster.is_fenced(&self.instance()) {
            let session = self.start().await?;
            self.started(session).await?;
            self.status.phase(Phase::Healthy).await?;
        }
        (self.due.files, self.due.sql) = (true, true);
        let instance = self.instance();
        let gone = self.pod.deletion_requested();
        tokio::pin!(gone);
        loop {
            if let Err(error) = self.converge().await {
                self.log.write(&format!("{error:#}"));
            }
            let (server, cluster) = (self.server.clone(), self.cluster.clone());
            let died = async {
                server.ended().await;
                if cluster.borrow().is_fenced(&instance) {
                    std::future::pending::<()>().await;
                }
            };
            let next = Instant::now() + TICK;
            tokio::select! {
                () = died => return Ok(End::Died),
                () = &mut gone => return Ok(End::Deleted),
                changed = self.cluster.changed() => {
                    changed.context("the operator has ended")?;
                    (self.due.files, self.due.sql) = (true, true);
                }
                changed = self.primary.changed() => {
                    changed.context("the operator has ended")?;
                    (self.due.files, self.due.sql) = (true, true);
                }
                changed = self.poolers.changed() => {
                    changed.context("the operator has ended")?;
                    self.due.sql = true;
                }
                () = sleep_until(self.due.healthy.map_or(next, |due| due.min(next))) => {}
            }
        }
    }

    /// Starts the postmaster, unless it runs, and waits for it.
    pub(super) async fn start(&mut self) -> Result<Session> {
        if !self.server.runs() {
            self.server.start()?;
        }
        self.server.answers(START_LIMIT).await
    }

    /// What follows every successful start.
    pub(super) async fn started(&mut self, mut session: Session) -> Result<()> {
        if !self.server.is_standby() {
            roles::on_primary_start(&mut session).await?;
        }
        self.pod.report(State::Ready).await?;
        self.status.ready(true).await?;
        self.report(&session).await
    }

    /// Writes the instance's report into the Cluster's status.
    pub(super) async fn report(&mut self, session: &Session) -> Result<()> {
        let report = identify(session).await?;
        self.status.report(self.pod.ip(), &report).await
    }

    pub(super) fn instance(&self) -> String {
        self.name.clone()
    }
}

async fn identify(session: &Session) -> Result<Report> {
    let statement = "select not pg_is_in_recovery(), c.timeline_id, s.system_identifier::text
        from pg_control_checkpoint() c, pg_control_system() s";
    let row = session
        .query_one(statement, &[])
        .await
        .context("reading the instance's identity")?;
    Ok(Report {
        is_primary: row.get(0),
        timeline: row.get(1),
        system_identifier: row.get(2),
    })
}
