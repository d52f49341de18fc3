//! START_REPLICATION PHYSICAL: streams the WAL that a base backup needs, on a second connection.
//!
//! BASE_BACKUP's option `WAL` would append the WAL to the archive, with less code. It is not used,
//! for three reasons:
//! - It reads the WAL at the end of the backup, possibly hours later. A busy server may have
//!   recycled the WAL by then, and the backup would fail. A temporary slot, created before the
//!   backup begins, keeps the WAL, and the server drops it when the connection ends.
//! - On a standby it ends with the segment of the minimum recovery point. After a cutover the
//!   backup must contain the last record that the source has written, which the receipt names; the
//!   stream continues until that record has arrived.
//! - pg_basebackup writes pg_wal.tar beside base.tar by default, and its users expect this layout.
//!
//! It needs a second walsender and a free replication slot.

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

/// Longest time without a message. An idle walsender sends a keepalive after half of
/// wal_sender_timeout, which is one minute by default.
const SILENCE: Duration = Duration::from_secs(120);
/// Seconds from 1970 to 2000, the beginning of PostgreSQL's timestamps.
const EPOCH_SECONDS: i64 = 946_684_800;

/// A message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// WAL from a position on.
    Wal {
        /// Position of the first byte.
        start: Lsn,
        /// The WAL.
        bytes: Bytes,
    },
    /// No new WAL.
    Keepalive,
    /// The timeline has ended: the server follows another one after a promotion.
    TimelineEnded,
}

/// A stream of WAL.
pub struct WalStream {
    walsender: Walsender,
    /// End of the confirmed WAL.
    confirmed: Lsn,
}

/// A timeline history file: the ends of the timelines before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Name of the file, for example `00000002.history`.
    pub name: String,
    /// Content of the file.
    pub content: Bytes,
}

impl Walsender {
    /// Creates a slot that keeps WAL from the last checkpoint on; the server drops it when this
    /// connection ends.
    ///
    /// # Errors
    /// Transient when the server has no free slot.
    pub async fn temporary_slot(&mut self, name: &str) -> Result<()> {
        self.rows(&format!(
            "CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY PHYSICAL (RESERVE_WAL)"
        ))
        .await
        .context("creating a temporary replication slot")
        .map(drop)
    }

    /// Reads the history file of a timeline; None for the first one, which has none.
    ///
    /// # Errors
    /// Transient when the server does not have the file.
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
            .ok_or_else(|| Error::transient(format!("{doing}: the answer cannot be read")))
    }

    /// Streams WAL from `start` on. The slot releases WAL as soon as it is confirmed.
    ///
    /// # Errors
    /// Transient when the server no longer has the WAL.
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
    /// Returns the next message. Cancellation-safe: no data is lost when the future is dropped.
    ///
    /// # Errors
    /// Transient when the connection has failed.
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

    /// Confirms to the server that all WAL before `position` is stored.
    ///
    /// # Errors
    /// Transient when the connection has failed.
    pub async fn confirm(&mut self, position: Lsn) -> Result<()> {
        self.confirmed = position;
        CopyData::new(status(position, jiff::Timestamp::now()))?
            .write(self.walsender.wire.outbox());
        Ok(self.walsender.wire.send().await?)
    }

    /// Ends stream and connection; the server drops the temporary slot.
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

/// Parses a message; the flag is true when the server requests a reply at once.
fn received(mut body: Bytes) -> Result<(Received, bool)> {
    let unknown = |_| Error::transient("the server sent wal of a kind that is not known");
    match body.try_get_u8().map_err(unknown)? {
        b'w' => {
            let start = body.try_get_u64().map_err(unknown)?;
            // The end of the server's WAL and its clock, which are not used.
            body.try_get_u64()
                .and_then(|_| body.try_get_u64())
                .map_err(unknown)?;
            let start = Lsn(start);
            Ok((Received::Wal { start, bytes: body }, false))
        }
        b'k' => {
            body.try_get_u64()
                .and_then(|_| body.try_get_u64())
                .map_err(unknown)?;
            Ok((
                Received::Keepalive,
                body.try_get_u8().map_err(unknown)? == 1,
            ))
        }
        _ => Err(Error::transient(
            "the server sent wal of a kind that is not known",
        )),
    }
}

/// Standby status update: written, flushed and applied up to `position`; the clock; no reply
/// requested.
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
    fn wal_and_keepalives_are_parsed() {
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
    fn a_status_has_position_and_time_since_2000() {
        let body = status(
            "0/10".parse().unwrap(),
            "2000-01-01T00:00:01Z".parse().unwrap(),
        );
        assert_eq!(body.len(), 34);
        assert_eq!(&body[1..9], &16_u64.to_be_bytes());
        assert_eq!(&body[25..33], &1_000_000_i64.to_be_bytes());
    }
}
