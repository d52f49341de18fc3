//! The pods of the source's old poolers and their consoles.

mod login;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use job::{
    config::{Connection, NonEmptyString},
    error::Result,
};
use protocol::snapshot::{
    PoolerPodState, PoolerState, Reachability,
    poolers::{Traffic, WaitingPool},
};

use tokio::time::{Instant, sleep};

use super::{
    endpoints,
    session::{Line, limited},
};
use crate::{
    kubernetes::poolers as pooler_pods,
    pgbouncer::{Console, Pool, ServerConnection, State},
};
use login::LoginThrough;

/// How long PAUSE waits for logins at the server: some times as long as one takes.
const LOGIN_MAX: Duration = Duration::from_millis(100);
/// Pause between two questions for them.
const LOGIN_POLL: Duration = Duration::from_millis(2);

/// What a console is asked beside whether it is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    /// Its settings that a check judges.
    pub settings: bool,
    /// Whether the pooler reaches the server behind it; the database is that of a login through it.
    pub traffic: Option<&'a NonEmptyString>,
}

/// What a console answered.
pub(super) struct Answer {
    state: PoolerState,
    servers: Vec<ServerConnection>,
    query_wait_seconds: Option<f64>,
    traffic: Option<Traffic>,
}

impl Answer {
    /// As part of a snapshot.
    pub(super) fn of(self, pod: String) -> PoolerPodState {
        let logins = self.servers.iter().filter(|one| one.logs_in()).count();
        let backends = self.servers.iter().filter_map(|one| one.backend);
        PoolerPodState {
            logins: logins as u64,
            backends: backends.collect(),
            query_wait_seconds: self.query_wait_seconds,
            traffic: self.traffic,
            ..PoolerPodState::new(pod, Reachability::Up(self.state))
        }
    }
}

/// Consoles by pod, opened beforehand.
pub struct Poolers {
    /// User, password and TLS; the host is each pod's own.
    at: Connection,
    login: endpoints::Login,
    pods: BTreeMap<String, Pooler>,
}

/// A pod of a pooler.
struct Pooler {
    console: Line<Console>,
    /// Server connections from before it was resumed, as last seen.
    before: BTreeSet<String>,
    login: LoginThrough,
}

impl Poolers {
    /// Nothing is opened yet.
    pub fn new(at: Connection, login: endpoints::Login) -> Self {
        Self {
            at,
            login,
            pods: BTreeMap::new(),
        }
    }

    /// Asks every pod that runs for its state, at the same time.
    ///
    /// A pod that is being deleted counts while its PgBouncer answers: it waits for its clients to
    /// leave, and they wait for RESUME. It accepts no new connection then, so the session from
    /// before is kept (docs/operators/zalando.md#connection-poolers).
    pub(super) async fn observe(
        &mut self,
        pods: &[pooler_pods::Pooler],
        asked: Asked<'_>,
    ) -> Vec<(String, Result<Answer>)> {
        let none: NonEmptyString = "pgbouncer".parse().expect("a name that is not empty");
        let running = || pods.iter().filter(|pod| pod.runs);
        self.pods
            .retain(|name, _| running().any(|found| found.pod.name == *name));
        for found in running() {
            let known = self.pods.entry(found.pod.name.clone());
            let pooler = known.or_insert_with(|| Pooler {
                console: Line::new(self.at.clone(), &none, self.login),
                before: BTreeSet::new(),
                login: LoginThrough::new(self.at.clone(), self.login),
            });
            pooler.console.set_address(found.address);
            pooler.login.set_address(found.address);
        }
        let user = self.at.user.as_str();
        let each = self.pods.iter_mut().map(|(pod, pooler)| async move {
            let answer = pooler.ask(asked, user).await;
            if answer.is_err() {
                pooler.console.forget();
            }
            (pod.clone(), answer)
        });
        let mut answers = futures::future::join_all(each).await;
        answers.retain(|(name, answer)| {
            let ends =
                |found: &pooler_pods::Pooler| found.pod.name == *name && found.pod.terminating;
            answer.is_ok() || !running().any(ends)
        });
        answers
    }

    /// Sends PAUSE to every pod that serves clients.
    pub async fn pause(&mut self, observed: &[PoolerPodState]) -> Result<()> {
        let each = self
            .consoles_of(observed, |state| state == PoolerState::Serving)
            .map(|console| async move {
                until_no_login(console.session()?).await?;
                // A console that still waits for the end of a transaction answers nothing else: the
                // next observation opens another.
                if !console.session()?.pause().await? {
                    console.forget();
                }
                Ok(())
            });
        futures::future::join_all(each).await.into_iter().collect()
    }

    /// Sends RESUME to every pod that is paused or pausing.
    pub async fn resume(&mut self, observed: &[PoolerPodState]) -> Result<()> {
        let each = self
            .consoles_of(observed, |state| state != PoolerState::Serving)
            .map(|console| async move { console.session()?.resume().await });
        futures::future::join_all(each).await.into_iter().collect()
    }

    fn consoles_of(
        &mut self,
        observed: &[PoolerPodState],
        in_state: impl Fn(PoolerState) -> bool,
    ) -> impl Iterator<Item = &mut Line<Console>> {
        let matches = move |pod: &str| {
            let states = observed
                .iter()
                .filter(|pooler| pooler.pod == pod)
                .filter_map(|pooler| pooler.state.answer());
            states.copied().any(&in_state)
        };
        self.pods
            .iter_mut()
            .filter(move |(pod, _)| matches(pod))
            .map(|(_, pooler)| &mut pooler.console)
    }
}

impl Pooler {
    async fn ask(&mut self, asked: Asked<'_>, user: &str) -> Result<Answer> {
        let console = self.console.open().await?;
        let pools = async {
            match asked.traffic {
                Some(_) => console.pools().await,
                None => Ok(Vec::new()),
            }
        };
        let settings = async {
            if asked.settings {
                console.setting("query_wait_timeout").await
            } else {
                Ok(None)
            }
        };
        let questions = async { futures::try_join!(console.state(), pools, settings) };
        let (found, pools, query_wait) = limited(questions).await?;
        let (state, servers) = (state_of(&found), found.servers);
        let traffic = match (state, asked.traffic) {
            (PoolerState::Serving, Some(database)) => {
                Some(self.traffic(&servers, &pools, database, user).await?)
            }
            (PoolerState::Serving, None) => None,
            _ => {
                self.before = servers.iter().map(|one| one.identity.clone()).collect();
                None
            }
        };
        Ok(Answer {
            state,
            servers,
            query_wait_seconds: query_wait.and_then(|seconds| seconds.parse().ok()),
            traffic,
        })
    }

    /// Whether the pooler reaches the server behind it. Where that does not show, because it has no
    /// client or because its logins fail, it is tried by a login.
    async fn traffic(
        &mut self,
        servers: &[ServerConnection],
        pools: &[Pool],
        database: &str,
        user: &str,
    ) -> Result<Traffic> {
        let mut traffic = Traffic {
            connected: self.connected(servers),
            waiting: waiting(pools, self.login.running().map(|database| (database, user))),
            refusal: None,
        };
        if traffic.connected {
            return Ok(traffic);
        }
        // The role of the console looks passwords up in this database, so that it may log in there.
        let own = pools.iter().find(|pool| pool.user == user);
        let database = own.map_or(database, |pool| &pool.database);
        let idle = traffic.waiting.is_empty();
        if self.login.succeeds(database, idle).await {
            let servers = limited(self.console.session()?.servers()).await?;
            traffic.connected = self.connected(&servers);
        }
        traffic.refusal = self.login.refusal();
        Ok(traffic)
    }

    fn connected(&self, servers: &[ServerConnection]) -> bool {
        servers
            .iter()
            .any(|one| one.logged_in() && !self.before.contains(&one.identity))
    }
}

/// Waits until the pooler is not logging in at its server, for [`LOGIN_MAX`] at most. PAUSE closes
/// such a connection, and its pool takes that for a failed login: after RESUME its clients wait for
/// server_login_retry (docs/operators/zalando.md#connection-poolers).
async fn until_no_login(console: &Console) -> Result<()> {
    let until = Instant::now() + LOGIN_MAX;
    while Instant::now() < until && console.servers().await?.iter().any(|one| one.logs_in()) {
        sleep(LOGIN_POLL).await;
    }
    Ok(())
}

fn state_of(found: &State) -> PoolerState {
    match (found.paused, found.servers.len()) {
        (false, _) => PoolerState::Serving,
        (true, 0) => PoolerState::Paused,
        (true, busy) => PoolerState::Pausing(busy as u64),
    }
}

/// Pools whose clients wait while they have no server connection. One client of the pool `own`
/// (database and role) is this program's.
fn waiting(pools: &[Pool], own: Option<(&str, &str)>) -> Vec<WaitingPool> {
    let clients = |pool: &Pool| {
        let is_own = own == Some((pool.database.as_str(), pool.user.as_str()));
        pool.waiting.saturating_sub(u64::from(is_own))
    };
    let without = pools
        .iter()
        .filter(|pool| clients(pool) > 0 && pool.servers == 0);
    without
        .map(|pool| WaitingPool {
            database: pool.database.clone(),
            user: pool.user.clone(),
            seconds: pool.waited_seconds,
        })
        .collect()
}
