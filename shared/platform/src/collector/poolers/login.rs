//! A login through a pooler: the way to learn whether one without clients reaches its server, and
//! why one does not.

use std::{net::SocketAddr, time::Duration};

use job::{config::Connection, error::Result};
use protocol::failure::Failure;
use tokio::{
    task::JoinHandle,
    time::{Instant, error::Elapsed, timeout},
};

use super::super::endpoints::Login;
use crate::{
    pgbouncer,
    postgres::{self, read_secret},
};

/// How long an observation waits for the login while no client of the pooler waits: longer than a
/// login takes.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// Longest time of one login. A pooler that cannot connect keeps a client waiting without a word,
/// and tells a later one why.
const LOGIN_MAX: Duration = Duration::from_secs(2);
/// Time between the starts of two logins.
const INTERVAL: Duration = Duration::from_secs(1);

/// A login that is tried beside the observations.
pub(super) struct LoginThrough {
    at: Connection,
    login: Login,
    running: Option<Running>,
    started: Option<Instant>,
    refusal: Option<Failure>,
}

/// A login under way.
struct Running {
    database: String,
    task: JoinHandle<Outcome>,
}

/// The outcome of a login; an error of the timer where there was no answer in time.
type Outcome = std::result::Result<Result<()>, Elapsed>;

impl LoginThrough {
    /// Nothing is tried yet.
    pub(super) fn new(at: Connection, login: Login) -> Self {
        Self {
            at,
            login,
            running: None,
            started: None,
            refusal: None,
        }
    }

    /// The pooler is at this address.
    pub(super) fn set_address(&mut self, address: Option<SocketAddr>) {
        if let Some(address) = address {
            (self.at.hostaddr, self.at.port) = (Some(address.ip()), address.port());
        }
    }

    /// The database of the login that is under way: it counts as one of the pooler's clients.
    pub(super) fn running(&self) -> Option<&str> {
        let running = self.running.as_ref();
        running.map(|running| running.database.as_str())
    }

    /// Whether a login to this database through the pooler has succeeded just now. With `waited`
    /// its answer is waited for, for [`ANSWER_MAX`] at most; without, a later call has it.
    pub(super) async fn succeeds(&mut self, database: &str, waited: bool) -> bool {
        let due = self
            .started
            .is_none_or(|started| started.elapsed() >= INTERVAL);
        if self.running.is_none() && due {
            self.started = Some(Instant::now());
            let attempt = log_in(self.at.clone(), self.login, database.to_owned());
            self.running = Some(Running {
                database: database.to_owned(),
                task: tokio::spawn(timeout(LOGIN_MAX, attempt)),
            });
        }
        let Some(running) = &mut self.running else {
            return false;
        };
        let patience = if waited { ANSWER_MAX } else { Duration::ZERO };
        let Ok(ended) = timeout(patience, &mut running.task).await else {
            return false;
        };
        self.running = None;
        match ended {
            Ok(Ok(Ok(()))) => self.refusal = None,
            Ok(Ok(Err(error))) => self.refusal = Some(error.into()),
            // What an earlier login was told says more.
            Ok(Err(_)) | Err(_) => drop(self.refusal.get_or_insert_with(no_answer)),
        }
        self.refusal.is_none()
    }

    /// Why the last login failed; None where none has.
    pub(super) fn refusal(&self) -> Option<Failure> {
        self.refusal.clone()
    }
}

fn no_answer() -> Failure {
    Failure::transient(format!("no answer within {} s", LOGIN_MAX.as_secs()))
}

async fn log_in(at: Connection, login: Login, database: String) -> Result<()> {
    let password = read_secret(&at.password_file)?;
    let application = postgres::application_name(login.program);
    pgbouncer::log_in_through(&at, password, &database, &application).await
}
