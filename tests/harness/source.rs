//! A PostgreSQL 17 cluster as the Zalando operator 1.15 and Spilo 4.0 leave it: two Patroni members with the API server as
//! their DCS, and every object, label, Secret, role, setting and file that the programs may look at.
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
pub use member::{Member, Place};
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
    /// An object is refused, or the cluster does not come up; the error holds the end of Patroni's log.
    pub async fn start(plane: &ControlPlane, options: SourceOptions) -> Result<Self> {
        let (setup, instance) = (plane.setup(), Arc::clone(plane.instance()));
        let credentials = Credentials::random()?;
        let certificates = certificates::make(&options)?;
        let places = member::places(setup, &instance, &options, certificates.root.is_some())?;
        plane.namespace(&options.namespace).await?;
        plane
            .apply(&options.namespace, &objects::all(&options, &places, &credentials, &certificates))
            .await?;
        let kubeconfig = plane.kubeconfig(&options.namespace, objects::ACCOUNT).await?;
        for place in &places {
            setup.user.write_private(&place.home.join("kubeconfig"), &kubeconfig)?;
            setup.user.write_private(&place.home.join("post_init.sql"), patroni::POST_INIT)?;
            setup
                .user
                .write_private(&place.tls.join("tls.crt"), &certificates.server.certificate)?;
            setup.user.write_private(&place.tls.join("tls.key"), &certificates.server.key)?;
            setup
                .user
                .write_private(&place.tls.join("ca.crt"), certificates.root.as_deref().unwrap_or_default())?;
        }
        let members = places.into_iter().map(|place| Member::new(place, setup)).collect();
        let source = Self {
            options,
            credentials,
            instance,
            members,
            setup,
        };
        source.members.iter().try_for_each(|member| source.configure(member, &[]))?;
        source.bring_up().await?;
        Ok(source)
    }

    /// The first member bootstraps the cluster, the others clone it while the databases are being filled.
    async fn bring_up(&self) -> Result<()> {
        let (first, others) = self.members.split_first().context("a source without members")?;
        first.start()?;
        self.until(first, "no leader", |cluster| leader_name(cluster).is_some()).await?;
        others.iter().try_for_each(Member::start)?;
        content::create(self).await?;
        self.healthy().await
    }

    /// Writes a member's postgres.yml, as Spilo does at the start of its pod; an empty `pg_hba` is Spilo's own list.
    fn configure(&self, member: &Member, pg_hba: &[String]) -> Result<()> {
        let configuration = patroni::configuration(&self.options, member.place(), &self.credentials, pg_hba, &self.setup.postgres_bin);
        self.setup
            .user
            .write_private(&member.place().home.join("postgres.yml"), &configuration.to_string())
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
        let name = leader_name(&cluster).with_context(|| format!("no running leader: {cluster}"))?;
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
            match tokio::time::timeout(Duration::from_secs(2), rest::get(&format!("{}/cluster", member.rest_url()))).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow!("{} does not answer", member.name()),
            }
        }
        Err(last)
    }

    /// PATCH /config: changes Patroni's dynamic configuration; null removes a key.
    ///
    /// # Errors
    /// Patroni refuses, or the leader does not answer.
    pub async fn patch_configuration(&self, patch: &Value) -> Result<Value> {
        let member = self.members.first().context("a source without members")?;
        rest::demand(Method::PATCH, &format!("{}/config", member.rest_url()), patch).await
    }

    /// Waits until one member leads, all others stream from it, and all are on one timeline.
    ///
    /// # Errors
    /// Not within 90 s; the error holds the end of a log.
    pub async fn healthy(&self) -> Result<()> {
        let member = self.members.last().context("a source without members")?;
        self.until(member, "not healthy", |cluster| is_healthy(cluster, self.members.len()))
            .await
    }

    /// Moves leadership to the other member and waits until the cluster is healthy again.
    ///
    /// # Errors
    /// Patroni refuses, or the cluster does not become healthy.
    pub async fn switchover(&self) -> Result<()> {
        let (leader, candidate) = (self.leader().await?, self.replica().await?.name());
        let body = json!({"leader": leader.name(), "candidate": candidate});
        rest::demand(Method::POST, &format!("{}/switchover", leader.rest_url()), &body).await?;
        self.until(leader, "no switchover", |cluster| leader_name(cluster) == Some(candidate))
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
        let leader = self.leader().await.map(Member::name).unwrap_or_default().to_owned();
        for member in self.members.iter().filter(|member| member.name() != leader) {
            member.stop().await?;
        }
        for member in self.members.iter().filter(|member| member.name() == leader) {
            member.stop().await?;
        }
        Ok(())
    }

    /// A connection string of the superuser to an address (a member, or a Service's forwarder). TLS without a check of
    /// the certificate: the tests' own connections prove nothing about it.
    pub fn connection_string(&self, address: Ipv4Addr, database: &str) -> String {
        let password = &self.credentials.postgres;
        format!(
            "host={address} port={POSTGRES_PORT} user=postgres password={password} dbname={database} sslmode=require application_name=harness connect_timeout=5"
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

    /// Waits until the members' view of the cluster is as wanted; `whom` is the member whose log explains why it is not.
    async fn until(&self, whom: &Member, missing: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let seen = self.cluster().await;
            if seen.as_ref().is_ok_and(&wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seen = seen.map_or_else(|error| error.to_string(), |cluster| cluster.to_string());
                return Err(whom.complain(&format!("{missing} after {START_SECONDS_MAX} s; {seen}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The member that leads and runs, in an answer of GET /cluster.
fn leader_name(cluster: &Value) -> Option<&str> {
    let leads = |member: &&Value| matches!(member["role"].as_str(), Some("leader" | "standby_leader")) && member["state"] == "running";
    cluster["members"].as_array()?.iter().find(leads)?["name"].as_str()
}

/// One leader that runs, everybody else streams, all on the same timeline.
fn is_healthy(cluster: &Value, members: usize) -> bool {
    let Some(list) = cluster["members"].as_array() else { return false };
    let leaders = list
        .iter()
        .filter(|member| member["role"] == "leader" && member["state"] == "running")
        .count();
    let followers = list
        .iter()
        .filter(|member| member["role"] == "replica" && member["state"] == "streaming")
        .count();
    let timelines: std::collections::BTreeSet<_> = list.iter().map(|member| member["timeline"].as_u64()).collect();
    leaders == 1 && leaders + followers == members && timelines.len() == 1
}
