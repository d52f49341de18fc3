//! The example application: six Deployments as real objects, run by a small controller. Their
//! clients write rows into a ledger table and record the outcome of each write.
//!
//! Nothing here knows about a migration: pods read the ConfigMap when they start and keep the
//! values; clients reconnect on their own; the controller follows `spec.replicas`.

mod deployments;
pub mod login;
mod objects;
mod pod;
pub mod variables;
pub mod writer;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use tokio::{
    sync::{OwnedMutexGuard, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    ledger::{Attempt, Key},
    service::Services,
    session::Session,
};
use login::Login;
use writer::{Identity, Log, Writer};

const PART_OF: &str = "mastodon";
const POLL: Duration = Duration::from_millis(50);
/// How long a client may wait for a pending answer before it is aborted.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const FIRST_SESSION_LIMIT: Duration = Duration::from_secs(60);

/// The Deployments of the example with their replicas.
pub const DEPLOYMENTS: [(&str, u32); 6] = [
    ("mastodon-web", 2),
    ("mastodon-sidekiq-default", 1),
    ("mastodon-sidekiq-federation", 1),
    ("mastodon-sidekiq-background", 1),
    ("mastodon-sidekiq-scheduler", 1),
    ("mastodon-streaming", 1),
];

/// The zero of a run's time axis: all instants are durations since it.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(Instant);

impl Epoch {
    /// Now.
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// The time elapsed since the epoch.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// An instant as a duration since the epoch; zero if it is earlier.
    pub fn since_epoch(self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.0)
    }
}

/// Configuration of the application.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of all objects.
    pub namespace: String,
    /// Name of the ConfigMap that the pods' `envFrom` refers to.
    pub config_map: String,
    /// Its content: DB_HOST, REPLICA_DB_HOST, DB_PORT, DB_NAME, DB_USER.
    pub config: Vec<(String, String)>,
    /// The Secret whose key `password` becomes DB_PASS.
    pub owner_secret: String,
    /// Name and replicas of each Deployment.
    pub deployments: Vec<(String, u32)>,
    /// Clients per pod; each does about twenty writes per second.
    pub writers_per_pod: u32,
}

impl Settings {
    /// The example application on the Zalando cluster `mastodon-postgresql`.
    pub fn mastodon(namespace: &str) -> Self {
        let config = [
            ("DB_HOST", "mastodon-postgresql-pooler"),
            ("REPLICA_DB_HOST", "mastodon-postgresql-repl"),
            ("DB_PORT", "5432"),
            ("DB_NAME", "mastodon"),
            ("DB_USER", "mastodon"),
        ];
        Self {
            namespace: namespace.into(),
            config_map: "mastodon-database".into(),
            config: config.map(|(key, value)| (key.into(), value.into())).into(),
            owner_secret: "mastodon.mastodon-postgresql.credentials.postgresql.acid.zalan.do"
                .into(),
            deployments: DEPLOYMENTS
                .map(|(name, replicas)| (name.into(), replicas))
                .into(),
            writers_per_pod: 1,
        }
    }
}

/// The running application; its pods end when it is dropped.
pub struct Application {
    client: Client,
    settings: Settings,
    services: Arc<Services>,
    log: Log,
    epoch: Epoch,
    controller: JoinHandle<()>,
    over: watch::Sender<bool>,
    unmanaged: Vec<Writer>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

impl Application {
    /// Applies the ConfigMap and the Deployments, creates the ledger table, and starts the
    /// controller.
    ///
    /// # Errors
    /// The API server refuses an object, or the database cannot be reached with the settings given.
    pub async fn deploy(
        client: Client,
        services: Arc<Services>,
        settings: Settings,
        epoch: Epoch,
    ) -> Result<Self> {
        objects::apply(&client, &settings).await?;
        let log = Log::default();
        let (over, is_over) = watch::channel(false);
        let shared = deployments::Shared {
            client: client.clone(),
            namespace: settings.namespace.clone(),
            services: Arc::clone(&services),
            log: Arc::clone(&log),
            epoch,
            writers_per_pod: settings.writers_per_pod,
            over: is_over,
        };
        let controller = tokio::spawn(deployments::run(shared));
        let this = Self {
            client,
            settings,
            services,
            log,
            epoch,
            controller,
            over,
            unmanaged: Vec::new(),
        };
        make_ledger(&*this.first_session().await?).await?;
        Ok(this)
    }

    /// A pooler whose first login failed retries after seconds (server_login_retry) and holds its
    /// clients back until then.
    async fn first_session(&self) -> Result<Session> {
        let login = self.login().await?;
        let deadline = Instant::now() + FIRST_SESSION_LIMIT;
        loop {
            match login.connect(&self.services, "migrate").await {
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("connecting as the application");
                }
                Err(_) => sleep(POLL).await,
                connected => return connected,
            }
        }
    }

    /// Waits until every Deployment has its replicas ready.
    ///
    /// # Errors
    /// The Deployments are not ready within `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let all_ready = async {
            for (name, _) in &self.settings.deployments {
                while !objects::is_ready(&api.get(name).await?) {
                    sleep(POLL).await;
                }
            }
            anyhow::Ok(())
        };
        timeout(limit, all_ready)
            .await
            .context("waiting for the application's pods")?
    }

    /// Starts a client that belongs to no Deployment and stays connected to one Service by name:
    /// the unmanaged writer.
    ///
    /// # Errors
    /// The application's login cannot be read.
    pub async fn start_unmanaged_writer(&mut self, client: &str, host: &str) -> Result<()> {
        let login = Login {
            host: host.into(),
            ..self.login().await?
        };
        self.unmanaged.push(Writer::start(
            Identity::new(client),
            login,
            Arc::clone(&self.services),
            Arc::clone(&self.log),
            self.epoch,
        ));
        Ok(())
    }

    /// Keeps the unmanaged writers from writing while the guards live.
    pub async fn hold_unmanaged_writers(&self) -> Vec<OwnedMutexGuard<()>> {
        futures::future::join_all(self.unmanaged.iter().map(Writer::hold)).await
    }

    /// The login that a pod would use if it started now.
    ///
    /// # Errors
    /// The ConfigMap or the Secret cannot be read or lacks a key.
    pub async fn login(&self) -> Result<Login> {
        let container = serde_json::from_value(objects::container("any", &self.settings))?;
        variables::login(
            &variables::read(&self.client, &self.settings.namespace, &container).await?,
        )
    }

    /// The outcomes of all writes so far.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until at least `count` more writes are acknowledged.
    ///
    /// # Errors
    /// The writes are not acknowledged within `limit`; the error holds the last failure.
    pub async fn acknowledges(&self, count: usize, limit: Duration) -> Result<()> {
        use crate::ledger::Outcome;
        let acknowledged = || {
            self.attempts()
                .iter()
                .filter(|a| matches!(a.outcome, Outcome::Acknowledged(_)))
                .count()
        };
        let wanted = acknowledged() + count;
        let reached = async {
            while acknowledged() < wanted {
                sleep(POLL).await;
            }
        };
        timeout(limit, reached).await.map_err(|_| {
            let last = self
                .attempts()
                .into_iter()
                .rev()
                .find(|a| !matches!(a.outcome, Outcome::Acknowledged(_)));
            anyhow::anyhow!(
                "{count} more writes were not acknowledged within {limit:?}; the last \
                failure was {last:?}"
            )
        })
    }

    /// Ends all clients and returns all outcomes; no client writes after that.
    ///
    /// # Errors
    /// A client is still writing.
    pub async fn stop(&mut self) -> Result<Vec<Attempt>> {
        // Dropping the controller drops the pods' senders, which ends the pods in order.
        self.controller.abort();
        self.over.send_replace(true);
        futures::future::join_all(
            self.unmanaged
                .drain(..)
                .map(|writer| writer.stop(STOP_LIMIT)),
        )
        .await;
        let ended = async {
            // Every client that may still write holds a reference to the log.
            while Arc::strong_count(&self.log) > 1 {
                sleep(POLL).await;
            }
        };
        timeout(pod::GRACE * 2, ended)
            .await
            .context("a client did not end")?;
        Ok(self.attempts())
    }
}

/// No unique constraint on client and sequence, so that a duplicated row is visible.
async fn make_ledger(session: &tokio_postgres::Client) -> Result<()> {
    let ledger = "create table if not exists public.ledger (
            id bigserial primary key,
            client text not null,
            sequence bigint not null,
            payload text not null,
            written_at timestamptz not null default clock_timestamp());
        create index if not exists ledger_by_client on public.ledger (client, sequence)";
    session
        .batch_execute(ledger)
        .await
        .context("making the ledger table")
}

/// The ledger's rows on one server.
///
/// # Errors
/// The table cannot be read.
pub async fn rows(session: &tokio_postgres::Client) -> Result<Vec<Key>> {
    let rows = session
        .query("select client, sequence from public.ledger", &[])
        .await
        .context("reading the ledger table")?;
    rows.iter()
        .map(|row| {
            Ok(Key {
                client: row.try_get(0)?,
                sequence: u64::try_from(row.try_get::<_, i64>(1)?)?,
            })
        })
        .collect()
}
