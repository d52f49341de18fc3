//! The decisions, the actions that they order, and the settings that they depend on.

use std::{collections::BTreeMap, fmt, time::Duration};

use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

use crate::{
    finding::{Acceptance, Finding},
    reason::{Contradiction, Refusal, Wait},
    record::Fact,
    route::Route,
    snapshot::{kubernetes::Selector, source::ServerRun},
};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Record this by compare-and-swap, then observe again.
    Record(Fact),
    /// Perform this, then observe again.
    Do(Action),
    /// Observe again after a pause: this is still missing.
    Wait(Wait),
    /// End before the start: this finding blocks the cutover, and waiting does not help. Exit code
    /// 2 or 3.
    NotReady(Finding),
    /// End without a cutover: nothing irreversible was done, and every change was undone. Exit code
    /// 3, or that of the failure that came before the start.
    Refuse(Refusal),
    /// Manual intervention required: this contradicts the record. Exit code 4.
    Alarm(Contradiction),
    /// End: the application runs on the target. Exit code 0.
    Done,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(fact) => write!(f, "record {}", fact.name()),
            Self::Do(action) => action.fmt(f),
            Self::Wait(wait) => write!(f, "wait: {wait}"),
            Self::NotReady(finding) => write!(f, "not ready: {finding}"),
            Self::Refuse(refusal) => write!(f, "refuse: {refusal}"),
            Self::Alarm(contradiction) => {
                write!(f, "manual intervention required: {contradiction}")
            }
            Self::Done => f.write_str("end: the application runs on the target"),
        }
    }
}

/// An effect. Each is safe to repeat and safe to perform late.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr, EnumDiscriminants)]
#[strum_discriminants(
    name(ActionKind),
    derive(Hash, VariantArray, IntoStaticStr),
    doc = "The actions without their data."
)]
pub enum Action {
    /// Set a recorded field so that its controller does not interfere with the cutover.
    SuspendController(String),
    /// Restore the original value of a recorded field.
    ResumeController(String),
    /// Set `restart_after_crash: off` in Patroni's configuration: a server that crashes stays
    /// stopped. Its recovery would end with a checkpoint that looks like that of a clean stop.
    DisableCrashRestart,
    /// CHECKPOINT on the source and a restartpoint on the target; then record both.
    Checkpoint,
    /// One PATCH of Patroni: pause, read-only, and no restart after a crash.
    ReapplyBlock,
    /// PAUSE at every serving pod of the old poolers: clients wait from here on. The downtime
    /// begins.
    PausePoolers,
    /// [`Action::ReapplyBlock`], and with [`Route::Config`] scale the application to 0 in parallel:
    /// the downtime begins.
    BlockWrites,
    /// End the client sessions of the source and read its position; then record both.
    EndSessions,
    /// Stop the source's server cleanly, by SQL, if it is still this run on this timeline.
    Fence(ServerRun),
    /// Restartpoint on the target, so that its pg_control shows which checkpoint it has replayed.
    Restartpoint,
    /// Promote the target: set `spec.replica.enabled: false`.
    Promote,
    /// Verify a write on the target.
    VerifyWrite,
    /// Point the application's ConfigMap to the target.
    RepointConfig,
    /// Scale the application to 0 again: another actor started it with its old configuration.
    ScaleDown,
    /// Repoint the source's Services to the target.
    RepointServices,
    /// RESUME at every pod of the old poolers that is paused.
    ResumePoolers,
    /// Set `spec.replica.enabled: false` in the stored manifest of the target, which would
    /// otherwise make the new primary a standby when it is applied again.
    RewriteManifest,
    /// Look for sessions that still read from the source's standbys, and end those whose clients
    /// come back to the target.
    FindReaders,
    /// Restore the recorded replica counts.
    ScaleUp,
    /// Write the receipt.
    WriteReceipt,
    /// Rollback: start the source's stopped server while Patroni is still paused.
    RestartSource,
    /// Rollback: restore Patroni's pause and its settings.
    UnblockWrites,
    /// Rollback: point the application's ConfigMap to the source again.
    RestoreConfig,
    /// Rollback: restore the selectors of the source's Services.
    RestoreServices,
}

impl Action {
    /// Its name, without its data.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// Its kind.
    pub fn kind(&self) -> ActionKind {
        self.into()
    }
}

impl ActionKind {
    /// Every kind.
    pub const ALL: &'static [Self] = Self::VARIANTS;
}

impl fmt::Display for Action {
    /// Its name, and the field that it changes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::SuspendController(key) | Self::ResumeController(key) => write!(f, " {key}"),
            _ => Ok(()),
        }
    }
}

/// The settings that the decisions and the checks depend on.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// CUTOVER_MAX_SECONDS, from the block to the point of no return.
    pub cutover_max: Duration,
    /// FENCE_MAX_SECONDS, from the request to stop the source until its clean stop is proved.
    pub fence_max: Duration,
    /// PAUSE_MAX_SECONDS: how long the block waits for transactions that run through the poolers.
    pub pause_max: Duration,
    /// APP_CONFIG_TARGET: the keys and values of the application's ConfigMap for the target.
    pub config: BTreeMap<String, String>,
    /// ROUTE; None: the Services if the source has poolers.
    pub route: Option<Route>,
    /// The source's Services with their selectors for the target.
    pub services: BTreeMap<String, Selector>,
    /// SERVICES_WATCH_SECONDS: how long the Services are watched once clients are served.
    pub services_watch: Duration,
    /// LAG_BYTES_MAX: bytes of WAL that the target may not have replayed yet, at most.
    pub lag_bytes_max: u64,
    /// APPS: the words that select the application's workloads.
    pub apps: Vec<String>,
    /// APP_CONFIGMAP: the name of the application's ConfigMap.
    pub app_configmap: String,
    /// ACCEPT: the findings that the user accepts.
    pub accepted: Vec<Acceptance>,
}
