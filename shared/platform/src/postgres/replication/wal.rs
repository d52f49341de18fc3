//! START_REPLICATION PHYSICAL: the WAL that a base backup needs, on a second connection beside it.
//!
//! BASE_BACKUP's own option `WAL` would append it to the archive, with less code here. It is not
//! used, because
//! - it reads the WAL at the end: on a busy server, hours later, what is needed may be recycled by
//!   then, and the backup is lost. A temporary slot, made before the backup begins, keeps it, and
//!   ends with the connection, however that ends;
//! - of a standby it ends with the segment of the minimum recovery point. After a cut the backup
//!   must reach the very last record that the source has ever written, which the receipt names: a
//!   stream goes on until it has come;
//! - pg_wal.tar beside base.tar is what pg_basebackup leaves by default, and what its readers
//!   expect.
//!
//! It costs a second walsender, and a free replication slot.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use postgres_protocol::message::{
    backend::Message,
    frontend::{self, CopyData},
};
use tokio::time::timeout;

use super::{
    Walsender,
    wire::{Failure, unexpected},
};
use job::error::{Context as _, Error, Result};
use protocol::wal::{Lsn, Timeline};

/// An idle walsender sends a keepalive after half of wal_sender_timeout, a minute by default.
const SILENCE: Duration = Duration::from_secs(120);
/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_SECONDS: i64 = 946_684_800;

/// What the stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// WAL from a position on.
    Wal {
        /// Where it begins.
        start: Lsn,
        /// It as it is.
        bytes: Bytes,
    },
    /// Nothing new.
    Keepalive,
    /// The server has followed a promotion: this timeline has ended.
    TimelineEnded,
}

/// A stream of WAL.
pub struct WalStream {
    walsender: Walsender,
    /// End of what has been confirmed.
    confirmed: Lsn,
}

/// A file in pg_wal that tells where the timelines before this one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// For example `00000002.history`.
    pub name: String,
    /// Its content.
    pub content: Bytes,
}

impl Walsender {
    /// Makes a slot that keeps WAL from the last checkpoint on, until this connection ends.
    ///
    /// # Errors
    /// Transient when there is no free slot.
    pub async fn temporary_slot(&mut self, name: &str) -> Result<()> {
        self.rows(&format!(
            "CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY PHYSICAL (RESERVE_WAL)"
        ))
        .await
        .context("making a temporary replication slot")
        .map(drop)
    }

    /// The history of a timeline; the first one has none.
    ///
    /// # Errors
    /// Transient when the server does not have it.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Option<History>> {
        if timeline.0 <= 1 {
            return Ok(None);
        }
        let doing = format!("reading the history of timeline {timeline}");
        let rows = self
            .rows(&format!("TIMELINE_HISTORY {timeline}"))
            .await
            .context(&doing)?;
        let history = rows.first().and_then(|row| {
            Some(History {
                name: row.text(0)?,
                content: row.bytes(1)?,
            })
        });
        history
            .map(Some)
            .ok_or_else(|| Error::transient(format!("{doing}: answered with something else")))
    }

    /// Streams from `start` on; what has been confirmed the slot gives up.
    ///
    /// # Errors
    /// Transient when the WAL is not there any more.
    pub async fn stream_wal(
        mut self,
        slot: &str,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<WalStream> {
        let command =
            format!("START_REPLICATION SLOT \"{slot}\" PHYSICAL {start} TIMELINE {timeline}");
        let begun = async {
            self.wire.query(&command).await?;
            match self.wire.next().await? {
                Message::CopyOutResponse(_) => Ok(()),
                _ => Err(Failure::from(unexpected())),
            }
        };
        let begun = timeout(SILENCE, begun)
            .await
            .map_err(silent)
            .and_then(|begun| begun);
        begun
            .map_err(Error::from)
            .context(format!("streaming wal from {start}"))?;
        Ok(WalStream {
            walsender: self,
            confirmed: start,
        })
    }
}

impl WalStream {
    /// What comes next. May be dropped at any moment: nothing is lost.
    ///
    /// # Errors
    /// Transient when the connection is of no use any more.
    pub async fn next(&mut self) -> Result<Received> {
        let message = timeout(SILENCE, self.walsender.wire.next())
            .await
            .map_err(silent)?;
        match message? {
            Message::CopyData(body) => {
                let (received, reply) = received(body.into_bytes())?;
                if reply {
                    self.confirm(self.confirmed).await?;
                }
                Ok(received)
            }
            Message::CopyDone => Ok(Received::TimelineEnded),
            _ => Err(unexpected()),
        }
    }

    /// Tells the server that everything up to here is safe.
    ///
    /// # Errors
    /// Transient when the connection is of no use any more.
    pub async fn confirm(&mut self, position: Lsn) -> Result<()> {
        self.confirmed = position;
        CopyData::new(status(position, jiff::Timestamp::now()))?
            .write(self.walsender.wire.outbox());
        Ok(self.walsender.wire.send().await?)
    }

    /// Ends it; the slot ends with the connection.
    pub async fn stop(mut self) {
        frontend::copy_done(self.walsender.wire.outbox());
        let _ = self.walsender.wire.send().await;
        self.walsender.close().await;
    }
}

fn silent(_: tokio::time::error::Elapsed) -> Failure {
    Error::transient(format!(
        "the stream of wal was silent for {} s",
        SILENCE.as_secs()
    ))
    .into()
}

/// What is in a message, and whether the server wants an answer at once.
fn received(mut body: Bytes) -> Result<(Received, bool)> {
    let strange = |_| Error::transient("the server sent wal of a kind that is not known");
    match body.try_get_u8().map_err(strange)? {
        b'w' => {
            let start = body.try_get_u64().map_err(strange)?;
            // End of the WAL there, and the server's clock.
            body.try_get_u64()
                .and_then(|_| body.try_get_u64())
                .map_err(strange)?;
            let start = Lsn(start);
            Ok((Received::Wal { start, bytes: body }, false))
        }
        b'k' => {
            body.try_get_u64()
                .and_then(|_| body.try_get_u64())
                .map_err(strange)?;
            Ok((
                Received::Keepalive,
                body.try_get_u8().map_err(strange)? == 1,
            ))
        }
        _ => Err(Error::transient(
            "the server sent wal of a kind that is not known",
        )),
    }
}

/// Standby status update: written, flushed, applied, the clock, no answer wanted.
fn status(position: Lsn, now: jiff::Timestamp) -> Bytes {
    let mut body = BytesMut::with_capacity(34);
    body.put_u8(b'r');
    for _ in 0..3 {
        body.put_u64(position.0);
    }
    body.put_i64(now.as_microsecond() - EPOCH_SECONDS * 1_000_000);
    body.put_u8(0);
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_and_keepalives_are_told_apart() {
        let header = [&[b'w'][..], &0x1_0000_0000_u64.to_be_bytes(), &[0; 16]].concat();
        let message = Bytes::from([&header[..], b"wal"].concat());
        let wal = Received::Wal {
            start: "1/0".parse().unwrap(),
            bytes: Bytes::from_static(b"wal"),
        };
        assert_eq!(received(message).unwrap(), (wal, false));
        let keepalive = Bytes::from([&[b'k'][..], &[0; 16], &[1]].concat());
        assert_eq!(received(keepalive).unwrap(), (Received::Keepalive, true));
        for broken in [&b""[..], b"w", b"k\0", b"x"] {
            assert!(received(Bytes::from_static(broken)).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_status_says_where_and_when_by_the_servers_clock() {
        let body = status(
            "0/10".parse().unwrap(),
            "2000-01-01T00:00:01Z".parse().unwrap(),
        );
        assert_eq!(body.len(), 34);
        assert_eq!(&body[1..9], &16_u64.to_be_bytes());
        assert_eq!(&body[25..33], &1_000_000_i64.to_be_bytes());
    }
}
