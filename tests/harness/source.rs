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
//! The operator's own deeds after a change of the resource are not here.

mod certificates;
mod content;
mod member;
mod objects;
pub mod options;
mod patroni;
pub mod rest;

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
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
const MEMBERS: u8 = 2;
const START_SECONDS_MAX: u64 = 90;
const POLL: Duration = Duration::from_millis(100);

/// The passwords of the roles that have Secrets.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Superuser `postgres`.
    pub postgres: String,
    /// Replication role `standby`.
    pub standby: String,
    /// The application's role.
    pub application: String,
    /// pgbouncer's role `pooler`.
    pub pooler: String,
}

impl Credentials {
    fn random() -> Result<Self> {
        Ok(Self {
            postgres: password()?,
            standby: password()?,
            application: password()?,
            pooler: password()?,
        })
    }

    fn roles<'a>(&'a self, options: &'a SourceOptions) -> impl Iterator<Item = (&'a str, &'a str)> {
        let application = (options.database.as_str(), self.application.as_str());
        [
            ("postgres", self.postgres.as_str()),
            ("standby", &self.standby),
            application,
            ("pooler", &self.pooler),
        ]
        .into_iter()
    }
}

/// The running cluster; ends on drop.
pub struct Source {
    options: SourceOptions,
    credentials: Credentials,
    instance: Arc<Instance>,
    members: Vec<Member>,
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
        let places = places(setup, &instance, &options, certificates.root.is_some())?;
        plane.namespace(&options.namespace).await?;
        plane
            .apply(&options.namespace, &objects::all(&options, &places, &credentials, &certificates))
            .await?;
        let kubeconfig = plane.kubeconfig(&options.namespace, objects::ACCOUNT).await?;
        for place in &places {
            let configuration = patroni::configuration(&options, place, &credentials, &patroni::Wishes::default(), &setup.postgres_bin);
            write(setup, &place.home.join("postgres.yml"), &configuration.to_string())?;
            write(setup, &place.home.join("kubeconfig"), &kubeconfig)?;
            write(setup, &place.home.join("post_init.sql"), patroni::POST_INIT)?;
            write(setup, &place.tls.join("tls.crt"), &certificates.server.certificate)?;
            write(setup, &place.tls.join("tls.key"), &certificates.server.key)?;
            write(setup, &place.tls.join("ca.crt"), certificates.root.as_deref().unwrap_or_default())?;
        }
        let members = places.into_iter().map(|place| Member::new(place, setup)).collect();
        let source = Self {
            options,
            credentials,
            instance,
            members,
        };
        source.bring_up().await?;
        Ok(source)
    }

    /// The first member bootstraps the cluster, the others clone it while the databases are being filled.
    async fn bring_up(&self) -> Result<()> {
        let (first, others) = self.members.split_first().context("a source without members")?;
        first.start()?;
        self.until(first, "no leader", async || self.leader().await.is_ok()).await?;
        others.iter().try_for_each(Member::start)?;
        content::create(self).await?;
        self.healthy().await
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
        let leads = |member: &&Value| matches!(member["role"].as_str(), Some("leader" | "standby_leader")) && member["state"] == "running";
        let name = cluster["members"]
            .as_array()
            .into_iter()
            .flatten()
            .find(leads)
            .and_then(|member| member["name"].as_str());
        let name = name.with_context(|| format!("no running leader: {cluster}"))?;
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
        self.until(member, "not healthy", async || {
            self.cluster().await.is_ok_and(|cluster| is_healthy(&cluster, self.members.len()))
        })
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
        self.until(leader, "no switchover", async || {
            self.leader().await.is_ok_and(|leader| leader.name() == candidate)
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

    async fn until(&self, whom: &Member, missing: &str, seen: impl AsyncFn() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while !seen().await {
            if Instant::now() > deadline {
                let cluster = self
                    .cluster()
                    .await
                    .map_or_else(|error| error.to_string(), |cluster| cluster.to_string());
                return Err(whom.complain(&format!("{missing} after {START_SECONDS_MAX} s; {cluster}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// Connects without a check of the certificate; the connection is driven by a task of the current runtime.
///
/// # Errors
/// The server does not answer or refuses.
pub async fn connect(connection_string: &str) -> Result<Client> {
    let mut builder = openssl::ssl::SslConnector::builder(openssl::ssl::SslMethod::tls_client())?;
    builder.set_verify(openssl::ssl::SslVerifyMode::NONE);
    let mut tls = postgres_openssl::MakeTlsConnector::new(builder.build());
    tls.set_callback(|tls, _| {
        tls.set_verify_hostname(false);
        Ok(())
    });
    let (client, connection) = tokio_postgres::connect(connection_string, tls).await?;
    // Its end is the client's end, which is where it is noticed.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
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

/// 64 letters and digits, as the operator makes them.
fn password() -> Result<String> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut bytes = [0; 64];
    openssl::rand::rand_bytes(&mut bytes).context("reading random bytes")?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect())
}

fn places(setup: &Setup, instance: &Instance, options: &SourceOptions, has_ca: bool) -> Result<Vec<Place>> {
    (0..MEMBERS)
        .map(|number| {
            let base = format!("source/{number}");
            let home = instance.subdirectory(setup, &base)?;
            for directory in ["pgdata/pgroot/pg_log", "socket", "tls"] {
                instance.subdirectory(setup, &format!("{base}/{directory}"))?;
            }
            let (name, host) = (format!("{}-{number}", options.cluster), FIRST_HOST + number);
            Ok(Place::new(
                &name,
                instance.address(host),
                instance.paper_address(host),
                &home,
                has_ca,
            ))
        })
        .collect()
}

/// Writes a file of a member that only it can read.
fn write(setup: &Setup, file: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let open = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(file);
    open.and_then(|mut open| open.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", file.display()))?;
    setup.user.own(file)
}
