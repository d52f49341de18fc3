//! The admin console of a PgBouncer: a virtual database `pgbouncer` that knows a few commands and
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
/// How long a PAUSE is waited for; it stays in force when it takes longer, and also when its
/// session ends.
const PAUSE_ANSWER: Duration = Duration::from_millis(500);

/// Whether clients are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// PAUSE was told, and holds back every new transaction.
    pub paused: bool,
    /// Server connections that exist; a PAUSE is complete when there are none.
    pub servers: u64,
}

/// An open console.
pub struct Console(Session);

impl Console {
    /// Logs in at one pod's own address. Its certificate is made by itself and names no address, so
    /// it is not checked.
    ///
    /// # Errors
    /// As [`super::connect`].
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
        opened.map(Self).map_err(refused)
    }

    /// True when the session has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Whether clients are let through.
    ///
    /// # Errors
    /// The console's.
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

    /// Before 1.19 there is no SHOW STATE. KILL of the console's own database is refused in any
    /// case and changes nothing, and the pause is the first reason for it that is looked at
    /// (src/admin.c, admin_cmd_kill).
    async fn paused_by_refusal(&self) -> Result<bool> {
        let refusal = self.0.simple_query("kill pgbouncer").await.err();
        let said = refusal
            .as_ref()
            .and_then(|error| error.as_db_error())
            .map(|error| error.message().to_owned());
        match said {
            Some(text) if text.contains("already suspended/paused") => Ok(true),
            Some(text) if text.contains("cannot kill admin db") => Ok(false),
            _ => Err(Error::transient(
                "a pooler does not say whether it is paused",
            )),
        }
    }

    /// Holds back new transactions; returns whether all that ran have ended by now. It stays in
    /// force also when not.
    ///
    /// # Errors
    /// The console's.
    pub async fn pause(&self) -> Result<bool> {
        match tokio::time::timeout(PAUSE_ANSWER, self.0.batch_execute("pause")).await {
            Err(_) => Ok(false),
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if says(&error, "already suspended/paused") => Ok(false),
            Ok(Err(error)) => Err(error).context("pausing a pooler"),
        }
    }

    /// Lets clients through again; nothing happens when they are let through already.
    ///
    /// # Errors
    /// The console's.
    pub async fn resume(&self) -> Result<()> {
        match self.0.batch_execute("resume").await {
            Err(error) if !says(&error, "not paused") => Err(error).context("resuming a pooler"),
            _ => Ok(()),
        }
    }
}

/// PgBouncer refuses a login with 08P01 (protocol violation), whatever the reason.
fn refused(error: Error) -> Error {
    match error.to_string().contains("authentication failed") {
        true => error.of_kind(ErrorKind::Config).hint(
            "the mounted Secret does not hold the password of the poolers' console; check \
                POOLER_USER, or set ROUTE=config",
        ),
        false => error,
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

fn says(error: &tokio_postgres::Error, words: &str) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| error.message().contains(words))
}
