//! Promotion and the restart after it, with the times observed on a real cluster
//! (docs/operators/cloudnative-pg.md). **Nothing here checks that the source's last WAL has
//! arrived.**

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    cluster::Cluster,
    configuration::{self, Paths},
    manager::Manager,
    pod::State,
    promotion_times::PromotionTimes,
    server::StopMode,
    status::Phase,
};
use crate::session::Session;

/// From the patch to `pg_ctl promote`; PostgreSQL itself takes the rest of the 0.9–1.0 s observed.
const REACTION: Duration = Duration::from_millis(300);
/// From the patch to `isPrimary` and `timelineID` in the status (observed: 1.5 s when idle, 2.7 s
/// on a busy machine).
const REPORTED: Duration = Duration::from_millis(1_500);
/// From that report to the start of the restart (observed: 0.1 s).
const RESTART_AFTER_REPORT: Duration = Duration::from_millis(100);
/// From the patch to the start of the restart where other instances are recreated first (observed:
/// 13.5 s with two).
const RESTART_AFTER_OTHERS: Duration = Duration::from_millis(13_500);
/// Minimum downtime of the restart (observed: 0.7–1.5 s), so that the server answers 2.8 s after
/// the patch.
const DOWN_AT_LEAST: Duration = Duration::from_secs(1);
/// From the server's first answer to the pod's readiness (observed: restarted after 3.88 s,
/// reachable by the Service after 4.18 s).
const READY_AFTER: Duration = Duration::from_millis(300);
/// From the patch to the phase `Cluster in healthy state` (observed: 8.2 s when idle).
const HEALTHY: Duration = Duration::from_millis(8_200);
/// From the phase of a restart to its end, if no promotion came before (observed: 2.8 s to 8.8 s).
const RESTARTED: Duration = Duration::from_secs(6);
/// Limit for a reload to take effect.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

impl Manager {
    /// False with a promotion token, which is not imitated: nothing happens, and the log has the
    /// reason.
    pub(super) fn promotion_is_imitated(&self, cluster: &Cluster) -> bool {
        let token = cluster
            .spec
            .replica
            .as_ref()
            .is_some_and(|replica| !replica.promotion_token.is_empty());
        if token {
            self.log.write("promotion tokens are not imitated");
        }
        !token
    }

    /// Promotes the server; work that has to follow is marked as due.
    pub(super) async fn promote(&mut self, cluster: &Cluster) -> Result<()> {
        let requested = self.requested();
        let session = self.server.connect("postgres").await?;
        let archive_mode: String = session.query_one("show archive_mode", &[]).await?.get(0);
        if archive_mode != cluster.archive_mode() {
            // CNPG sets this phase right after the patch, before the promotion.
            self.phase(Phase::ApplyingConfiguration).await?;
        }
        drop(session);
        sleep_until(requested + REACTION).await;
        self.promotion_times
            .send_modify(|promotion_times| promotion_times.promoting = Some(Instant::now()));
        self.server
            .promote()
            .await
            .context("error promoting the PostgreSQL instance")?;
        self.promotion_times
            .send_modify(|promotion_times| promotion_times.primary = Some(Instant::now()));
        (self.due.reload, self.due.sql, self.due.report) = (true, true, Some(requested + REPORTED));
        let session = self.server.connect("postgres").await?;
        session
            .batch_execute("checkpoint")
            .await
            .context("checkpoint after instance promotion")
    }

    /// The instant of the request; kept if a first attempt failed.
    fn requested(&self) -> Instant {
        let under_way = self
            .promotion_times
            .borrow()
            .requested
            .filter(|_| self.promotion_times.borrow().primary.is_none());
        under_way.unwrap_or_else(|| {
            let now = Instant::now();
            self.promotion_times.send_replace(PromotionTimes {
                requested: Some(now),
                ..PromotionTimes::default()
            });
            now
        })
    }

    /// Restarts the server if settings wait for it; the operator checks every second.
    pub(super) async fn restart_if_pending(&mut self, cluster: &Cluster) -> Result<()> {
        let session = self.server.connect("postgres").await?;
        let pending: bool = session
            .query_one(
                "select exists (select from pg_settings where pending_restart)",
                &[],
            )
            .await?
            .get(0);
        let promoted = self
            .promotion_times
            .borrow()
            .requested
            .filter(|_| self.promotion_times.borrow().over().is_none());
        if !pending {
            if promoted.is_some() {
                self.promotion_times
                    .send_modify(|promotion_times| promotion_times.settled = Some(Instant::now()));
            }
            return Ok(());
        }
        if promoted.is_none() {
            self.phase(Phase::ApplyingConfiguration).await?;
        }
        match promoted.filter(|_| cluster.spec.instances > 1) {
            Some(requested) => sleep_until(requested + RESTART_AFTER_OTHERS).await,
            None => sleep(RESTART_AFTER_REPORT).await,
        }
        self.phase(Phase::RestartingInPlace).await?;
        self.due.healthy = Some(promoted.map_or_else(
            || Instant::now() + RESTARTED,
            |requested| requested + HEALTHY,
        ));
        self.restart(session, cluster, promoted).await
    }

    /// Waits until the server has read the file: the hash of the configuration is a setting itself.
    pub(super) async fn wait_for_reload(&self, cluster: &Cluster) -> Result<()> {
        let paths = Paths {
            controller: self.server.volume().root(),
            address: self.server.address(),
        };
        let text = configuration::custom_conf(cluster, &paths);
        let deadline = Instant::now() + RELOAD_LIMIT;
        loop {
            let session = self.server.connect("postgres").await?;
            let hash: Option<String> = session
                .query_one("select current_setting('cnpg.config_sha256', true)", &[])
                .await?
                .get(0);
            if hash.is_some_and(|hash| text.contains(&hash)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                anyhow::bail!(
                    "the server does not take the new configuration: {}",
                    self.server.log_tail()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Restarts in the same pod: smart shutdown for as long as the Cluster specifies, then fast,
    /// then start.
    async fn restart(
        &mut self,
        session: Session,
        cluster: &Cluster,
        requested: Option<Instant>,
    ) -> Result<()> {
        let note = |promotion_times: &watch::Sender<PromotionTimes>,
                    set: fn(&mut PromotionTimes, Instant)| {
            if requested.is_some() {
                promotion_times.send_modify(|promotion_times| set(promotion_times, Instant::now()));
            }
        };
        self.checkpoint_primary(&session).await?;
        drop(session);
        let began = Instant::now();
        note(&self.promotion_times, |promotion_times, now| {
            promotion_times.restart_began = Some(now)
        });
        self.pod.report(State::NotReady).await?;
        self.server
            .stop(StopMode::SmartThenFast(cluster.smart_shutdown_seconds()))
            .await?;
        sleep_until(began + DOWN_AT_LEAST).await;
        let session = self.start().await?;
        note(&self.promotion_times, |promotion_times, now| {
            promotion_times.restart_ended = Some(now)
        });
        sleep(READY_AFTER).await;
        self.started(session).await?;
        note(&self.promotion_times, |promotion_times, now| {
            promotion_times.serving = Some(now)
        });
        Ok(())
    }
}
