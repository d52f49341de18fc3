//! The admin console of PgBouncer: a virtual database `pgbouncer` that accepts a few commands by
//! the simple query protocol (pgbouncer.org, *Usage*, *Admin console*).
//!
//! The columns of its tables differ between versions, so they are read by their names.

use std::{collections::BTreeMap, time::Duration};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// PAUSE is in force: new transactions wait.
    pub paused: bool,
    /// Its server connections; a pause is complete when there are none.
    pub servers: Vec<ServerConnection>,
}

/// A connection to the server behind the pooler: a row of SHOW SERVERS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConnection {
    /// What it does: `new` while it logs in, `active`, `idle` and others.
    pub state: String,
    /// Tells it from every other connection of the same process.
    pub identity: String,
    /// Process id of its backend, once the server has told it.
    pub backend: Option<i32>,
}

impl ServerConnection {
    /// The server has accepted its login. The two other states, active_cancel and being_canceled,
    /// carry a cancel request.
    pub fn logged_in(&self) -> bool {
        ["active", "idle", "used", "tested"].contains(&self.state.as_str())
    }

    /// It is logging in.
    pub fn logs_in(&self) -> bool {
        self.state == "new"
    }
}

/// The clients and servers of one database and role: a row of SHOW POOLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The database of its clients.
    pub database: String,
    /// Their role.
    pub user: String,
    /// Number of clients that wait for a server connection.
    pub waiting: u64,
    /// How long the first of them has waited, in seconds.
    pub waited_seconds: u64,
    /// Number of server connections that have logged in.
    pub servers: u64,
}

/// A row by the names of its columns.
type Row = BTreeMap<String, String>;

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
        let opened = log_in(connection, password, DATABASE, application).await;
        opened.map(Self).map_err(classified)
    }

    /// True when the session has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Reads whether it is paused, and its server connections.
    pub async fn state(&self) -> Result<State> {
        let (paused, servers) = futures::try_join!(self.paused(), self.servers())?;
        Ok(State { paused, servers })
    }

    /// Reads its server connections.
    pub async fn servers(&self) -> Result<Vec<ServerConnection>> {
        let rows = self.0.rows("show servers").await?;
        Ok(rows.iter().map(server_connection).collect())
    }

    /// Reads its pools, without the one of the console itself.
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        let rows = self.0.rows("show pools").await?;
        let pools = rows.iter().map(pool);
        Ok(pools.filter(|pool| pool.database != DATABASE).collect())
    }

    /// Reads a setting; None where this version has none of this name.
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        let rows = self.0.rows("show config").await?;
        let found = rows.iter().find(|row| text(row, "key") == name);
        Ok(found.map(|row| text(row, "value").to_owned()))
    }

    async fn paused(&self) -> Result<bool> {
        match self.0.simple_query("show state").await {
            Ok(messages) => Ok(rows(messages)
                .iter()
                .any(|row| text(row, "key") == "paused" && text(row, "value") == "yes")),
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
    ///
    /// A pooler that was sent SIGTERM in the pause refuses: since version 1.23 it waits for its
    /// clients to leave (admin_cmd_resume in src/admin.c), and they wait for it until its pod's
    /// grace period ends. They lose their connections in any case, so it is shut down at once, and
    /// they connect to another pod.
    pub async fn resume(&self) -> Result<()> {
        let Err(error) = self.0.batch_execute("resume").await else {
            return Ok(());
        };
        let message = error.as_db_error().map(|error| error.message());
        match message.map(Unresumed::of) {
            Some(Unresumed::NotPaused) => Ok(()),
            Some(Unresumed::ShuttingDown) => {
                // It ends before it answers.
                let _ = self.0.batch_execute("shutdown").await;
                Ok(())
            }
            Some(Unresumed::Failed) | None => Err(error).context("resuming a pooler"),
        }
    }
}

/// Why PgBouncer refuses RESUME, by its message (admin_cmd_resume in src/admin.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unresumed {
    /// There is nothing to resume.
    NotPaused,
    /// It ends, and resumes no more.
    ShuttingDown,
    /// Anything else.
    Failed,
}

impl Unresumed {
    fn of(message: &str) -> Self {
        if message.contains("not paused") {
            Self::NotPaused
        } else if message.contains("shutting down") {
            Self::ShuttingDown
        } else {
            Self::Failed
        }
    }
}

/// Logs in to a database behind the pooler at the address of one pod, and asks the server there for
/// something: PgBouncer may complete a login without a server, by what it remembers of one.
///
/// # Errors
/// As [`crate::postgres::connect`]; PgBouncer passes on why its own login at the server failed.
pub async fn log_in_through(
    connection: &Connection,
    password: SecretString,
    database: &str,
    application: &str,
) -> Result<()> {
    let session = log_in(connection, password, database, application).await?;
    session.batch_execute("select 1").await?;
    Ok(())
}

/// A session without options and without a check of the certificate, see [`Console::open`].
async fn log_in(
    connection: &Connection,
    password: SecretString,
    database: &str,
    application: &str,
) -> Result<Session> {
    let credentials = Credentials {
        password,
        ca: None,
        client: None,
    };
    open(connection, &credentials, database, application, None).await
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
    async fn rows(&self, command: &str) -> Result<Vec<Row>> {
        let messages = self.simple_query(command).await;
        messages
            .map(rows)
            .context(format!("asking a pooler: {command}"))
    }
}

fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<Row> {
    let texts = |row: tokio_postgres::SimpleQueryRow| {
        let columns = row.columns().iter().enumerate();
        columns
            .map(|(index, column)| {
                let value = row.get(index).unwrap_or_default();
                (column.name().to_owned(), value.to_owned())
            })
            .collect()
    };
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(texts(row)),
        _ => None,
    });
    rows.collect()
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).map_or("", String::as_str)
}

/// A number; 0 where this version has no such column.
fn number(row: &Row, column: &str) -> u64 {
    text(row, column).parse().unwrap_or_default()
}

fn server_connection(row: &Row) -> ServerConnection {
    ServerConnection {
        state: text(row, "state").to_owned(),
        // The address of its structure, which is used again later, and when it connected.
        identity: format!("{} {}", text(row, "ptr"), text(row, "connect_time")),
        backend: text(row, "remote_pid").parse().ok().filter(|pid| *pid > 0),
    }
}

fn pool(row: &Row) -> Pool {
    let servers = ["sv_active", "sv_idle", "sv_used", "sv_tested"];
    Pool {
        database: text(row, "database").to_owned(),
        user: text(row, "user").to_owned(),
        waiting: number(row, "cl_waiting"),
        waited_seconds: number(row, "maxwait"),
        servers: servers.iter().map(|column| number(row, column)).sum(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooler_that_is_shutting_down_is_told_apart() {
        for (message, expected) in [
            ("pooler is not paused/suspended", Unresumed::NotPaused),
            ("pooler is shutting down", Unresumed::ShuttingDown),
            ("admin access needed", Unresumed::Failed),
        ] {
            assert_eq!(Unresumed::of(message), expected);
        }
    }
}
