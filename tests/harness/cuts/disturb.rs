//! What a deed does to a pod that waits at a moment, and to everything around it. Every one lets
//! the pod go on, or ends it.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{LIMIT, Lane, deed::Deed, moments::waits_at, scenario::chosen};
use crate::{
    kubelet::{Ended, Running},
    objects::{CRON_JOB, LEASE},
    route::Route,
    source::{Member, rest},
};

/// So long the late one may act before the other goes on.
const HEAD_START: Duration = Duration::from_millis(1_500);
const OUR_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity where \
    application_name like 'replica-migration%'";

impl Lane {
    /// Does it; returns the other pods that it took. `later`: the moments from this one on.
    pub(super) async fn strike(
        &mut self,
        deed: Deed,
        pod: &Running,
        later: Vec<&str>,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        match deed {
            Deed::Kill | Deed::RollBack => pod.kill(),
            Deed::KillSoon(after) => {
                pod.go_on();
                sleep(after).await;
                pod.kill();
            }
            Deed::Terminate => {
                pod.terminate();
                pod.go_on();
            }
            Deed::RollBackMeanwhile => pod.freeze(),
            _ => {}
        }
        match deed {
            Deed::Kill | Deed::KillSoon(_) | Deed::Terminate => Ok(Vec::new()),
            Deed::RollBack => Ok(vec![(
                "rollback".into(),
                self.pod("rollback", route).run(LIMIT).await?,
            )]),
            Deed::RollBackMeanwhile => self.meanwhile("rollback", pod, route).await,
            Deed::Hang => self.meanwhile("cutover", pod, route).await,
            Deed::Overtake(share) => self.overtaken(pod, &chosen(later, share), route).await,
            Deed::Second => {
                let second = self.pod("cutover", route).run(LIMIT).await?;
                pod.go_on();
                Ok(vec![("the second one".into(), second)])
            }
            _ => self.around(deed, pod).await.map(|()| Vec::new()),
        }
    }

    /// The pod hangs until another one has come to its end.
    async fn meanwhile(
        &self,
        step: &str,
        pod: &Running,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        pod.freeze();
        let other = self.pod(step, route).run(LIMIT).await;
        pod.go_on();
        pod.thaw();
        Ok(vec![(format!("{step} meanwhile"), other?)])
    }

    /// A second one comes to a moment of its own; then the first goes on with what it saw long ago,
    /// and then the second.
    async fn overtaken(
        &self,
        pod: &Running,
        moment: &str,
        route: Route,
    ) -> Result<Vec<(String, Ended)>> {
        self.migration
            .objects()
            .remove(LEASE, "cutover-database")
            .await?;
        let second = self
            .pod("cutover", route)
            .env("FAILPOINT", moment)
            .start()
            .await?;
        let came = second.says(&waits_at(Some(moment)), LIMIT).await.is_ok();
        pod.go_on();
        let _ = timeout(HEAD_START, pod.wait(LIMIT)).await;
        second.go_on();
        let story = format!("the other one{} {moment}", if came { "" } else { ", no" });
        Ok(vec![(story, second.wait(LIMIT).await?)])
    }

    /// What happens beside the pod.
    async fn around(&mut self, deed: Deed, pod: &Running) -> Result<()> {
        let plane = &self.migration.plane;
        match deed {
            Deed::ApiServerAway(seconds) => {
                plane.stop_api_server().await;
                pod.go_on();
                sleep(Duration::from_secs(seconds)).await;
                plane.start_api_server().await?;
            }
            Deed::ApiServerHangs(time) => {
                plane.freeze_api_server();
                pod.go_on();
                sleep(time).await;
                plane.thaw_api_server();
            }
            Deed::PatroniHangs(time) => {
                hang(
                    self.leader().await?,
                    pod,
                    time,
                    Member::freeze_patroni,
                    Member::thaw_patroni,
                )
                .await
            }
            Deed::LeaderHangs(time) => {
                hang(
                    self.leader().await?,
                    pod,
                    time,
                    Member::freeze,
                    Member::thaw,
                )
                .await
            }
            Deed::TargetHangs(time) => {
                self.target.freeze();
                pod.go_on();
                sleep(time).await;
                self.target.thaw();
            }
            _ => {
                self.at_once(deed).await?;
                pod.go_on();
            }
        }
        Ok(())
    }

    /// What takes no time.
    async fn at_once(&mut self, deed: Deed) -> Result<()> {
        let source = &self.migration.source;
        match deed {
            Deed::Abort => self.annotate(json!("true")).await?,
            // A server that is stopped or restarting has no sessions.
            Deed::SourceSessions => {
                if let Ok(session) = source.connect_to(self.leader().await?, "postgres").await {
                    let _ = session.batch_execute(OUR_SESSIONS).await;
                }
            }
            Deed::TargetSessions => self.at_target(OUR_SESSIONS).await,
            Deed::Receiver => self.at_target("select pg_terminate_backend(pid) from \
                pg_stat_wal_receiver").await,
            Deed::ReplayPaused => self.at_target("select pg_wal_replay_pause()").await,
            Deed::LeaderCrashes => self.leader().await?.kill_postgres()?,
            Deed::LeaderLost => {
                let leader = self.leader().await?;
                leader.kill_patroni().await?;
                leader.kill_postgres()?;
            }
            Deed::Switchover => source.switchover().await?,
            Deed::PoolerReplaced => self.migration.poolers[0].replace().await?,
            Deed::PoolersResumed => self.resume().await,
            Deed::BlockLifted => {
                self.configure(&json!({"pause": null, "postgresql": {"parameters": {"default_transaction_read_only": null}}}))
                    .await?
            }
            Deed::ReadOnlyLifted => {
                self.configure(&json!({"postgresql": {"parameters": {"default_transaction_read_only": null}}}))
                    .await?
            }
            Deed::SourceStarted => {
                let leader = self.leader().await?;
                // Refused when it runs already.
                let _ = rest::request(Method::POST, &format!("{}/restart", leader.rest_url()), Some(&json!({}))).await;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes back what would stand in the way of the next pod.
    pub(super) async fn mend(&self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Abort => self.annotate(json!(null)).await,
            Deed::ReplayPaused => {
                self.at_target("select pg_wal_replay_resume()").await;
                Ok(())
            }
            Deed::LeaderCrashes | Deed::Switchover => self.target_follows().await,
            Deed::LeaderLost => {
                let mut lost = self
                    .migration
                    .source
                    .members()
                    .iter()
                    .filter(|member| !member.postgres_runs());
                lost.try_for_each(Member::start)?;
                self.target_follows().await
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

    /// The member that leads, or was the leader when the cut began.
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

    /// A statement at the target; one that restarts just then has nothing to be disturbed.
    async fn at_target(&self, sql: &str) {
        if let Ok(session) = self.target.admin("postgres").await {
            let _ = session.batch_execute(sql).await;
        }
    }

    async fn resume(&self) {
        for pooler in &self.migration.poolers {
            // Refused when it is not paused.
            let _ = pooler.console("RESUME").await;
        }
    }

    async fn configure(&self, change: &serde_json::Value) -> Result<()> {
        let url = format!("{}/config", self.leader().await?.rest_url());
        rest::demand(Method::PATCH, &url, change).await.map(drop)
    }

    /// A failover is over, and the target is on the new leader's timeline; past the return there is
    /// nobody to follow.
    async fn target_follows(&self) -> Result<()> {
        if !self.migration.journal().await?.contains_key("returned") {
            return Ok(());
        }
        self.migration.source.healthy().await
    }
}

async fn hang(
    member: &Member,
    pod: &Running,
    time: Duration,
    freeze: fn(&Member),
    thaw: fn(&Member),
) {
    freeze(member);
    pod.go_on();
    sleep(time).await;
    thaw(member);
}
