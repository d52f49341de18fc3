//! What can be decided, and what can be done about it.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    finding::{Acceptance, Finding},
    route::Route,
    snapshot::{kubernetes::Selector, source::PostmasterStart},
};

use strum::{EnumDiscriminants, IntoStaticStr, VariantArray};

use crate::{
    reason::{Contradiction, Refusal, Wait},
    record::Fact,
};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Record this, by compare-and-swap, and look again.
    Record(Fact),
    /// Do this, and look again.
    Do(Action),
    /// Look again after a pause: this is still missing.
    Wait(Wait),
    /// The end before the beginning: this stands against a cut, and waiting does not help. Exit 2
    /// or 3.
    NotReady(Finding),
    /// The end without a cut: nothing irreversible was done, and nothing is left changed. Exit 3,
    /// or that of the failure that came before the start.
    Refuse(Refusal),
    /// A person must look: this contradicts the record. Exit 4.
    Alarm(Contradiction),
    /// The end: the application runs on the target. Exit 0.
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
    doc = "The actions without what they act on."
)]
pub enum Action {
    /// Set a recorded field so that its owner leaves the cut alone.
    SuspendController(String),
    /// Put a recorded field back.
    ResumeController(String),
    /// CHECKPOINT on the source, restartpoint on the target; then record that.
    Checkpoint,
    /// One PATCH of Patroni: pause and read-only.
    ReapplyBlock,
    /// PAUSE at every pod of the old poolers that lets clients through: they wait from here on. The
    /// downtime begins.
    PausePoolers,
    /// [`Action::ReapplyBlock`], and by [`Route::Config`](crate::route::Route::Config) the
    /// application to 0 in parallel: the downtime begins.
    BlockWrites,
    /// End the client sessions of the source, read its position, and record both.
    EndSessions,
    /// Stop this run of the source's server cleanly, by SQL.
    Fence(PostmasterStart),
    /// Restartpoint on the target, so that its pg_control tells which checkpoint it has replayed.
    Restartpoint,
    /// `spec.replica.enabled: false`.
    Promote,
    /// Prove a write on the target.
    VerifyWrite,
    /// Point the application's ConfigMap to the target.
    RepointConfig,
    /// The application to 0 again: somebody has started it with its old configuration.
    ScaleDown,
    /// Turn the source's Services to the target.
    RepointServices,
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
    UnblockWrites,
    /// Back: point the application's ConfigMap to the source again.
    RestoreConfig,
    /// Back: the source's Services as they were.
    RestoreServices,
}

impl Action {
    /// Its name, without what it acts on.
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
    /// Its name, and the field that it is about.
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
    /// PAUSE_MAX_SECONDS: so long the block waits for transactions that run through the poolers.
    pub pause_max: Duration,
    /// APP_CONFIG_TARGET: the application's ConfigMap as it shall be.
    pub config: BTreeMap<String, String>,
    /// ROUTE; None: by the Services where the source has poolers.
    pub route: Option<Route>,
    /// The source's Services and their selectors as they shall be.
    pub services: BTreeMap<String, Selector>,
    /// LAG_BYTES_MAX: at most so many bytes of WAL that the target has not replayed.
    pub lag_bytes_max: u64,
    /// APPS: the words that select the application's workloads.
    pub apps: Vec<String>,
    /// APP_CONFIGMAP: the name of the application's ConfigMap.
    pub app_configmap: String,
    /// ACCEPT: the findings that the user accepts.
    pub accepted: Vec<Acceptance>,
}
