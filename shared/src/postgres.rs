//! PostgreSQL: connections with limits and TLS, who a server is, and the two sides as types.

mod credentials;
pub mod pgbouncer;
pub mod replication;
pub mod settings;
pub mod source;
pub mod target;
mod tls;

use std::{fmt, time::Duration};

use postgres_openssl::MakeTlsConnector;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
pub use tokio_postgres::types::PgLsn;

use crate::{
    config::{Connection, SslMode},
    error::{Context as _, Error, Result},
};
pub use credentials::Credentials;
pub use source::Source;
pub use target::Target;
pub use tls::ClientCertificate;

/// TCP and login together; a server that takes longer is not ready for a cut either.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of ours is slow; what waits for a lock or a dead disk must not hold the window.
const STATEMENT_TIMEOUT_MS: u32 = 30_000;
const LOCK_TIMEOUT_MS: u32 = 5_000;

/// An open session. Its task ends with it.
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

/// Opens a session to `database` as the connection says; `application` becomes application_name.
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

/// As [`connect`], with the credentials at hand instead of in files (for steps that read them by
/// API).
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
        Some(&limits()),
    )
    .await
}

/// What every session of ours at a server begins with.
fn limits() -> String {
    format!(
        "-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} -c \
         search_path=pg_catalog"
    )
}

async fn open(
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
        .password(&credentials.password)
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
    // connect_timeout of the library covers TCP only; a server that accepts and says nothing is
    // covered here.
    let (client, task) = tokio::time::timeout(CONNECT_TIMEOUT * 2, config.connect(tls))
        .await
        .map_err(|_| Error::transient("no answer within 10 s"))
        .and_then(|answer| answer.map_err(Error::from))
        .context(doing)?;
    let task = tokio::spawn(async move {
        if let Err(error) = task.await {
            log::debug!("a session ended: {error}");
        }
    });
    Ok(Session { client, task })
}

/// `host:port`, with the address when it is given.
pub fn endpoint(connection: &Connection) -> String {
    match connection.hostaddr {
        Some(address) => format!("{}:{} ({address})", connection.host, connection.port),
        None => format!("{}:{}", connection.host, connection.port),
    }
}

/// Reads a mounted Secret, without the line end that editors leave.
///
/// # Errors
/// Config when it is missing or empty; the content is never part of the message.
pub fn read_secret(file: &std::path::Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|e| credentials::unreadable(file, e))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(Error::config(format!("{} is empty", file.display())));
    }
    Ok(text.to_owned())
}

/// pg_control's system identifier: the same on a server and on every physical copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// As text: JSON readers lose digits of numbers beyond 2^53.
impl Serialize for SystemIdentifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// A timeline; a promotion begins the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the WAL that can be recorded. PostgreSQL's own notation, such as `0/5A2E4F8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub PgLsn);

impl Lsn {
    /// Bytes from `earlier` to here; 0 when it is not earlier.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        u64::from(self.0).saturating_sub(u64::from(earlier.0))
    }

    /// The end of the last record before an insert position, as replay positions are counted.
    ///
    /// At the start of a page the insert position already lies behind the page's header (24 bytes,
    /// 40 at the start of a segment: access/xlog_internal.h), while flush and replay stand before
    /// it. On an idle server, for example after a switch of segments, no replay position would ever
    /// reach the position as it is. No record ends there by itself: the smallest takes 24 bytes,
    /// and of one that began on the page before, no other end lies on the page's start.
    #[must_use]
    pub fn last_record_end(self) -> Self {
        const PAGE_BYTES: u64 = 8192;
        let position = u64::from(self.0);
        match position % PAGE_BYTES {
            header @ (24 | 40) => Self((position - header).into()),
            _ => self,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("{text:?} is not an LSN"))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Who a server is; compared before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The same on every physical copy.
    pub system_identifier: SystemIdentifier,
    /// The timeline that is written or followed now.
    pub timeline: Timeline,
    /// server_version_num, for example 170010.
    pub version: u32,
}

impl Identity {
    /// The major version, for example 17.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }
}

/// Reads a server's identity. On a standby the timeline is that of the WAL received, on a primary
/// that of the WAL written.
///
/// # Errors
/// The database's.
pub async fn identity(session: &Session) -> Result<Identity> {
    let row = session
        .query_one(
            "select system_identifier,
                    case when pg_is_in_recovery()
                         then coalesce((select received_tli from pg_stat_wal_receiver where pid is \
             not null),
                                       (select timeline_id from pg_control_checkpoint()))
                         else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, \
             8))::bit(32)::int
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

/// True while the server is a standby.
///
/// # Errors
/// The database's.
pub async fn in_recovery(session: &Session) -> Result<bool> {
    Ok(session
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .context("asking whether the server is a standby")?
        .get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_identifier_survives_json_that_knows_only_doubles() {
        let id = SystemIdentifier(7_500_000_000_000_000_123);
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(text, "\"7500000000000000123\"");
        assert_eq!(serde_json::from_str::<SystemIdentifier>(&text).unwrap(), id);
    }

    #[test]
    fn lag_is_bytes_between_two_positions_and_never_negative() {
        let (a, b): (Lsn, Lsn) = ("0/5A2E4F8".parse().unwrap(), "0/5A2E500".parse().unwrap());
        assert_eq!(b.bytes_since(a), 8);
        assert_eq!(a.bytes_since(b), 0);
        assert!("zero".parse::<Lsn>().is_err());
    }

    #[test]
    fn an_insert_position_behind_a_page_header_is_the_page_start() {
        let end = |text: &str| text.parse::<Lsn>().unwrap().last_record_end().to_string();
        // As PostgreSQL 17 shows it after pg_switch_wal(): insert 0/3000028, flush and replay
        // 0/3000000.
        assert_eq!(end("0/3000028"), "0/3000000");
        assert_eq!(end("0/3002018"), "0/3002000");
        assert_eq!(end("0/3000030"), "0/3000030");
        assert_eq!(end("0/3000000"), "0/3000000");
    }
}
