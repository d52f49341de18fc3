//! Injects a fault into a pod that waits at a failpoint, and into its environment. Every fault
//! releases or ends the pod.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{LIMIT, Worker, failpoints::waiting_line, fault::Fault, scenario::chosen};
use crate::{
    kubelet::{Ended, RunningPod},
    objects::{CRON_JOB, LEASE},
    route::Route,
    source::{Member, rest},
};

/// How long the delayed pod may act before the other one resumes.
const HEAD_START: Duration = Duration::from_millis(1_500);
/// The logical slot that a reader reads.
const SLOT: &str = "soak";
/// What the cutover must be told to accept while the slot is read.
pub(super) const ACCEPTED: &str = "logical-readers:soak";
/// Limit for the reader's first answer.
const READER_STARTS: Duration = Duration::from_secs(20);
/// A reader that has ended leaves its slot when its walsender notices.
const SLOT_IS_LEFT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
const PROGRAM_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity where \
    application_name like 'replica-migration%'";

impl Worker {
    /// Injects a fault; returns the other pods that it started. `later`: the failpoints from this
    /// one on.
    pub(super) async fn inject(
        &mut self,
        fault: Fault,
        pod: &RunningPod,
        later: Vec<&str>,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        match fault {
            Fault::Kill | Fault::RollBack => pod.kill(),
            Fault::KillSoon(after) => {
                pod.release_failpoint();
                sleep(after).await;
                pod.kill();
            }
            Fault::Terminate => {
                pod.terminate();
                pod.release_failpoint();
            }
            Fault::RollBackMeanwhile => pod.suspend(),
            _ => {}
        }
        match fault {
            Fault::Kill | Fault::KillSoon(_) | Fault::Terminate => Ok(Vec::new()),
            Fault::RollBack => Ok(vec![(
                "rollback".into(),
                self.pod("rollback", route).run(LIMIT).await?,
            )]),
            Fault::RollBackMeanwhile => self.hang_while_another_runs("rollback", pod, route).await,
            Fault::Hang => self.hang_while_another_runs("cutover", pod, route).await,
            Fault::Overtake(position) => self.overtake(pod, &chosen(later, position), route).await,
            Fault::Second => {
                let second = self.pod("cutover", route).run(LIMIT).await?;
                pod.release_failpoint();
                Ok(vec![("the second cutover".into(), second)])
            }
            _ => self.inject_around(fault, pod).await.map(|()| Vec::new()),
        }
    }

    /// Suspends the pod until another one has ended.
    async fn hang_while_another_runs(
        &self,
        step: &str,
        pod: &RunningPod,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        pod.suspend();
        let other = self.pod(step, route).run(LIMIT).await;
        pod.release_failpoint();
        pod.resume();
        Ok(vec![(format!("{step} during the hang"), other?)])
    }

    /// A second cutover advances to a failpoint; then the first resumes with its outdated
    /// observation, and then the second.
    async fn overtake(
        &self,
        pod: &RunningPod,
        failpoint: &str,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        self.migration
            .objects()
            .remove(LEASE, "cutover-database")
            .await?;
        let second = self
            .pod("cutover", route)
            .env("FAILPOINT", failpoint)
            .start()
            .await?;
        let reached = second
            .wait_for_line(&waiting_line(Some(failpoint)), LIMIT)
            .await
            .is_ok();
        pod.release_failpoint();
        let _ = timeout(HEAD_START, pod.wait(LIMIT)).await;
        second.release_failpoint();
        let trace = format!(
            "the other cutover{} {failpoint}",
            if reached { "" } else { ", not at" }
        );
        Ok(vec![(trace, second.wait(LIMIT).await?)])
    }

    /// Injects a fault outside of the pod.
    async fn inject_around(&mut self, fault: Fault, pod: &RunningPod) -> Result<()> {
        let plane = &self.migration.plane;
        match fault {
            Fault::ApiServerAway(seconds) => {
                plane.stop_api_server().await;
                pod.release_failpoint();
                sleep(Duration::from_secs(seconds)).await;
                plane.start_api_server().await?;
            }
            Fault::ApiServerHangs(time) => {
                plane.suspend_api_server();
                pod.release_failpoint();
                sleep(time).await;
                plane.resume_api_server();
            }
            Fault::PatroniHangs(time) => {
                hang(
                    self.leader().await?,
                    pod,
                    time,
                    Member::suspend_patroni,
                    Member::resume_patroni,
                )
                .await
            }
            Fault::MemberHangs(time) => {
                hang(
                    self.replica().await?,
                    pod,
                    time,
                    Member::suspend_patroni,
                    Member::resume_patroni,
                )
                .await
            }
            Fault::LeaderHangs(time) => {
                hang(
                    self.leader().await?,
                    pod,
                    time,
                    Member::suspend,
                    Member::resume,
                )
                .await
            }
            Fault::TargetHangs(time) => {
                self.target.suspend();
                pod.release_failpoint();
                sleep(time).await;
                self.target.resume();
            }
            _ => {
                self.inject_at_once(fault).await?;
                pod.release_failpoint();
            }
        }
        Ok(())
    }

    /// Injects a fault that takes no time.
    async fn inject_at_once(&mut self, fault: Fault) -> Result<()> {
        let source = &self.migration.source;
        match fault {
            Fault::Abort => self.annotate(json!("true")).await?,
            // A stopped or restarting server has no sessions.
            Fault::SourceSessions => {
                if let Ok(session) = source.connect_to(self.leader().await?, "postgres").await {
                    let _ = session.batch_execute(PROGRAM_SESSIONS).await;
                }
            }
            Fault::TargetSessions => self.run_on_target(PROGRAM_SESSIONS).await,
            Fault::Receiver => {
                self.run_on_target(
                    "select pg_terminate_backend(pid) from \
                pg_stat_wal_receiver",
                )
                .await
            }
            Fault::ReplayPaused => {
                self.run_on_target("select pg_wal_replay_pause()").await;
                // Without a record that the target does not replay, nothing would be missing there.
                if let Ok(session) = source.connect_to(self.leader().await?, "postgres").await {
                    let record = "select pg_create_restore_point('harness')";
                    let _ = session.batch_execute(record).await;
                }
            }
            Fault::LeaderCrashes => self.leader().await?.kill_postgres()?,
            Fault::LeaderLost => {
                // What only the lost node has is lost, whatever a cutover does.
                let _held = self.migration.application.hold_unmanaged_writers().await;
                source.replicated().await?;
                let leader = self.leader().await?;
                leader.kill_patroni().await?;
                leader.kill_postgres()?;
            }
            Fault::Switchover => source.switchover().await?,
            Fault::LogicalReader => {
                // A former leader that leads again may have kept it.
                self.drop_logical_slot().await?;
                let reader = source.start_logical_reader(SLOT, READER_STARTS).await?;
                reader.suspend();
                self.reader = Some(reader);
            }
            Fault::ServicesSlow => self.migration.services.set_slow(true),
            Fault::AbortServicesSlow => {
                self.migration.services.set_slow(true);
                self.annotate(json!("true")).await?;
            }
            Fault::PoolerReplaced => self.migration.poolers[0].replace().await?,
            Fault::PoolersResumed => self.resume_poolers().await,
            Fault::BlockLifted => {
                self.configure(&json!({
                    "pause": null,
                    "postgresql": {"parameters": {
                        "default_transaction_read_only": null, "restart_after_crash": null
                    }}
                }))
                .await?
            }
            Fault::ReadOnlyLifted => {
                self.configure(
                    &json!({"postgresql": {"parameters": {"default_transaction_read_only": null}}}),
                )
                .await?
            }
            Fault::SourceStarted => {
                let leader = self.leader().await?;
                // Refused if the server runs.
                let _ = rest::request(
                    Method::POST,
                    &format!("{}/restart", leader.rest_url()),
                    Some(&json!({})),
                )
                .await;
            }
            _ => {}
        }
        Ok(())
    }

    /// Undoes what would block the next pod.
    pub(super) async fn undo_fault(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Abort => self.annotate(json!(null)).await,
            Fault::ReplayPaused => {
                self.run_on_target("select pg_wal_replay_resume()").await;
                Ok(())
            }
            Fault::LogicalReader => {
                if let Some(reader) = self.reader.take() {
                    reader.end().await;
                }
                // A stopped source has no sessions; its slot is dropped before the next cutover.
                let _ = timeout(SLOT_IS_LEFT, self.drop_logical_slot()).await;
                Ok(())
            }
            Fault::AbortServicesSlow => {
                self.migration.services.set_slow(false);
                self.annotate(json!(null)).await
            }
            Fault::ServicesSlow => {
                self.migration.services.set_slow(false);
                Ok(())
            }
            Fault::LeaderCrashes | Fault::Switchover => self.wait_until_healthy().await,
            Fault::LeaderLost => {
                let mut lost = self
                    .migration
                    .source
                    .members()
                    .iter()
                    .filter(|member| !member.postgres_runs());
                lost.try_for_each(Member::start)?;
                self.wait_until_healthy().await
            }
            _ => Ok(()),
        }
    }

    async fn annotate(&self, value: serde_json::Value) -> Result<()> {
        let change = json!({"metadata": {"annotations": {"replica-migration/abort": value}}});
        self.migration
            .objects()
            .patch(CRON_JOB, "replica-migration-cutover", change)
            .await
    }

    /// The current leader, or the leader when the cutover began.
    async fn leader(&self) -> Result<&Member> {
        if let Ok(leader) = self.migration.source.leader().await {
            return Ok(leader);
        }
        let started = self
            .migration
            .journal()
            .await?
            .remove("started")
            .unwrap_or_default();
        let members = self.migration.source.members();
        let recorded = members
            .iter()
            .find(|member| started["leader"] == member.name());
        recorded.context("no member leads, and none is recorded")
    }

    /// Drops the slot at the source, once it is not read any more.
    ///
    /// # Errors
    /// The source does not answer.
    pub(super) async fn drop_logical_slot(&self) -> Result<()> {
        let session = self.migration.source.connect("postgres").await?;
        loop {
            let dropped = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                where slot_name = $1 and active_pid is null";
            let left = "select count(*) from pg_replication_slots where slot_name = $1";
            // Patroni drops slots that it does not know, too.
            let _ = session.execute(dropped, &[&SLOT]).await;
            if session.query_one(left, &[&SLOT]).await?.get::<_, i64>(0) == 0 {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// A member that does not lead.
    async fn replica(&self) -> Result<&Member> {
        let leader = self.leader().await?.name();
        let members = self.migration.source.members();
        let other = members.iter().find(|member| member.name() != leader);
        other.context("no member but the leader")
    }

    /// Runs a statement on the target; a target that is restarting is left alone.
    async fn run_on_target(&self, sql: &str) {
        if let Ok(session) = self.target.admin("postgres").await {
            let _ = session.batch_execute(sql).await;
        }
    }

    async fn resume_poolers(&self) {
        for pooler in &self.migration.poolers {
            // Refused if the pooler is not paused.
            let _ = pooler.console("RESUME").await;
        }
    }

    async fn configure(&self, change: &serde_json::Value) -> Result<()> {
        let url = format!("{}/config", self.leader().await?.rest_url());
        rest::demand(Method::PATCH, &url, change).await.map(drop)
    }

    /// Waits until the source is healthy after a failover; past the point of no return the target
    /// follows no source.
    async fn wait_until_healthy(&self) -> Result<()> {
        if !self.migration.journal().await?.contains_key("returned") {
            return Ok(());
        }
        self.migration.source.healthy().await
    }
}

async fn hang(
    member: &Member,
    pod: &RunningPod,
    time: Duration,
    suspend: fn(&Member),
    resume: fn(&Member),
) {
    suspend(member);
    pod.release_failpoint();
    sleep(time).await;
    resume(member);
}
