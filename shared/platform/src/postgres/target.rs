//! What is asked of the target, the server that is entered.

use std::ops::Deref;

use jiff::Timestamp;

use super::{Session, identity, in_recovery, lsn};
use job::error::{Context as _, Result};
use protocol::{
    snapshot::target::{ControlCheckpoint, Replay, Running},
    wal::{Identity, Timeline},
};

/// A superuser session to the target's designated primary.
pub struct Target(pub Session);

impl Deref for Target {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Target {
    /// System identifier, timeline and version.
    ///
    /// # Errors
    /// The database's.
    pub async fn identity(&self) -> Result<Identity> {
        identity(self).await
    }

    /// True while it is a standby.
    ///
    /// # Errors
    /// The database's.
    pub async fn in_recovery(&self) -> Result<bool> {
        in_recovery(self).await
    }

    /// Where it stands in the source's WAL.
    ///
    /// # Errors
    /// The database's.
    pub async fn replay(&self) -> Result<Replay> {
        let row = self
            .query_one(
                "select pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
                        exists (select from pg_stat_wal_receiver where status = 'streaming'),
                        case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() <> 'not \
                 paused' else false end",
                &[],
            )
            .await
            .context("reading the replay position of the target")?;
        Ok(Replay {
            receive: row.get::<_, Option<_>>(0).map(lsn),
            replay: row.get::<_, Option<_>>(1).map(lsn),
            streaming: row.get(2),
            paused: row.get(3),
        })
    }

    /// A checkpoint; on a standby a restartpoint, which brings pg_control up to the last checkpoint
    /// record replayed.
    ///
    /// # Errors
    /// The database's.
    pub async fn checkpoint(&self) -> Result<()> {
        self.batch_execute("set statement_timeout = '10min'; checkpoint; reset statement_timeout")
            .await
            .context("checkpoint on the target")
    }

    /// The latest checkpoint that pg_control knows.
    ///
    /// # Errors
    /// The database's.
    pub async fn control_checkpoint(&self) -> Result<ControlCheckpoint> {
        let row = self
            .query_one(
                "select checkpoint_lsn, redo_lsn, timeline_id from pg_control_checkpoint()",
                &[],
            )
            .await
            .context("reading pg_control of the target")?;
        Ok(ControlCheckpoint {
            checkpoint: lsn(row.get(0)),
            redo: lsn(row.get(1)),
            timeline: Timeline(row.get::<_, i32>(2) as u32),
        })
    }

    /// Bytes of a WAL segment; fixed at initdb.
    ///
    /// # Errors
    /// The database's.
    pub async fn wal_segment_bytes(&self) -> Result<u64> {
        let row = self
            .query_one("select bytes_per_wal_segment from pg_control_init()", &[])
            .await
            .context("reading pg_control of the target")?;
        Ok(row.get::<_, i32>(0) as u64)
    }

    /// Whether the restart that CNPG owes a new primary is over.
    ///
    /// # Errors
    /// The database's.
    pub async fn running(&self) -> Result<Running> {
        let row = self
            .query_one(
                "select current_setting('archive_mode'), (select count(*) from pg_settings where \
                 pending_restart),
                        (extract(epoch from pg_postmaster_start_time()) * 1000)::bigint, \
                 (extract(epoch from clock_timestamp()) * 1000)::bigint",
                &[],
            )
            .await
            .context("reading how the target runs")?;
        let instant = |column: usize| {
            Timestamp::from_millisecond(row.get(column)).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        Ok(Running {
            archive_mode: row.get(0),
            pending_restart: row.get(1),
            postmaster_start: instant(2),
            now: instant(3),
        })
    }

    /// Proves that a transaction can be written, flushed and read back, and leaves nothing behind.
    ///
    /// # Errors
    /// The database's, for example 25006 when the server is still read-only.
    pub async fn verify_write(&self) -> Result<()> {
        // A transactional message is WAL that must be flushed before the commit returns; it is no
        // object that could be left behind.
        self.batch_execute(
            "begin read write; set local synchronous_commit = on;
             select pg_logical_emit_message(true, 'replica-migration', 'write proved'); commit",
        )
        .await
        .context("proving a write on the target")
    }
}
