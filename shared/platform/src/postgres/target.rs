//! Queries to the target, the server that clients use after the cutover.

use std::ops::Deref;

use jiff::Timestamp;

use super::{Session, identity, in_recovery, lsn};
use job::error::{Context as _, Result};
use protocol::{
    snapshot::target::{ControlCheckpoint, Replay, Running, Standby},
    wal::{Identity, Switch, Timeline, history},
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
    pub async fn identity(&self) -> Result<Identity> {
        identity(self).await
    }

    /// True while it is a standby.
    pub async fn in_recovery(&self) -> Result<bool> {
        in_recovery(self).await
    }

    /// The positions in the source's WAL up to which it has received and replayed, and whether it
    /// streams or its replay is paused.
    pub async fn replay(&self) -> Result<Replay> {
        let row = self
            .query_one(
                "select pg_last_wal_receive_lsn(),
                        pg_last_wal_replay_lsn(),
                        exists (select from pg_stat_wal_receiver where status = 'streaming'),
                        case when pg_is_in_recovery()
                             then pg_get_wal_replay_pause_state() <> 'not paused'
                             else false
                        end",
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

    /// Runs a checkpoint of at most 10 min; on a standby it is a restartpoint, which updates
    /// pg_control to the last checkpoint record replayed.
    pub async fn checkpoint(&self) -> Result<()> {
        self.batch_execute("set statement_timeout = '10min'; checkpoint; reset statement_timeout")
            .await
            .context("checkpoint on the target")
    }

    /// The latest checkpoint in pg_control.
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

    /// Size of a WAL segment in bytes, which initdb has set.
    pub async fn wal_segment_bytes(&self) -> Result<u64> {
        let row = self
            .query_one("select bytes_per_wal_segment from pg_control_init()", &[])
            .await
            .context("reading pg_control of the target")?;
        Ok(row.get::<_, i32>(0) as u64)
    }

    /// What shows whether the restart after the promotion is over: archive_mode, the number of
    /// settings with a pending restart, the postmaster start, and the server's clock.
    pub async fn running(&self) -> Result<Running> {
        let row = self
            .query_one(
                "select current_setting('archive_mode'),
                        (select count(*) from pg_settings where pending_restart),
                        (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint,
                        (extract(epoch from clock_timestamp()) * 1000000)::bigint",
                &[],
            )
            .await
            .context("reading how the target runs")?;
        let instant = |column: usize| {
            Timestamp::from_microsecond(row.get(column)).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        Ok(Running {
            archive_mode: row.get(0),
            pending_restart: row.get(1),
            postmaster_start: instant(2),
            now: instant(3),
        })
    }

    /// The standbys that stream from it, by application_name, and what they have flushed.
    pub async fn standbys(&self) -> Result<Vec<Standby>> {
        let rows = self
            .query(
                "select application_name, flush_lsn from pg_stat_replication",
                &[],
            )
            .await
            .context("reading the standbys of the target")?;
        let standby = |row: &tokio_postgres::Row| Standby {
            name: row.get(0),
            flushed: row.get::<_, Option<_>>(1).map(lsn),
        };
        Ok(rows.iter().map(standby).collect())
    }

    /// The history of a primary's timeline, which PostgreSQL writes before it accepts writes on it.
    /// Empty on a standby and on timeline 1.
    pub async fn history(&self) -> Result<Vec<Switch>> {
        // The timeline is the first eight digits of a WAL file's name.
        let row = self
            .query_one(
                "select case when not pg_is_in_recovery() then pg_read_file(
                     'pg_wal/' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
                     || '.history', 0, 1048576, true) end",
                &[],
            )
            .await
            .context("reading the history of the target's timeline")?;
        Ok(row
            .get::<_, Option<String>>(0)
            .map_or_else(Vec::new, |file| history(&file)))
    }

    /// Verifies that a transaction can be written and flushed. It leaves no object behind.
    ///
    /// # Errors
    /// SQLSTATE 25006 while the server is read-only.
    pub async fn verify_write(&self) -> Result<()> {
        // The WAL of a transactional message must be flushed before the commit returns, and replay
        // ignores it.
        self.batch_execute(
            "begin read write;
             set local synchronous_commit = on;
             select pg_logical_emit_message(true, 'replica-migration', 'write verified');
             commit",
        )
        .await
        .context("verifying a write on the target")
    }
}
