//! The operator's choice of another primary (internal/controller/replicas.go), for Clusters of
//! several instances.
//!
//! While the Cluster follows its source, the designated primary is replaced only when its pod does
//! not exist any more. Otherwise the instance that comes first is to lead: those that report before
//! those that do not, a primary before standbys, then what was received, then what was replayed,
//! then the name (pkg/postgres/status.go, `Less`). So an instance that is equal to the designated
//! primary replaces it at the end of replica mode if its name is less: seen on a real cluster as
//! the phase `Failing over`. Before an election all WAL receivers but the primary's must have
//! ended, and the primary is told to stop.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{cluster::Cluster, leadership::Leadership, log::Log, server::Server, status::Status};

/// Time between two looks; the operator is woken by events as well.
const LOOK: Duration = Duration::from_millis(500);
/// Longer than an instance takes to report its status.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// Chooses the primary of one Cluster.
pub(super) struct Election {
    pub cluster: watch::Receiver<Arc<Cluster>>,
    pub leadership: Leadership,
    pub status: Status,
    pub pods: Api<Pod>,
    /// The servers of all instances by their names.
    pub servers: Vec<(String, Server)>,
    pub log: Log,
}

/// What an instance reports.
struct Report {
    instance: String,
    is_primary: bool,
    received: i64,
    replayed: i64,
    receives: bool,
}

impl Election {
    /// Runs until its task is aborted.
    pub(super) async fn run(self) {
        loop {
            sleep(LOOK).await;
            if let Err(error) = self.look().await {
                self.log.write(&format!("election: {error:#}"));
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let primary = self.leadership.now();
        let replaced = primary.target.as_ref();
        if replaced.is_some_and(|target| *target != primary.current) {
            // The elected one is taking over.
            return Ok(());
        }
        let replica = self.cluster.borrow().is_replica();
        if replica && replaced.is_some() && self.has_pod(&primary.current).await? {
            return Ok(());
        }
        let mut reports = self.reports(replica.then_some(&primary.current)).await;
        reports.sort_by_key(|report| {
            (
                !report.is_primary,
                Reverse(report.received),
                Reverse(report.replayed),
                report.instance.clone(),
            )
        });
        let Some(first) = reports.first() else {
            return Ok(());
        };
        if replaced == Some(&first.instance) {
            return Ok(());
        }
        if replaced.is_some() {
            self.log
                .write(&format!("failing over from {}", primary.current));
            self.status.failing_over(&primary.current).await?;
            self.leadership.suspend();
        }
        let receives = |report: &Report| report.receives && report.instance != primary.current;
        if reports.iter().any(receives) {
            self.log.write("wal receivers are still running");
            return Ok(());
        }
        self.log
            .write(&format!("failing over to {}", first.instance));
        self.status.target_primary(&first.instance).await?;
        self.leadership.elect(&first.instance);
        Ok(())
    }

    async fn has_pod(&self, instance: &str) -> Result<bool> {
        let pod = self.pods.get_opt(instance).await;
        Ok(pod.context("reading the pod of the primary")?.is_some())
    }

    /// The reports of all instances that answer, except the one that is gone.
    async fn reports(&self, gone: Option<&String>) -> Vec<Report> {
        let asked = self
            .servers
            .iter()
            .filter(|(instance, _)| Some(instance) != gone)
            .map(|(instance, server)| async move {
                timeout(REPORT_LIMIT, report(instance, server))
                    .await
                    .ok()?
                    .ok()
            });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

async fn report(instance: &str, server: &Server) -> Result<Report> {
    let session = server.connect("postgres").await?;
    let row = session
        .query_one(
            "select not pg_is_in_recovery(),
                    coalesce(pg_last_wal_receive_lsn() - '0/0', 0)::bigint,
                    coalesce(pg_last_wal_replay_lsn() - '0/0', 0)::bigint,
                    exists (select from pg_stat_wal_receiver)",
            &[],
        )
        .await?;
    Ok(Report {
        instance: instance.to_owned(),
        is_primary: row.get(0),
        received: row.get(1),
        replayed: row.get(2),
        receives: row.get(3),
    })
}
