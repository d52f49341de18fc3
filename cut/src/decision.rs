//! What can be decided, and what can be done about it.

use std::{collections::BTreeMap, time::Duration};

use shared::{postgres::source::Incarnation, readiness::Finding};

use crate::journal::Fact;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Record this, by compare-and-swap, and look again.
    Record(Fact),
    /// Do this, and look again.
    Do(Action),
    /// Look again after a pause: this is still missing.
    Wait(String),
    /// The end before the beginning: this stands against a cut, and waiting does not help. Exit 2 or 3.
    NotReady(Finding),
    /// The end without a cut: nothing irreversible was done, and nothing is left changed. Exit 3.
    Refuse(String),
    /// A person must look: this contradicts the record. Exit 4.
    Alarm(String),
    /// The end: the application runs on the target. Exit 0.
    Done,
}

/// An effect. Each is safe to repeat and safe to perform late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The CR's annotation: the Zalando operator leaves the source alone.
    FreezeOperator,
    /// CHECKPOINT on the source, restartpoint on the target; then record that.
    Checkpoint,
    /// One PATCH of Patroni: pause and read-only.
    Hold,
    /// [`Action::Hold`], and the application to 0 in parallel: the downtime begins.
    Block,
    /// End the client sessions of the source, read its position, and record both.
    EndSessions,
    /// Stop this run of the source's server cleanly, by SQL.
    Fence(Incarnation),
    /// Restartpoint on the target, so that its pg_control tells which checkpoint it has replayed.
    Restartpoint,
    /// `spec.replica.enabled: false`.
    Promote,
    /// Prove a write on the target.
    ProveWrite,
    /// Point the application's ConfigMap to the target.
    Route,
    /// The recorded replica counts.
    ScaleUp,
    /// Write the receipt.
    WriteReceipt,
    /// Back: start the source's stopped server, while Patroni is still paused.
    RestartSource,
    /// Back: lift pause and read-only, as they were.
    Unblock,
    /// Back: point the application's ConfigMap to the source again.
    Unroute,
    /// Back: the CR's annotation as it was.
    UnfreezeOperator,
}

/// How long and how much.
#[derive(Clone, Debug)]
pub struct Limits {
    /// CUTOVER_MAX_SECONDS, from the block to the point of no return.
    pub cutover_max: Duration,
    /// APP_CONFIG_TARGET: the application's ConfigMap as it shall be.
    pub config: BTreeMap<String, String>,
}
