//! A PostgreSQL 17 cluster as the Zalando operator 1.15 and Spilo 4.0 leave it: two Patroni members
//! with the API server as their DCS, and every object, label, Secret, role, setting and file that
//! the programs may look at.
//!
//! | imitated | where it was seen |
//! |---|---|
//! | Patroni's configuration, pg_hba, file locations | facts/zalando.md §2, §5; shared/testbed/images/source/launch.py |
//! | objects, labels, Secrets, RBAC | facts/zalando.md §1, §4 |
//! | md5 in postgresql.base.conf, no checksums, `en_US.utf-8` | facts/verified.md, *What the copy brings along* |
//! | `spec.tls` with an intermediate CA | facts/verified.md, its scenario |
//!
//! What the operator does after a change of the resource is in [`operator`].

mod certificates;
mod connection;
mod content;
mod credentials;
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
pub use member::{Member, MemberLayout};
pub use objects::secret_name;
pub use options::{Checksums, Dcs, Hashes, SourceOptions, Tls};
pub use patroni::{POSTGRES_PORT, REST_PORT};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{control_plane::ControlPlane, instance::Instance, setup::Setup};

/// The first member's host number in the instance's network; the second one's is the next.
pub const FIRST_HOST: u8 = 11;
const START_SECONDS_MAX: u64 = 90;
const POLL: Duration = Duration::from_millis(100);

/// The running cluster; ends on drop.
pub struct Source {
    options: SourceOptions,
    credentials: Credentials,
    instance: Arc<Instance>,
    members: Vec<Member>,
    setup: &'static Setup,
}

impl Source {
    /// Makes the objects, starts the members, and fills the databases.
    ///
    /// # Errors
    /// An object is refused, or the cluster does not come up; the error holds the end of Patroni's
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

    /// The first member bootstraps the cluster, the others clone it while the databases are being
    /// filled.
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

    /// Writes a member's postgres.yml, as Spilo does at the start of its pod; an empty `pg_hba` is
    /// Spilo's own list.
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

    /// What was asked for.
    pub fn options(&self) -> &SourceOptions {
        &self.options
    }

    /// The passwords.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The network and directory that it lives in.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Both members, in the order of their numbers.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that leads, by the word of any member that answers.
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
            .with_context(|| format!("{name} leads and is not ours"))
    }

    /// A member that does not lead.
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
            // A frozen member takes the connection and says nothing.
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

    /// PATCH /config: changes Patroni's dynamic configuration; null removes a key. Asked of the
    /// leader.
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

    /// Waits until one member leads and all others run and stream from it. Streaming is asked of
    /// the leader's server: Patroni's members say so themselves only a round or two later
    /// (`loop_wait` is 10 s).
    ///
    /// # Errors
    /// Not within 90 s; the error holds the end of a log.
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

    /// How many members stream from the leader.
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

    /// Kills the leader's PostgreSQL (SIGKILL); what Patroni does then is its own business.
    ///
    /// # Errors
    /// There is no leader.
    pub async fn kill_leader_postgres(&self) -> Result<()> {
        self.leader().await?.kill_postgres()
    }

    /// Stops everything in order, replicas first.
    ///
    /// # Errors
    /// A member does not end.
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

    /// A connection string of the superuser to an address (a member, or a Service's forwarder). TLS
    /// without a check of the certificate: the tests' own connections prove nothing about it.
    pub fn connection_string(&self, address: Ipv4Addr, database: &str) -> String {
        let password = &self.credentials.postgres;
        format!(
            "host={address} port={POSTGRES_PORT} user=postgres password={password} \
             dbname={database} sslmode=require application_name=harness connect_timeout=5"
        )
    }

    /// Connects as the superuser to a member.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn connect_to(&self, member: &Member, database: &str) -> Result<Client> {
        connect(&self.connection_string(member.address(), database))
            .await
            .with_context(|| format!("connecting to {}", member.name()))
    }

    /// Connects as the superuser to the leader.
    ///
    /// # Errors
    /// There is no leader, or it does not answer.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_to(self.leader().await?, database).await
    }

    /// Waits until the members' view of the cluster is as wanted; `member` is the member whose log
    /// explains why it is not.
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
