//! The state that the target reports by SQL.

use jiff::Timestamp;

use crate::wal::{Lsn, Timeline};

/// Where a standby stands in the WAL it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// End of the WAL received and flushed by the WAL receiver since it started; None when it never
    /// streamed.
    pub receive: Option<Lsn>,
    /// End of the last record replayed.
    pub replay: Option<Lsn>,
    /// The WAL receiver is streaming now.
    pub streaming: bool,
    /// The replay was paused with pg_wal_replay_pause().
    pub paused: bool,
}

/// A standby that streams from this server, as pg_stat_replication shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Its application_name: CloudNativePG's instances use the name of their pod.
    pub name: String,
    /// End of the WAL that it has flushed; None before it has reported.
    pub flushed: Option<Lsn>,
}

/// The latest checkpoint or restartpoint, from pg_control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlCheckpoint {
    /// Start of the checkpoint record.
    pub checkpoint: Lsn,
    /// Where a recovery from it would begin; equal to `checkpoint` for a shutdown checkpoint only.
    pub redo: Lsn,
    /// Timeline that it was written on.
    pub timeline: Timeline,
}

/// The settings and times that show whether CNPG's restart after a promotion is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// archive_mode in force.
    pub archive_mode: String,
    /// Parameters that wait for a restart.
    pub pending_restart: i64,
    /// When the postmaster started, by the target's own clock.
    pub postmaster_start: Timestamp,
    /// The target's own clock.
    pub now: Timestamp,
}

impl ControlCheckpoint {
    /// A shutdown checkpoint that is not older than a position.
    pub fn ends_a_run_after(&self, since: Lsn) -> bool {
        self.checkpoint == self.redo && self.checkpoint >= since
    }
}

impl Running {
    /// CNPG runs a standby cluster with archive_mode `always`, and restarts it when that is no
    /// longer wanted (docs/operators/cloudnative-pg.md#restart-after-promotion).
    pub fn pending_restart_after_promotion(&self) -> bool {
        self.archive_mode == "always"
    }
}
