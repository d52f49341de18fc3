//! The replication protocol, as pg_basebackup and a WAL receiver use it. tokio-postgres cannot
//! request a walsender (startup parameter `replication`), and a login to a database does not show
//! that a replication login works: they have separate lines in pg_hba.conf.
//!
//! postgres-protocol builds and parses the messages, postgres-openssl encrypts the stream; the
//! commands are those of the PostgreSQL documentation, *Streaming Replication Protocol*. In reading
//! order: [`login`] and the messages below it ([`wire`]), here the commands that answer with rows,
//! then [`base_backup`] and [`wal`], which answer with a stream.

pub mod base_backup;
mod login;
mod server_error;
pub mod wal;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::{
    backend::{DataRowBody, Message},
    frontend,
};
use tokio::time::timeout;

use super::{CONNECT_TIMEOUT, Credentials, endpoint};
use job::{
    config::Connection,
    error::{Context as _, Error, Result},
};
use protocol::wal::{Lsn, SystemIdentifier, Timeline};
use server_error::ServerError;
use wire::{Failure, Wire, unexpected};

/// Longest time of a command that answers with rows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The answer of IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// System identifier of the server.
    pub system_identifier: SystemIdentifier,
    /// Timeline that it writes or, as a standby, follows.
    pub timeline: Timeline,
    /// End of its WAL: flushed on a primary; received or replayed, whichever is later, on a
    /// standby.
    pub position: Lsn,
}

/// A connection to a walsender.
pub struct Walsender {
    wire: Wire<login::Stream>,
}

/// Logs in for replication as a standby does, and reads identity and position of the server.
///
/// # Errors
/// Config when role, password, certificate or pg_hba.conf do not allow the login; Transient when
/// the server does not answer.
pub async fn identify_system(
    connection: &Connection,
    credentials: &Credentials,
    application: &str,
) -> Result<Answer> {
    let mut walsender = Walsender::connect(connection, credentials, application).await?;
    let answer = walsender.identify_system().await?;
    walsender.close().await;
    Ok(answer)
}

impl Walsender {
    /// Connects and logs in. `application` becomes application_name.
    ///
    /// # Errors
    /// Config when role, password, certificate or pg_hba.conf do not allow the login; Transient
    /// when the server does not answer.
    pub async fn connect(
        connection: &Connection,
        credentials: &Credentials,
        application: &str,
    ) -> Result<Self> {
        let doing = format!(
            "logging in to {} as {} for replication",
            endpoint(connection),
            connection.user
        );
        let answer = timeout(
            CONNECT_TIMEOUT * 2,
            login::login(connection, credentials, application),
        )
        .await;
        let wire = answer
            .map_err(|_| Error::transient("no answer within 10 s"))
            .and_then(|answer| answer)
            .context(doing)?;
        Ok(Self { wire })
    }

    /// Ends the session. Errors are ignored: the server also notices a closed connection.
    pub async fn close(mut self) {
        frontend::terminate(self.wire.outbox());
        let _ = self.wire.send().await;
    }

    /// Reads identity and position of the server.
    ///
    /// # Errors
    /// Transient when the server does not answer, or its answer cannot be read.
    pub async fn identify_system(&mut self) -> Result<Answer> {
        let rows = self
            .rows("IDENTIFY_SYSTEM")
            .await
            .context("asking for the identity of the server")?;
        rows.first()
            .and_then(answer)
            .ok_or_else(|| Error::transient("the answer to IDENTIFY_SYSTEM cannot be read"))
    }

    /// Reads the value of a setting, as SHOW prints it.
    ///
    /// # Errors
    /// Config for a setting that does not exist.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let rows = self
            .rows(&format!("SHOW {setting}"))
            .await
            .context(format!("reading {setting}"))?;
        rows.first()
            .and_then(|row| row.text(0))
            .ok_or_else(|| Error::transient(format!("the answer to SHOW {setting} cannot be read")))
    }

    /// Runs a command that answers with rows.
    async fn rows(&mut self, command: &str) -> Result<Vec<Row>> {
        let answer = timeout(ANSWER_TIMEOUT, async {
            self.wire.query(command).await?;
            let mut rows = Vec::new();
            loop {
                match self.wire.next().await? {
                    Message::RowDescription(_) | Message::CommandComplete(_) => {}
                    Message::DataRow(row) => rows.push(Row::new(&row)?),
                    Message::ReadyForQuery(_) => return Ok(rows),
                    _ => return Err(unexpected().into()),
                }
            }
        });
        let silent = |_| {
            Failure::from(Error::transient(format!(
                "no answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            )))
        };
        Ok(answer.await.map_err(silent).and_then(|answer| answer)?)
    }
}

/// A row of an answer; its values are text, or bytes where the protocol defines them so.
struct Row(Vec<Option<Bytes>>);

impl Row {
    fn new(row: &DataRowBody) -> std::io::Result<Self> {
        let bytes = row.buffer_bytes();
        let column =
            |range: Option<std::ops::Range<usize>>| Ok(range.map(|range| bytes.slice(range)));
        row.ranges().map(column).collect().map(Self)
    }

    fn bytes(&self, column: usize) -> Option<Bytes> {
        self.0.get(column)?.clone()
    }

    fn text(&self, column: usize) -> Option<String> {
        String::from_utf8(self.bytes(column)?.to_vec()).ok()
    }

    fn parsed<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }
}

fn answer(row: &Row) -> Option<Answer> {
    Some(Answer {
        system_identifier: SystemIdentifier(row.parsed(0)?),
        timeline: Timeline(row.parsed(1)?),
        position: row.parsed(2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(texts: &[&'static str]) -> Row {
        Row(texts
            .iter()
            .map(|text| Some(Bytes::from_static(text.as_bytes())))
            .collect())
    }

    #[test]
    fn a_row_of_identify_system_is_read_and_an_invalid_one_is_not() {
        let mut whole = row(&["7500000000000000123", "3", "0/5A2E4F8"]);
        whole.0.push(None);
        let wanted = Answer {
            system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
            timeline: Timeline(3),
            position: "0/5A2E4F8".parse().unwrap(),
        };
        assert_eq!(answer(&whole), Some(wanted));
        assert_eq!(answer(&row(&["7500000000000000123", "3"])), None);
        assert_eq!(answer(&row(&["7500000000000000123", "three", "0/1"])), None);
    }
}
