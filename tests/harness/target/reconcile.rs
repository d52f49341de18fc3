//! Reconciles the running instance with its Cluster.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::time::{Instant, sleep_until};

use super::{
    bootstrap::random_password,
    cluster::Cluster,
    configuration::{self, Paths},
    connection,
    manager::{Manager, Shared},
    objects,
    pod::State,
    roles,
    server::{PGDATA, StopMode},
    socket_users,
    status::Phase,
    volume::Changed,
};
use crate::session::Session;

impl Manager {
    /// Writes configuration files that differ from the Cluster's spec.
    pub(super) async fn refresh(&self, cluster: &Cluster) -> Result<Changed> {
        let volume = self.server.volume();
        let paths = Paths {
            controller: volume.root(),
            address: self.server.address(),
        };
        let users = socket_users::users(&self.shared.setup.user)?;
        let spec = &cluster.spec.postgresql;
        let mut changed = volume.update(
            &format!("{PGDATA}/pg_hba.conf"),
            &configuration::pg_hba(&spec.pg_hba),
        )? | volume.update(
            &format!("{PGDATA}/pg_ident.conf"),
            &configuration::pg_ident(&users, &spec.pg_ident),
        )? | volume.update(
            &format!("{PGDATA}/custom.conf"),
            &configuration::custom_conf(cluster, &paths),
        )?;
        let main = std::fs::read_to_string(volume.path(PGDATA).join("postgresql.conf"))
            .context("reading postgresql.conf")?;
        changed = changed
            | volume.update(
                &format!("{PGDATA}/postgresql.conf"),
                &configuration::with_includes(&main),
            )?;
        if self.server.is_standby() && !self.leads() {
            let file = format!("{PGDATA}/override.conf");
            changed = changed | volume.update(&file, &self.follow_primary(cluster)?)?;
        } else if self.server.is_standby() && cluster.is_replica() {
            let source = cluster
                .spec
                .replica
                .as_ref()
                .and_then(|replica| cluster.external(&replica.source));
            let external = source.context("missing external cluster")?;
            let Shared {
                client,
                namespace,
                services,
                ..
            } = &self.shared;
            let conninfo =
                connection::conninfo(client, namespace, external, volume, services).await?;
            changed = changed
                | volume.update(
                    &format!("{PGDATA}/override.conf"),
                    &configuration::override_conf(&conninfo),
                )?;
        }
        Ok(changed)
    }

    /// One reconciliation; called at each change and every second.
    pub(super) async fn converge(&mut self) -> Result<()> {
        let cluster = self.current();
        if self.due.files {
            self.due.reload |= self.refresh(&cluster).await? == Changed::Yes;
            self.due.files = false;
        }
        if cluster.is_fenced(&self.instance()) {
            return self.fence().await;
        }
        if !self.server.runs() {
            let session = self.start().await?;
            self.due.reload = false;
            return self.started(session).await;
        }
        let leads = self.leads();
        if !leads && self.must_stop() {
            self.log.write("no longer the primary");
            return self.server.stop(StopMode::Immediate).await;
        }
        if leads
            && self.server.is_standby()
            && !cluster.is_replica()
            && self.promotion_is_imitated(&cluster)
        {
            self.promote(&cluster).await?;
        }
        if self.due.reload {
            self.server.reload().await?;
            self.wait_for_reload(&cluster).await?;
            self.due.reload = false;
        }
        if leads && self.leadership.now().current != self.name {
            self.take_over().await?;
        }
        if !leads {
            self.pod.set_role("replica").await?;
        }
        // An error here ends CNPG's reconciliation as well, but the operator still requests the
        // restart.
        if let Err(error) = self.reconcile_primary_sql(&cluster).await {
            self.log.write(&format!("{error:#}"));
        }
        if let Some(due) = self.due.report {
            sleep_until(due).await;
            self.report(&self.server.connect("postgres").await?).await?;
            self.due.report = None;
        }
        self.restart_if_pending(&cluster).await?;
        self.report_healthy().await?;
        if self.archives {
            Ok(())
        } else {
            self.watch_the_archiver().await
        }
    }

    /// True if another instance is to be the primary, and this one is it, or was it at the end of
    /// replica mode.
    fn must_stop(&self) -> bool {
        let primary = self.leadership.now();
        let replica = self.cluster.borrow().is_replica();
        let pending = primary.target.is_none() && primary.current == self.name && !replica;
        pending || !self.server.is_standby()
    }

    /// The instance has become the primary, or the designated one.
    async fn take_over(&mut self) -> Result<()> {
        self.status.current_primary().await?;
        self.leadership.taken_over(&self.name);
        self.pod.set_role("primary").await?;
        self.status.phase(Phase::Healthy).await
    }

    /// Fences the instance: fast shutdown; the pod stays but leaves its Services. The phase does
    /// not change.
    async fn fence(&mut self) -> Result<()> {
        if self.server.runs() {
            let session = self.server.connect("postgres").await?;
            self.checkpoint_primary(&session).await?;
            drop(session);
            self.server.stop(StopMode::Fast).await?;
            self.pod.report(State::NotReady).await?;
            self.status.ready(false).await?;
        }
        Ok(())
    }

    /// Reconciles passwords, extensions and roles: once for each start and each change of the
    /// Cluster or its Poolers, and again after a failure.
    pub(super) async fn reconcile_primary_sql(&mut self, cluster: &Cluster) -> Result<()> {
        if !self.due.sql || self.server.is_standby() {
            return Ok(());
        }
        if let Some(backup) = cluster
            .spec
            .bootstrap
            .pg_basebackup
            .as_ref()
            .filter(|_| cluster.generates_owner_password())
        {
            let secret = objects::credentials(
                cluster,
                &cluster.owner_secret(),
                &backup.owner,
                &backup.database,
                &random_password()?,
            );
            self.create(&secret).await?;
        }
        let secrets: Api<Secret> =
            Api::namespaced(self.shared.client.clone(), &self.shared.namespace);
        let poolers = *self.poolers.borrow_and_update();
        roles::reconcile(&self.server, cluster, &secrets, poolers).await?;
        self.due.sql = false;
        Ok(())
    }

    /// Reports the phase after a restart, when it is due.
    async fn report_healthy(&mut self) -> Result<()> {
        if self.due.healthy.is_none_or(|due| due > Instant::now()) {
            return Ok(());
        }
        self.phase(Phase::RestartedInPlace).await?;
        self.due.healthy = None;
        self.promotion_times.send_modify(|promotion_times| {
            if promotion_times.serving.is_some() {
                promotion_times.healthy.get_or_insert_with(Instant::now);
            }
        });
        Ok(())
    }

    /// CNPG writes a checkpoint before it stops a primary, so that the shutdown checkpoint is
    /// short.
    pub(super) async fn checkpoint_primary(&self, session: &Session) -> Result<()> {
        if !self.server.is_standby() {
            session.batch_execute("checkpoint").await?;
        }
        Ok(())
    }

    async fn watch_the_archiver(&mut self) -> Result<()> {
        let session = self.server.connect("postgres").await?;
        let archived: i64 = session
            .query_one("select archived_count from pg_stat_archiver", &[])
            .await?
            .get(0);
        if archived > 0 {
            self.status.archives().await?;
            self.archives = true;
        }
        Ok(())
    }
}
