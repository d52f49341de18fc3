//! The promotion and the restart that follows it (facts/cnpg.md §2.1, §2.3; verified.md, *Cuts by
//! hand*). **Nobody checks here that the source's last WAL has arrived.**

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

/// From the patch to `pg_ctl promote`: the rest of the 0.9–1.0 s that a promotion was seen to take
/// (verified.md, *No client need notice*) goes to PostgreSQL itself.
const REACTION: Duration = Duration::from_millis(300);
/// From the patch to `isPrimary` and `timelineID` in the status (verified.md: 1.5 s, quiet; 2.7 s
/// on a busy machine).
const REPORTED: Duration = Duration::from_millis(1_500);
/// From that report to the beginning of the restart (verified.md: 0.1 s).
const RESTART_AFTER_REPORT: Duration = Duration::from_millis(100);
/// The server was down for so long of the restart (verified.md: 0.7–1.5 s), so that it answers 2.8
/// s after the patch.
const DOWN_AT_LEAST: Duration = Duration::from_secs(1);
/// From the server's first answer to the pod's readiness (verified.md: restarted 3.88 s, the
/// Service answers 4.18 s).
const READY_AFTER: Duration = Duration::from_millis(300);
/// From the patch to the phase `Cluster in healthy state` (verified.md: 8.2 s, quiet).
const HEALTHY: Duration = Duration::from_millis(8_200);
/// From the phase of a restart to the end of it, when no promotion came before (verified.md: 2.8 s
/// to 8.8 s).
const RESTARTED: Duration = Duration::from_secs(6);
/// A reload that is not seen by then has failed.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

impl Manager {
    /// Promotion tokens are not imitated: with one nothing happens, for ever, and the log says why.
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

    /// Out of recovery, at once; what has to follow is left due.
    pub(super) async fn promote(&mut self, cluster: &Cluster) -> Result<()> {
        let requested = self.requested();
        let session = self.server.connect("postgres").await?;
        let archive_mode: String = session.query_one("show archive_mode", &[]).await?.get(0);
        if archive_mode != cluster.archive_mode() {
            // Seen at the very instant of the patch, before the promotion itself.
            self.status.phase(Phase::ApplyingConfiguration).await?;
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

    /// The instant of the request, kept when a first try has failed.
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

    /// The operator asks each second whether the server has settings that wait for a restart.
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
            self.status.phase(Phase::ApplyingConfiguration).await?;
        }
        sleep(RESTART_AFTER_REPORT).await;
        self.status.phase(Phase::RestartingInPlace).await?;
        self.due.healthy = Some(promoted.map_or_else(
            || Instant::now() + RESTARTED,
            |requested| requested + HEALTHY,
        ));
        self.restart(session, cluster, promoted).await
    }

    /// The configuration's hash is a setting of its own: when it is the file's, the file has been
    /// read.
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

    /// In the same pod: smart as long as the Cluster says, then fast, and up again.
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
