//! What can be decided, and what can be done about it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    checks::Finding,
    route::Route,
    snapshot::{kubernetes::Selector, source::Incarnation},
};

use crate::record::Fact;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Record this, by compare-and-swap, and look again.
    Record(Fact),
    /// Do this, and look again.
    Do(Action),
    /// Look again after a pause: this is still missing.
    Wait(String),
    /// The end before the beginning: this stands against a cut, and waiting does not help. Exit 2
    /// or 3.
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
    /// Set a recorded field so that its owner leaves the cut alone.
    Freeze(String),
    /// Put a recorded field back.
    Thaw(String),
    /// CHECKPOINT on the source, restartpoint on the target; then record that.
    Checkpoint,
    /// One PATCH of Patroni: pause and read-only.
    Hold,
    /// PAUSE at every pod of the old poolers that lets clients through: they wait from here on. The
    /// downtime begins.
    PausePoolers,
    /// [`Action::Hold`], and by [`Route::Config`](crate::route::Route::Config) the application to
    /// 0 in parallel: the downtime begins.
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
    /// The application to 0 again: somebody has started it with its old configuration.
    ScaleDown,
    /// Turn the source's Services to the target.
    TurnServices,
    /// RESUME at every pod of the old poolers that is paused.
    ResumePoolers,
    /// End the sessions that still read from the source's standbys.
    EndReaders,
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
    /// Back: the source's Services as they were.
    ReturnServices,
}

impl Action {
    /// Its name, without what it acts on.
    pub fn name(&self) -> String {
        first_word(&format!("{self:?}"))
    }
}

/// The name of a variant in its Debug form.
pub fn first_word(debug: &str) -> String {
    debug.chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// How long and how much.
#[derive(Clone, Debug)]
pub struct Limits {
    /// CUTOVER_MAX_SECONDS, from the block to the point of no return.
    pub cutover_max: Duration,
    /// PAUSE_MAX_SECONDS: so long the block waits for transactions that run through the poolers.
    pub pause_max: Duration,
    /// APP_CONFIG_TARGET: the application's ConfigMap as it shall be.
    pub config: BTreeMap<String, String>,
    /// ROUTE; None: by the Services where the source has poolers.
    pub route: Option<Route>,
    /// The source's Services and their selectors as they shall be.
    pub services: BTreeMap<String, Selector>,
}
