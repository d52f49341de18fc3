//! Imitates a PostgreSQL 17 cluster of the Zalando operator 1.15 with Spilo 4.0: two real Patroni
//! members with the API server as their DCS, and every object, label, Secret, role, setting and
//! file that the programs may read. Imitated, each with the document that describes it:
//!
//! - Patroni's configuration, pg_hba, file locations: docs/operators/zalando.md
//! - objects, labels, Secrets, RBAC: docs/operators/zalando.md
//! - md5 in postgresql.base.conf, no checksums, `en_US.utf-8`: docs/operators/cloudnative-pg.md
//! - `spec.tls` with an intermediate CA: docs/operators/zalando.md
//!
//! The operator's reactions to changes of the resource are in [`operator`].

mod certificates;
mod connection;
mod content;
mod credentials;
mod logical_reader;
mod member;
mod objects;
pub mod operator;
pub mod options;
mod patroni;
pub mod rest;
mod workloads;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
pub use connection::connect;
pub use credentials::Credentials;
use http::Method;
pub use logical_reader::LogicalReader;
pub use member::{Member, MemberLayout};
pub use objects::secret_name;
pub use options::{Checksums, Dcs, Hashes, SourceOptions, Tls};
pub use patroni::{POSTGRES_PORT, REST_PORT};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{control_plane::ControlPlane, instance::Instance, setup::Setup};

/// Host number of the first member in the instance's network; the second has the next one.
pub const FIRST_HOST: u8 = 11;
const START_SECONDS_MAX: u64 = 90;
const POLL: Duration = Duration::from_millis(100);

/// A running source cluster; it ends on drop.
pub struct Source {
    options: SourceOptions,
    credentials: Credentials,
    instance: Arc<Instance>,
    members: Vec<Member>,
    setup: &'static Setup,
}

impl Source {
    /// Creates the objects, starts the members, and fills the databases.
    ///
    /// # Errors
    /// An object is refused, or the cluster does not start; the error holds the end of Patroni's
    /// log.
    pub async fn start(plane: &ControlPlane, options: SourceOptions) -> Result<Self> {
        let (setup, instance) = (plane.setup(), Arc::clone(plane.instance()));
        let credentials = Credentials::random()?;
        let certificates = certificates::make(&options)?;
        let layouts = member::layouts(setup, &instance, &options, certificates.root.is_some())?;
        plane.namespace(&options.namespace).await?;
        plane
            .apply(
                &options.namespace,
                &objects::all(&options, &layouts, &credentials, &certificates),
            )
            .await?;
        let kubeconfig = plane
            .kubeconfig(&options.namespace, objects::ACCOUNT)
            .await?;
        for layout in &layouts {
            setup
                .user
                .write_private(&layout.home.join("kubeconfig"), &kubeconfig)?;
            setup
                .user
                .write_private(&layout.home.join("post_init.sql"), patroni::POST_INIT)?;
            setup.user.write_private(
                &layout.tls.join("tls.crt"),
                &certificates.server.certificate,
            )?;
            setup
                .user
                .write_private(&layout.tls.join("tls.key"), &certificates.server.key)?;
            setup.user.write_private(
                &layout.tls.join("ca.crt"),
                certificates.root.as_deref().unwrap_or_default(),
            )?;
        }
        let members = layouts
            .into_iter()
            .map(|layout| Member::new(layout, setup))
            .collect();
        let source = Self {
            options,
            credentials,
            instance,
            members,
            setup,
        };
        source
            .members
            .iter()
            .try_for_each(|member| source.configure(member, &[]))?;
        source.bring_up().await?;
        Ok(source)
    }

    /// The first member bootstraps the cluster; the others clone it while the databases are filled.
    async fn bring_up(&self) -> Result<()> {
        let (first, others) = self
            .members
            .split_first()
            .context("a source without members")?;
        first.start()?;
        self.until(first, "no leader", |cluster| {
            rest::leader_name(cluster).is_some()
        })
        .await?;
        others.iter().try_for_each(Member::start)?;
        content::create(self).await?;
        self.healthy().await
    }

    /// Writes a member's postgres.yml, as Spilo does when its pod starts. An empty `pg_hba` means
    /// Spilo's default list.
    fn configure(&self, member: &Member, pg_hba: &[String]) -> Result<()> {
        let configuration = patroni::configuration(
            &self.options,
            member.layout(),
            &self.credentials,
            pg_hba,
            &self.setup.postgres_bin,
        );
        self.setup.user.write_private(
            &member.layout().home.join("postgres.yml"),
            &configuration.to_string(),
        )
    }

    /// The options of this source.
    pub fn options(&self) -> &SourceOptions {
        &self.options
    }

    /// The passwords.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The network and directory of the cluster.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The members in order of their numbers.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The current leader, according to any member that answers.
    ///
    /// # Errors
    /// No member answers, or there is no leader.
    pub async fn leader(&self) -> Result<&Member> {
        let cluster = self.cluster().await?;
        let name =
            rest::leader_name(&cluster).with_context(|| format!("no running leader: {cluster}"))?;
        self.members
            .iter()
            .find(|member| member.name() == name)
            .with_context(|| format!("{name} leads and is not a known member"))
    }

    /// A member that is not the leader.
    ///
    /// # Errors
    /// As [`Source::leader`].
    pub async fn replica(&self) -> Result<&Member> {
        let leader = self.leader().await?.name();
        self.members
            .iter()
            .find(|member| member.name() != leader)
            .context("no member but the leader")
    }

    /// GET /cluster of the first member that answers.
    ///
    /// # Errors
    /// No member answers.
    pub async fn cluster(&self) -> Result<Value> {
        let mut last = anyhow!("a source without members");
        for member in &self.members {
            // A suspended member accepts the connection and does not answer.
            match tokio::time::timeout(
                Duration::from_secs(2),
                rest::get(&format!("{}/cluster", member.rest_url())),
            )
            .await
            {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow!("{} does not answer", member.name()),
            }
        }
        Err(last)
    }

    /// PATCH /config on the leader: changes Patroni's dynamic configuration; null removes a key.
    ///
    /// # Errors
    /// Patroni refuses, or there is no leader that answers.
    pub async fn patch_configuration(&self, patch: &Value) -> Result<Value> {
        rest::demand(
            Method::PATCH,
            &format!("{}/config", self.leader().await?.rest_url()),
            patch,
        )
        .await
    }

    /// Waits until one member leads and all others run and stream from it. Streaming is read from
    /// the leader's server: Patroni reports it only one or two loops later (`loop_wait` is 10 s).
    ///
    /// # Errors
    /// The cluster is not healthy within 90 s; the error holds the end of a log.
    pub async fn healthy(&self) -> Result<()> {
        let member = self.members.last().context("a source without members")?;
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        self.until(member, "not all members run", |cluster| {
            rest::all_run(cluster, self.members.len())
        })
        .await?;
        while self.streaming().await.unwrap_or_default() != self.members.len() - 1 {
            if Instant::now() > deadline {
                return Err(
                    member.error_with_log(&format!("not streaming after {START_SECONDS_MAX} s"))
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The number of members that stream from the leader.
    async fn streaming(&self) -> Result<usize> {
        let names: Vec<&str> = self.members.iter().map(Member::name).collect();
        let query = "select count(*) from pg_stat_replication where state = 'streaming' and \
            application_name = any ($1)";
        let row = self
            .connect("postgres")
            .await?
            .query_one(query, &[&names])
            .await?;
        Ok(usize::try_from(row.get::<_, i64>(0))?)
    }

    /// Waits until the replicas have received everything that the leader has written so far.
    ///
    /// # Errors
    /// There is no leader, or a replica does not receive it.
    pub async fn replicated(&self) -> Result<()> {
        let names: Vec<&str> = self.members.iter().map(Member::name).collect();
        let session = self.connect("postgres").await?;
        let query = "select pg_current_wal_flush_lsn()::text";
        let written: String = session.query_one(query, &[]).await?.get(0);
        let query = "select count(*) from pg_stat_replication \
            where application_name = any ($1) and flush_lsn >= $2::text::pg_lsn";
        let all = async {
            loop {
                let row = session.query_one(query, &[&names, &written]).await?;
                if row.get::<_, i64>(0) as usize + 1 >= names.len() {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(START_SECONDS_MAX), all)
            .await
            .context("a replica does not receive what the leader has written")?
    }

    /// Moves leadership to the other member and waits until the cluster is healthy again.
    ///
    /// # Errors
    /// Patroni refuses, or the cluster does not become healthy.
    pub async fn switchover(&self) -> Result<()> {
        let (leader, candidate) = (self.leader().await?, self.replica().await?.name());
        let body = json!({"leader": leader.name(), "candidate": candidate});
        rest::demand(
            Method::POST,
            &format!("{}/switchover", leader.rest_url()),
            &body,
        )
        .await?;
        self.until(leader, "no switchover", |cluster| {
            rest::leader_name(cluster) == Some(candidate)
        })
        .await?;
        self.healthy().await
    }

    /// Kills the leader's PostgreSQL (SIGKILL), not Patroni.
    ///
    /// # Errors
    /// There is no leader.
    pub async fn kill_leader_postgres(&self) -> Result<()> {
        self.leader().await?.kill_postgres()
    }

    /// Stops all members, replicas first.
    ///
    /// # Errors
    /// A member does not stop.
    pub async fn stop(&self) -> Result<()> {
        let leader = self
            .leader()
            .await
            .map(Member::name)
            .unwrap_or_default()
            .to_owned();
        for member in self.members.iter().filter(|member| member.name() != leader) {
            member.stop().await?;
        }
        for member in self.members.iter().filter(|member| member.name() == leader) {
            member.stop().await?;
        }
        Ok(())
    }

    /// A superuser's connection string for an address (a member, or a Service). TLS without
    /// certificate checks: these connections test nothing about certificates.
    pub fn connection_string(&self, address: Ipv4Addr, database: &str) -> String {
        let password = &self.credentials.postgres;
        format!(
            "host={address} port={POSTGRES_PORT} user=postgres password={password} \
             dbname={database} sslmode=require application_name=harness connect_timeout=5"
        )
    }

    /// Connects to a member as the superuser.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn connect_to(&self, member: &Member, database: &str) -> Result<Client> {
        connect(&self.connection_string(member.address(), database))
            .await
            .with_context(|| format!("connecting to {}", member.name()))
    }

    /// Connects to the leader as the superuser.
    ///
    /// # Errors
    /// There is no leader, or it does not answer.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_to(self.leader().await?, database).await
    }

    /// Waits until the members' view of the cluster is `wanted`; an error holds the log of
    /// `member`.
    async fn until(
        &self,
        member: &Member,
        missing: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let seen = self.cluster().await;
            if seen.as_ref().is_ok_and(&wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seen =
                    seen.map_or_else(|error| error.to_string(), |cluster| cluster.to_string());
                return Err(member
                    .error_with_log(&format!("{missing} after {START_SECONDS_MAX} s; {seen}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
