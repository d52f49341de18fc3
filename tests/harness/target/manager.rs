//! One Cluster's life: what operator and instance manager do together for a Cluster of one
//! instance, as one task.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kube::{Client, ResourceExt};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    cluster::Cluster,
    init_container,
    log::Log,
    objects,
    pod::{InstancePod, State},
    promotion_times::PromotionTimes,
    roles::{self, Poolers},
    server::{Server, StopMode},
    status::{Phase, Report, Status},
};
use crate::{service::Services, session::Session, setup::Setup};

/// How long a container waits before it is started again: the kubelet's back-off, which begins
/// after one free try.
const BACK_OFF: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(80),
    Duration::from_secs(160),
];
/// CNPG's startDelay: a server that does not answer by then is started anew.
const START_LIMIT: Duration = Duration::from_secs(3_600);
/// What failed is tried again with the operator's polling interval.
const TICK: Duration = Duration::from_secs(1);

/// What the managers of all Clusters share.
#[derive(Clone)]
pub(super) struct Shared {
    pub setup: &'static Setup,
    pub client: Client,
    pub namespace: String,
    pub services: Arc<Services>,
    /// Where init containers find their programs.
    pub programs: PathBuf,
    /// The homes of the source's members on this machine.
    pub hidden: Vec<PathBuf>,
}

/// Runs one Cluster until its task is aborted.
pub(super) struct Manager {
    pub shared: Shared,
    pub cluster: watch::Receiver<Arc<Cluster>>,
    pub poolers: watch::Receiver<Poolers>,
    pub server: Server,
    pub pod: InstancePod,
    pub status: Status,
    pub promotion_times: watch::Sender<PromotionTimes>,
    pub log: Log,
    pub due: Due,
    /// A segment was archived and the condition says so.
    pub archives: bool,
}

/// What is still to be done for the running server; kept until it has succeeded.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The Cluster has changed: the files may have to.
    pub files: bool,
    /// Files have changed: the server has to read them.
    pub reload: bool,
    /// Passwords, extensions and roles of a primary.
    pub sql: bool,
    /// The instance's own report, not before this instant.
    pub report: Option<Instant>,
    /// The phase after a restart, not before this instant.
    pub healthy: Option<Instant>,
}

/// Why a container's life ended.
enum End {
    /// The postmaster is gone though nobody has stopped it.
    Died,
    /// Somebody has deleted the pod.
    Deleted,
}

impl Manager {
    /// From the Cluster's creation on.
    pub(super) async fn run(mut self) {
        while let Err(error) = self.bootstrap().await {
            self.log.write(&format!("bootstrap: {error:#}"));
            sleep(TICK).await;
        }
        loop {
            if let Err(error) = self.run_pod().await {
                self.log.write(&format!("{error:#}"));
                sleep(TICK).await;
            }
        }
    }

    pub(super) fn current(&mut self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.borrow_and_update())
    }

    /// A pod from its creation to its deletion: init containers once, then the server again and
    /// again.
    async fn run_pod(&mut self) -> Result<()> {
        let cluster = self.current();
        let pod = self.pod.create(&cluster).await?;
        self.status.bootstrapped().await?;
        self.status.phase(Phase::WaitingForInstances).await?;
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
                return self.pod.remove().await;
            }
        }
    }

    /// Waits as the kubelet does after a failure; `Deleted` when the pod is deleted meanwhile.
    async fn back_off(&mut self, tries: &mut usize, why: &str) -> Result<End> {
        self.log.write(why);
        self.status.ready_instances(0).await?;
        self.status.phase(Phase::WaitingForInstances).await?;
        self.pod.report(State::BackOff(why)).await?;
        let pause = BACK_OFF[(*tries).min(BACK_OFF.len() - 1)];
        *tries += 1;
        self.pod.restarted();
        tokio::select! {
            () = sleep(pause) => Ok(End::Died),
            () = self.pod.deletion_requested() => Ok(End::Deleted),
        }
    }

    /// One life of the postmaster: files, start, and then whatever the Cluster wants.
    async fn run_server(&mut self) -> Result<End> {
        let cluster = self.current();
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
                    changed.context("the operator is gone")?;
                    (self.due.files, self.due.sql) = (true, true);
                }
                changed = self.poolers.changed() => {
                    changed.context("the operator is gone")?;
                    self.due.sql = true;
                }
                () = sleep_until(self.due.healthy.map_or(next, |due| due.min(next))) => {}
            }
        }
    }

    /// Starts the postmaster, unless there is one, and waits for it.
    pub(super) async fn start(&mut self) -> Result<Session> {
        if !self.server.runs() {
            self.server.start()?;
        }
        self.server.answers(START_LIMIT).await
    }

    /// What follows every start that has succeeded.
    pub(super) async fn started(&mut self, mut session: Session) -> Result<()> {
        if !self.server.is_standby() {
            roles::on_primary_start(&mut session).await?;
        }
        self.pod.report(State::Ready).await?;
        self.status.ready_instances(1).await?;
        self.report(&session).await
    }

    /// The instance's own report in the Cluster's status.
    pub(super) async fn report(&mut self, session: &Session) -> Result<()> {
        let report = identify(session).await?;
        self.status.report(self.pod.ip(), &report).await
    }

    pub(super) fn instance(&self) -> String {
        objects::instance_name(&self.cluster.borrow().name_any())
    }
}

async fn identify(session: &Session) -> Result<Report> {
    let statement = "select not pg_is_in_recovery(), c.timeline_id, s.system_identifier::text
        from pg_control_checkpoint() c, pg_control_system() s";
    let row = session
        .query_one(statement, &[])
        .await
        .context("asking the instance who it is")?;
    Ok(Report {
        is_primary: row.get(0),
        timeline: row.get(1),
        system_identifier: row.get(2),
    })
}
