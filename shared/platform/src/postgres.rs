//! PostgreSQL: sessions with timeouts and TLS, the identity of a server, and the queries to the
//! source ([`source`]) and to the target ([`target`]).
//!
//! A query returns the error of the server, classified by SQLSTATE ([`job::sqlstate`]).

mod clear_text;
mod credentials;
pub mod replication;
pub mod source;
pub mod target;
mod tls;

use std::time::Duration;

use postgres_openssl::MakeTlsConnector;
use protocol::wal::{Identity, Lsn, SystemIdentifier, Timeline};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::types::PgLsn;

use clear_text::NoClearText;
pub use credentials::Credentials;
use job::{
    config::{Connection, SslMode},
    error::{Context as _, Error, Result},
};
pub use source::{Source, application_name};
pub use target::Target;
pub use tls::ClientCertificate;

/// Longest time for TCP; TCP, TLS and login together get twice as long. A server that takes longer
/// is not ready for a cutover either.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements are short; one that waits for a lock or a failed disk must not prolong the downtime.
const STATEMENT_TIMEOUT_MS: u32 = 30_000;
const LOCK_TIMEOUT_MS: u32 = 5_000;

/// An open session; dropping it closes the connection.
pub struct Session {
    client: tokio_postgres::Client,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Session {
    type Target = tokio_postgres::Client;
    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

/// Opens a session to `database` with the files that the connection names; `application` becomes
/// application_name. Statements end after 30 s, waits for a lock after 5 s.
///
/// # Errors
/// Config for a wrong password, file, certificate or pg_hba; Transient for a server that does not
/// answer.
pub async fn connect(
    connection: &Connection,
    database: &str,
    application: &str,
) -> Result<Session> {
    connect_with(
        connection,
        &Credentials::of(connection)?,
        database,
        application,
    )
    .await
}

/// As [`connect`], with credentials in memory instead of in files, for steps that read them from
/// the Kubernetes API.
///
/// # Errors
/// As [`connect`]; Config when a client certificate and its key do not belong together.
pub async fn connect_with(
    connection: &Connection,
    credentials: &Credentials,
    database: &str,
    application: &str,
) -> Result<Session> {
    open(
        connection,
        credentials,
        database,
        application,
        Some(&session_options()),
    )
    .await
}

/// The options with which every session begins.
fn session_options() -> String {
    format!(
        "-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} \
         -c search_path=pg_catalog"
    )
}

pub(crate) async fn open(
    connection: &Connection,
    credentials: &Credentials,
    database: &str,
    application: &str,
    options: Option<&str>,
) -> Result<Session> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(connection.host.as_str())
        .port(connection.port)
        .user(connection.user.as_str())
        .password(credentials.password.expose_secret())
        .dbname(database)
        .application_name(application)
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(CONNECT_TIMEOUT * 2)
        .keepalives_idle(CONNECT_TIMEOUT);
    if let Some(options) = options {
        config.options(options);
    }
    if let Some(address) = connection.hostaddr {
        config.hostaddr(address);
    }
    let mut tls = MakeTlsConnector::new(tls::connector(connection.sslmode, credentials)?);
    let check_name = connection.sslmode == SslMode::VerifyFull;
    tls.set_callback(move |session, _| {
        session.set_verify_hostname(check_name);
        Ok(())
    });
    let doing = format!(
        "connecting to {} as {}",
        endpoint(connection),
        connection.user
    );
    // The library's connect_timeout covers TCP only; this one also covers a server that accepts the
    // connection and sends nothing.
    let (client, task) =
        tokio::time::timeout(CONNECT_TIMEOUT * 2, config.connect(NoClearText(tls)))
            .await
            .map_err(|_| Error::transient("no answer within 10 s"))
            .and_then(|answer| answer.map_err(not_connected))
            .context(doing)?;
    let task = tokio::spawn(async move {
        if let Err(error) = task.await {
            log::debug!("a session ended: {error}");
        }
    });
    Ok(Session { client, task })
}

fn not_connected(error: tokio_postgres::Error) -> Error {
    if clear_text::refused(&error) {
        return Error::config("the server asks for the password in clear text, and gets none")
            .hint(
                "use md5 or scram-sha-256 in the line of pg_hba that decides on this login; if the \
             server has such a line, find out which server answers there",
            );
    }
    Error::from(error)
}

/// Formats a connection as `host:port`, with the address when there is one.
pub fn endpoint(connection: &Connection) -> String {
    match connection.hostaddr {
        Some(address) => format!("{}:{} ({address})", connection.host, connection.port),
        None => format!("{}:{}", connection.host, connection.port),
    }
}

/// Reads a mounted Secret, without a line end at its end.
///
/// # Errors
/// Config when it is missing or empty; the content is never part of the message.
pub fn read_secret(file: &std::path::Path) -> Result<SecretString> {
    let text = std::fs::read_to_string(file).map_err(|e| credentials::unreadable(file, e))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(Error::config(format!("{} is empty", file.display())));
    }
    Ok(text.into())
}

/// Converts a position of the client library.
pub fn lsn(position: PgLsn) -> Lsn {
    Lsn(position.into())
}

/// Reads the identity of a server. On a standby the timeline is that of the WAL received, or,
/// without a WAL receiver, of the latest checkpoint; on a primary it is that of the WAL written.
pub async fn identity(session: &Session) -> Result<Identity> {
    let row = session
        .query_one(
            "select system_identifier,
                    case when pg_is_in_recovery() then coalesce(
                           (select received_tli from pg_stat_wal_receiver where pid is not null),
                           (select timeline_id from pg_control_checkpoint()))
                    else (
                      -- The timeline is the first eight digits of a WAL file's name.
                      'x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
                    )::bit(32)::int
                    end,
                    current_setting('server_version_num')::int
               from pg_control_system()",
            &[],
        )
        .await
        .context("reading the identity of the server")?;
    Ok(Identity {
        system_identifier: SystemIdentifier(row.get::<_, i64>(0) as u64),
        timeline: Timeline(row.get::<_, i32>(1) as u32),
        version: row.get::<_, i32>(2) as u32,
    })
}

/// Returns true while the server is a standby.
pub async fn in_recovery(session: &Session) -> Result<bool> {
    Ok(session
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .context("asking whether the server is a standby")?
        .get(0))
}
