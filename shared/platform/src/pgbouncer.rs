//! The admin console of PgBouncer: a virtual database `pgbouncer` that accepts a few commands by
//! the simple query protocol (pgbouncer.org, *Usage*, *Admin console*).

use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::{SimpleQueryMessage, error::DbError};

use crate::postgres::{Credentials, Session, open};
use job::{
    config::Connection,
    error::{Context as _, Error, ErrorKind, Result},
};

/// The virtual database.
const DATABASE: &str = "pgbouncer";
/// How long to wait for the answer to PAUSE. The pause stays in force when it takes longer, and
/// after its session has ended.
const PAUSE_ANSWER: Duration = Duration::from_millis(500);

/// Whether a PgBouncer is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// PAUSE is in force: new transactions wait.
    pub paused: bool,
    /// Number of server connections; a pause is complete when there are none.
    pub servers: u64,
}

/// An open session at the console.
pub struct Console(Session);

impl Console {
    /// Logs in at the address of one pod. The certificate is not checked: the pod has signed it
    /// itself, and it names no address.
    ///
    /// # Errors
    /// As [`crate::postgres::connect`]; Config when the pooler does not accept the login.
    pub async fn open(
        connection: &Connection,
        password: SecretString,
        application: &str,
    ) -> Result<Self> {
        let credentials = Credentials {
            password,
            ca: None,
            client: None,
        };
        let opened = open(connection, &credentials, DATABASE, application, None).await;
        opened.map(Self).map_err(classified)
    }

    /// True when the session has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Reads whether it is paused.
    pub async fn state(&self) -> Result<State> {
        let (paused, servers) = futures::try_join!(self.paused(), self.0.rows("show servers"))?;
        Ok(State {
            paused,
            servers: servers.len() as u64,
        })
    }

    async fn paused(&self) -> Result<bool> {
        match self.0.simple_query("show state").await {
            Ok(messages) => Ok(rows(messages).iter().any(|row| {
                row.first() == Some(&"paused".into()) && row.get(1) == Some(&"yes".into())
            })),
            Err(error) if error.as_db_error().is_some_and(unknown_command) => {
                self.paused_by_refusal().await
            }
            Err(error) => Err(error).context("asking a pooler for its state"),
        }
    }

    /// For PgBouncer before 1.19, which has no SHOW STATE. KILL of the console's own database is
    /// always refused and changes nothing; the error names the pause if there is one, because that
    /// is checked first (src/admin.c, admin_cmd_kill).
    async fn paused_by_refusal(&self) -> Result<bool> {
        let refusal = self.0.simple_query("kill pgbouncer").await.err();
        let message = refusal
            .as_ref()
            .and_then(|error| error.as_db_error())
            .map(|error| error.message().to_owned());
        match message {
            Some(text) if text.contains("already suspended/paused") => Ok(true),
            Some(text) if text.contains("cannot kill admin db") => Ok(false),
            _ => Err(Error::transient(
                "a pooler does not report whether it is paused",
            )),
        }
    }

    /// Pauses: new transactions wait. Returns whether the running ones have ended within 500 ms;
    /// the pause stays in force if they have not.
    pub async fn pause(&self) -> Result<bool> {
        match tokio::time::timeout(PAUSE_ANSWER, self.0.batch_execute("pause")).await {
            Err(_) => Ok(false),
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if contains(&error, "already suspended/paused") => Ok(false),
            Ok(Err(error)) => Err(error).context("pausing a pooler"),
        }
    }

    /// Resumes client traffic. A pooler that is not paused stays as it is.
    pub async fn resume(&self) -> Result<()> {
        match self.0.batch_execute("resume").await {
            Err(error) if !contains(&error, "not paused") => {
                Err(error).context("resuming a pooler")
            }
            _ => Ok(()),
        }
    }
}

/// PgBouncer refuses a login with 08P01 (protocol violation), whatever the reason.
fn classified(error: Error) -> Error {
    if error.to_string().contains("authentication failed") {
        error.of_kind(ErrorKind::Config).hint(
            "the mounted Secret does not hold the password of the poolers' console; check \
             POOLER_USER, or set ROUTE=config",
        )
    } else {
        error
    }
}

impl Session {
    async fn rows(&self, command: &str) -> Result<Vec<Vec<String>>> {
        let messages = self.simple_query(command).await;
        messages
            .map(rows)
            .context(format!("asking a pooler: {command}"))
    }
}

fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<Vec<String>> {
    let texts = |row: tokio_postgres::SimpleQueryRow| {
        let columns = 0..row.len();
        columns
            .map(|column| row.get(column).unwrap_or_default().to_owned())
            .collect()
    };
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(texts(row)),
        _ => None,
    });
    rows.collect()
}

fn unknown_command(error: &DbError) -> bool {
    // ERROR: unsupported command / invalid command 'show state', use SHOW HELP;
    error.message().contains("command")
}

fn contains(error: &tokio_postgres::Error, text: &str) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| error.message().contains(text))
}
