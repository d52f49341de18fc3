//! Resets an environment after a cutover, so that the next one can start. Expensive parts (API
//! server, source, poolers) are kept.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{LIMIT, Worker, scenario::Restart};
use crate::{
    application::{Application, Epoch, login::Login},
    migration::{CLUSTER, MANIFEST, UNMANAGED, leader_host},
    objects::{
        CNPG, CONFIG_MAP, CRON_JOB, JOB, LEASE, POD, POSTGRESQL, SERVICE, SERVICE_NAME, SLICE,
    },
    service::pgbouncer::PgBouncer,
    source::{Member, rest},
    target::InstanceHandle,
};

const POLL: Duration = Duration::from_millis(50);
/// Two of Patroni's loops: a change that has not been applied by then will not be.
const LOOPS: Duration = Duration::from_secs(20);
/// The programs' records.
const RECORDS: [&str; 3] = [
    "cutover-database",
    "cutover-database-receipt",
    "cutover-replica-counts",
];

impl Worker {
    /// Prepares another target of the required kind, after the clients were stopped and judged.
    pub(super) async fn reset(&mut self, restart: Restart) -> Result<()> {
        self.ready = None;
        self.migration.application.stop().await?;
        let objects = self.migration.objects();
        objects.remove(CNPG, CLUSTER).await?;
        let (gone, reopened) =
            futures::join!(self.migration.target.gone(CLUSTER, LIMIT), self.reopen());
        gone.and(reopened)?;
        if self.migration.source.options().wal_level == "logical" {
            timeout(LIMIT, self.drop_logical_slot())
                .await
                .context("a reader of a logical slot does not end")??;
        }
        self.remove_records().await?;
        // A pooler that failed to log in at the stopped source or the removed target refuses
        // clients for seconds.
        self.replace_poolers().await?;
        let session = self.migration.source.connect("mastodon").await?;
        session
            .batch_execute("truncate public.ledger restart identity; checkpoint")
            .await?;
        self.migration
            .apply_rendered_with(|object| add_restart_annotation(object, restart))
            .await?;
        self.target = self.migration.target.instance(CLUSTER, LIMIT).await?;
        let (restarted, streaming) = futures::join!(
            restart_application(
                &mut self.migration.application,
                &self.migration.services,
                &self.settings,
                self.migration.plane.admin()
            ),
            async {
                tokio::select! {
                    never = checkpoint_for_copy(&session) => never,
                    streaming = wait_until_streaming(&self.target) => streaming,
                }
            }
        );
        streaming?;
        self.epoch = restarted?;
        self.ready = Some(restart);
        Ok(())
    }

    /// Starts the leader's server and makes it writable, as before any cutover.
    async fn reopen(&self) -> Result<()> {
        let source = &self.migration.source;
        let started = self
            .migration
            .journal()
            .await?
            .remove("started")
            .unwrap_or_default();
        let leader = source
            .members()
            .iter()
            .find(|member| started["leader"] == member.name());
        let leader = leader
            .or(source.members().first())
            .context("a source without members")?;
        let open = async {
            // Repeated: Patroni may be in the middle of a loop.
            while !leader.postgres_runs() {
                let _ = rest::request(
                    Method::POST,
                    &format!("{}/restart", leader.rest_url()),
                    Some(&json!({})),
                )
                .await;
                sleep(POLL).await;
            }
            let settled = async {
                while !self.settled(leader).await.unwrap_or(false) {
                    sleep(POLL).await;
                }
            };
            // A change that reaches Patroni during a restart is never applied: it is compared only
            // with a running server (reload_config in postgresql/config.py).
            let _ = timeout(LOOPS, settled).await;
            let lifted = json!({
                "pause": null, "postgresql": {"parameters": {
                    "default_transaction_read_only": null, "restart_after_crash": null
                }}
            });
            while rest::demand(
                Method::PATCH,
                &format!("{}/config", leader.rest_url()),
                &lifted,
            )
            .await
            .is_err()
            {
                sleep(POLL).await;
            }
            while !self.takes_writes().await.unwrap_or(false) {
                sleep(POLL).await;
            }
        };
        timeout(LIMIT, open)
            .await
            .map_err(|_| leader.error_with_log("does not accept writes again"))
    }

    /// True once Patroni's loop has reached the running server: later changes by Patroni would
    /// override what is lifted here.
    async fn settled(&self, leader: &Member) -> Result<bool> {
        let health = rest::get(&format!("{}/health", leader.rest_url())).await?;
        let config = rest::get(&format!("{}/config", leader.rest_url())).await?;
        let session = self.migration.source.connect_to(leader, "postgres").await?;
        let in_force: String = session
            .query_one("show default_transaction_read_only", &[])
            .await?
            .get(0);
        let wanted = config.pointer("/postgresql/parameters/default_transaction_read_only");
        Ok(health["cluster_unlocked"].is_null()
            && wanted.is_none_or(|wanted| *wanted == in_force.as_str()))
    }

    /// Whether the source accepts writes, at the leader's own address.
    async fn takes_writes(&self) -> Result<bool> {
        let session = self.migration.source.connect("postgres").await?;
        let open = "select not pg_is_in_recovery() and not \
            current_setting('default_transaction_read_only')::bool";
        Ok(session.query_one(open, &[]).await?.get(0))
    }

    /// Restores the objects, and removes records and Jobs.
    async fn remove_records(&self) -> Result<()> {
        let objects = self.migration.objects();
        let annotation = |key: &str| json!({"metadata": {"annotations": {key: null}}});
        objects
            .patch(
                POSTGRESQL,
                super::SERVICES[0],
                annotation("acid.zalan.do/controller"),
            )
            .await?;
        objects
            .patch(
                CRON_JOB,
                "replica-migration-cutover",
                annotation("replica-migration/abort"),
            )
            .await?;
        for name in RECORDS {
            objects.remove(CONFIG_MAP, name).await?;
        }
        // A finished cutover has rewritten it for the promoted target.
        objects
            .patch(CONFIG_MAP, MANIFEST, self.manifest.clone())
            .await?;
        objects.remove(LEASE, RECORDS[0]).await?;
        for job in objects.list(JOB, "").await? {
            // The manifests' suspended Jobs have no owner.
            if job["metadata"]["ownerReferences"].is_array() {
                objects
                    .remove(JOB, job["metadata"]["name"].as_str().unwrap_or_default())
                    .await?;
            }
        }
        objects.remove_all(POD, "job-name").await?;
        for (name, selector) in &self.selectors {
            // A merge would keep the keys of the other selector.
            objects
                .patch(SERVICE, name, json!({"spec": {"selector": null}}))
                .await?;
            if selector.is_null() {
                let slices = format!("{SERVICE_NAME}={name}");
                while !objects.list(SLICE, &slices).await?.is_empty() {
                    objects.remove_all(SLICE, &slices).await?;
                }
            } else {
                objects
                    .patch(SERVICE, name, json!({"spec": {"selector": selector}}))
                    .await?;
            }
        }
        Ok(())
    }

    /// Replaces every pooler pod. A pooler that logs in before the Service reaches the source again
    /// would keep the wrong connection.
    pub(super) async fn replace_poolers(&mut self) -> Result<()> {
        self.wait_until_service_reaches_source().await?;
        futures::future::try_join_all(self.migration.poolers.iter_mut().map(PgBouncer::replace))
            .await
            .map(drop)
    }

    /// Waits until the source's Service leads to a server that accepts writes. Queried without the
    /// poolers: a failed login of a pooler costs seconds.
    async fn wait_until_service_reaches_source(&self) -> Result<()> {
        let login = Login {
            host: leader_host(),
            ..self.migration.application.login().await?
        };
        let source: Vec<String> = self
            .migration
            .source
            .members()
            .iter()
            .map(|member| member.address().to_string())
            .collect();
        let reached = async {
            loop {
                let server = async {
                    let session = login.connect(&self.migration.services, "harness").await?;
                    let row = session
                        .query_one("select host(inet_server_addr()), pg_is_in_recovery()", &[])
                        .await?;
                    anyhow::Ok((row.get::<_, String>(0), row.get::<_, bool>(1)))
                };
                if server
                    .await
                    .is_ok_and(|(address, standby)| !standby && source.contains(&address))
                {
                    return;
                }
                sleep(POLL).await;
            }
        };
        timeout(LIMIT, reached)
            .await
            .context("the Service does not reach the source again")
    }
}

/// Starts the application again, with new clients and a new log.
async fn restart_application(
    application: &mut Application,
    services: &std::sync::Arc<crate::service::Services>,
    settings: &crate::application::Settings,
    client: kube::Client,
) -> Result<Epoch> {
    let epoch = Epoch::now();
    *application = Application::deploy(
        client,
        std::sync::Arc::clone(services),
        settings.clone(),
        epoch,
    )
    .await?;
    application
        .start_unmanaged_writer(UNMANAGED, &leader_host())
        .await?;
    application.ready(LIMIT).await?;
    application
        .acknowledges(crate::snapshot::ACTIVE_WRITES, LIMIT)
        .await?;
    Ok(epoch)
}

fn add_restart_annotation(object: &mut Value, restart: Restart) {
    if object["kind"] == "Cluster" && restart == Restart::Skipped {
        object["metadata"]["annotations"]["cnpg.io/skipWalArchiving"] = "enabled".into();
    }
}

/// pg_basebackup waits for a spread checkpoint; an explicit checkpoint completes it at once.
async fn checkpoint_for_copy(source: &tokio_postgres::Client) -> Result<()> {
    let waits = "select exists (select from pg_stat_progress_basebackup where phase = 'waiting for \
        checkpoint to finish')";
    loop {
        if source.query_one(waits, &[]).await?.get(0) {
            source.batch_execute("checkpoint").await?;
        }
        sleep(POLL).await;
    }
}

/// Waits until the target streams from the source.
async fn wait_until_streaming(target: &InstanceHandle) -> Result<()> {
    let sql = "select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming'";
    let follows = async {
        loop {
            if let Ok(session) = target.admin("postgres").await
                && session
                    .query_one(sql, &[])
                    .await
                    .is_ok_and(|row| row.get(0))
            {
                return;
            }
            sleep(POLL).await;
        }
    };
    let error = |_| anyhow::anyhow!("the target does not follow the source\n{}", target.logs());
    timeout(LIMIT, follows).await.map_err(error)
}
