//! The table of steps: for each fact of the record the actions that lead to it, its Events and log
//! lines, its lines in the plan, what is true once it is recorded and how to go on from there, and
//! its milestone in the receipt.
//!
//! The log, the plan of a dry run, the closing message, the annotation on the record, the receipt,
//! the table in README and the list in cutover's `main.rs` are made from this table or tested
//! against it. It has no default arm: a new fact or action does not compile without its row.

mod closing;
mod log;
mod plan;
mod resume;

pub use closing::closing;
pub use log::{Line, Progress, action_line};
pub use plan::{Plan, PlanLine, plan};
pub use resume::{Resume, state, summary};

use crate::{
    decision::ActionKind,
    finding::listed,
    manifest,
    record::{FactKind, Record},
    route::Route,
};

/// A step: the row of one fact.
pub struct Step {
    /// The key of the fact in the record.
    pub key: &'static str,
    /// The actions that a cutover without disturbances takes before it records the fact, and the
    /// ones by which a rollback restores everything. [`REPAIRS`] may come at any step.
    pub actions: &'static [ActionKind],
    /// The lines of the plan, in the order of the steps.
    pub plan: &'static [PlanLine],
    /// Reasons of the Events that the step posts, in their order.
    pub events: &'static [&'static str],
    /// Whether every cutover posts them.
    pub always: bool,
    /// The log lines when the fact has been recorded, and the values of the termination message.
    pub log: fn(&Progress<'_>) -> Vec<Line>,
    /// The fact in a few words, for the annotation on the record.
    pub state: &'static str,
    /// What is true from then on until the next fact is recorded.
    pub then: fn(Route) -> &'static str,
    /// How to go on when no program runs any more.
    pub resume: Resume,
    /// The milestone in the receipt.
    pub milestone: Option<Milestone>,
}

/// A milestone: the time from the block to the fact, as the receipt has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milestone {
    /// Its key in `ms_since_block`.
    pub key: &'static str,
    /// What has been reached.
    pub label: &'static str,
}

const fn milestone(key: &'static str, label: &'static str) -> Option<Milestone> {
    Some(Milestone { key, label })
}

impl FactKind {
    /// The row of this fact; None for [`FactKind::StartOver`], which empties the record.
    pub const fn step(self) -> Option<Step> {
        use ActionKind as Do;
        Some(match self {
            Self::Started => Step {
                key: "started",
                actions: &[],
                plan: &[PlanLine {
                    headline: "record the identities, the settings and the replica counts",
                    applies: |_| true,
                    data: |plan| plan.replicas.clone(),
                }],
                events: &["Started"],
                always: true,
                log: |progress| log::started(progress).into_iter().collect(),
                state: "cutover started",
                then: |_| CONTROLLERS_SUSPENDED,
                resume: Resume::Either,
                milestone: None,
            },
            Self::Suspended => Step {
                key: "suspended",
                actions: &[Do::SuspendController],
                plan: &[PlanLine {
                    headline: "suspend the controllers that would revert the cutover",
                    applies: |_| true,
                    data: |plan| plan.suspensions.clone(),
                }],
                events: &["Suspended"],
                always: true,
                log: |_| {
                    vec![Line::step(
                        "Suspended",
                        "the controllers that would revert the cutover are suspended",
                    )]
                },
                state: "controllers suspended",
                then: |_| CONTROLLERS_SUSPENDED,
                resume: Resume::Either,
                milestone: None,
            },
            Self::Checkpointed => Step {
                key: "checkpointed",
                actions: &[Do::DisableCrashRestart, Do::Checkpoint],
                plan: &[
                    PlanLine {
                        headline: "keep the source's server stopped if it crashes",
                        applies: |_| true,
                        data: |plan| {
                            format!("restart_after_crash off, by the patroni of {}", plan.leader)
                        },
                    },
                    PlanLine {
                        headline: "checkpoint both sides, so that those in the downtime are short",
                        applies: |_| true,
                        data: |_| String::new(),
                    },
                ],
                events: &["Checkpointed"],
                always: true,
                log: |_| {
                    vec![Line::step(
                        "Checkpointed",
                        "both sides have just written a checkpoint",
                    )]
                },
                state: "checkpoints taken",
                then: |_| CONTROLLERS_SUSPENDED,
                resume: Resume::Either,
                milestone: None,
            },
            Self::Blocked => Step {
                key: "blocked",
                actions: &[],
                plan: &[PlanLine {
                    headline: "DOWNTIME BEGINS: block writes at the source",
                    applies: |_| true,
                    data: |plan| match plan.route {
                        Route::Service => format!(
                            "PAUSE at {}, pause and read-only through the patroni of {}",
                            plan.poolers, plan.leader
                        ),
                        Route::Config => format!(
                            "the application to 0, pause and read-only through the patroni of {}",
                            plan.leader
                        ),
                    },
                }],
                events: &["Blocking"],
                always: true,
                log: |_| {
                    vec![Line::step(
                        "Blocking",
                        "DOWNTIME BEGINS: from here on writes wait or are refused",
                    )]
                },
                state: "block of writes recorded",
                then: |_| WRITES_BLOCKED,
                resume: Resume::Either,
                milestone: None,
            },
            Self::Marker => Step {
                key: "marker",
                actions: &[Do::PausePoolers, Do::BlockWrites, Do::EndSessions],
                plan: &[PlanLine {
                    headline: "end the client sessions of the source and record its position",
                    applies: |_| true,
                    data: |plan| format!("{} sessions now", plan.sessions),
                }],
                events: &["WritesBlocked"],
                always: true,
                log: log::marker,
                state: "writes blocked and client sessions ended",
                then: |_| WRITES_BLOCKED,
                resume: Resume::Either,
                milestone: milestone("marker", "writes blocked, sessions ended"),
            },
            Self::Fenced => Step {
                key: "fenced",
                actions: &[],
                plan: &[PlanLine {
                    headline: "wait until the target has replayed the marker",
                    applies: |_| true,
                    data: |_| String::new(),
                }],
                events: &["CaughtUp"],
                always: true,
                log: |progress| {
                    vec![progress.since_block(
                        "CaughtUp",
                        "the target has replayed the marker; the source is stopped next",
                    )]
                },
                state: "target caught up, the source's server is to be stopped",
                then: |_| {
                    "the source's server may be stopped; the target has every write that was \
                     acknowledged before the marker, and is still a standby"
                },
                resume: Resume::Either,
                milestone: milestone("caught_up", "marker replayed by the target"),
            },
            Self::Promotion => Step {
                key: "promotion",
                actions: &[Do::Fence, Do::Restartpoint],
                plan: &[
                    PlanLine {
                        headline: "stop the source's server cleanly; prove that the target has its \
                                   last record",
                        applies: |_| true,
                        data: |plan| plan.leader.clone(),
                    },
                    PlanLine {
                        headline: "POINT OF NO RETURN: record the promotion",
                        applies: |_| true,
                        data: |_| String::new(),
                    },
                ],
                events: &["Fenced", "PointOfNoReturn"],
                always: true,
                log: log::promotion,
                state: "past the point of no return: promotion recorded",
                then: |_| {
                    "the source is stopped permanently, and the target has its last record: \
                     nothing is missing; the target may be promoting"
                },
                resume: Resume::Forward,
                milestone: milestone("source_stopped", "source stopped, last record proved"),
            },
            Self::Promoted => Step {
                key: "promoted",
                actions: &[Do::Promote, Do::RepointServices, Do::VerifyWrite],
                plan: &[PlanLine {
                    headline: "promote the target and verify a write",
                    applies: |_| true,
                    data: |plan| {
                        let restart = if plan.target_pending_restart {
                            format!(", and after CNPG's restart of {}", plan.target)
                        } else {
                            String::new()
                        };
                        format!("spec.replica.enabled: false on {}{restart}", plan.target)
                    },
                }],
                events: &["Promoted"],
                always: true,
                log: log::promoted,
                state: "target promoted",
                then: |_| {
                    "the target is a primary whose restart is over, and a write to it is \
                     verified; the application still waits"
                },
                resume: Resume::Forward,
                milestone: milestone("write_verified", "target primary, a write verified"),
            },
            Self::Routed => Step {
                key: "routed",
                actions: &[Do::RepointServices, Do::RepointConfig],
                plan: &[PlanLine {
                    headline: "repoint the application to the target",
                    applies: |_| true,
                    data: |plan| plan.repoint.clone(),
                }],
                events: &["Routed"],
                always: true,
                log: |progress| {
                    let text = match progress.route() {
                        Route::Service => "the source's Services lead to the target",
                        Route::Config => "the application's ConfigMap points to the target",
                    };
                    vec![progress.since_block("Routed", text)]
                },
                state: "application repointed to the target",
                then: |route| match route {
                    Route::Service => {
                        "the source's Services lead to the target; the source's poolers may \
                         still be paused"
                    }
                    Route::Config => {
                        "the application's ConfigMap points to the target; not all of its pods \
                         are ready"
                    }
                },
                resume: Resume::Forward,
                milestone: milestone("routed", "application repointed to the target"),
            },
            Self::Serving => Step {
                key: "serving",
                actions: &[Do::ResumePoolers, Do::ScaleUp],
                plan: &[PlanLine {
                    headline: "DOWNTIME ENDS: resume client traffic",
                    applies: |_| true,
                    data: |plan| match plan.route {
                        Route::Service => format!("RESUME at {}", plan.poolers),
                        Route::Config => "the application to its recorded replicas".to_owned(),
                    },
                }],
                events: &["Serving"],
                always: true,
                log: log::serving,
                state: "application served by the target",
                then: |_| SERVING,
                resume: Resume::Forward,
                milestone: milestone("serving", "client traffic resumed"),
            },
            Self::Manifest => Step {
                key: "manifest",
                actions: &[Do::RewriteManifest],
                plan: &[PlanLine {
                    headline: "set replica.enabled: false in the stored manifest of the target",
                    applies: |_| true,
                    data: |plan| manifest::map_name(&plan.target),
                }],
                events: &["ManifestRewritten"],
                always: false,
                log: log::manifest,
                state: "stored manifest rewritten",
                then: |_| SERVING,
                resume: Resume::Forward,
                milestone: None,
            },
            Self::Readers => Step {
                key: "readers",
                actions: &[Do::ResumeController, Do::FindReaders],
                plan: &[PlanLine {
                    headline: "look for sessions at the source's standbys",
                    applies: |_| true,
                    data: |plan| match plan.route {
                        Route::Service => "they are ended".to_owned(),
                        Route::Config => "they are named".to_owned(),
                    },
                }],
                events: &["ReadersEnded", "ReadersLeft"],
                always: false,
                log: log::readers,
                state: "sessions at the source's standbys ended or named",
                then: |_| SERVING,
                resume: Resume::Forward,
                milestone: None,
            },
            Self::Finished => Step {
                key: "finished",
                actions: &[Do::ResumeController, Do::WriteReceipt],
                plan: &[PlanLine {
                    headline: "resume the suspended controllers and write the receipt",
                    applies: |_| true,
                    data: |plan| {
                        format!(
                            "{}; {} stays stopped, paused, and its operator suspended",
                            plan.receipt, plan.source
                        )
                    },
                }],
                events: &["Receipt"],
                always: true,
                log: |_| vec![Line::step("Receipt", "the receipt is written")],
                state: "cutover finished",
                then: |_| "the application runs on the target, the receipt is written",
                resume: Resume::Nothing,
                milestone: None,
            },
            Self::RollbackStarted => Step {
                key: "going-back",
                actions: &[],
                plan: &[],
                events: &["RollbackStarted"],
                always: false,
                log: log::rollback_started,
                state: "rollback started",
                then: |_| "the rollback has begun; not all that was changed may be restored yet",
                resume: Resume::RollingBack,
                milestone: None,
            },
            Self::RolledBack => Step {
                key: "returned",
                actions: &[
                    Do::RestartSource,
                    Do::UnblockWrites,
                    Do::RestoreConfig,
                    Do::RestoreServices,
                    Do::ResumePoolers,
                    Do::ScaleUp,
                    Do::ResumeController,
                ],
                plan: &[],
                events: &["RolledBack"],
                always: false,
                log: log::rolled_back,
                state: "rolled back",
                then: |_| "the application runs on the source as before",
                resume: Resume::StartAgain,
                milestone: None,
            },
            Self::StartOver => return None,
        })
    }
}

/// Actions that set again what another actor has changed.
pub const REPAIRS: &[ActionKind] = &[ActionKind::ReapplyBlock, ActionKind::ScaleDown];

const CONTROLLERS_SUSPENDED: &str = "the application runs on the source; the Zalando operator and \
    the other controllers that would revert the cutover may be suspended, and the source's \
    restart_after_crash off";
const WRITES_BLOCKED: &str =
    "the source may refuse writes; the clients wait, or the application is scaled to 0";
const SERVING: &str = "the application runs on the target; some controllers may still be \
    suspended, and the receipt is not written";

/// The steps in the order in which they are recorded.
pub fn steps() -> impl Iterator<Item = (FactKind, Step)> {
    FactKind::ALL
        .iter()
        .filter_map(|fact| Some((*fact, fact.step()?)))
}

/// The reasons of the Events that every completed cutover posts, in their order.
pub fn events() -> Vec<&'static str> {
    let always = steps().filter(|(_, step)| step.always);
    always.flat_map(|(_, step)| step.events).copied().collect()
}

/// The milestones of the receipt, in their order.
pub fn milestones() -> impl Iterator<Item = (FactKind, Milestone)> {
    steps().filter_map(|(fact, step)| Some((fact, step.milestone?)))
}

/// Milliseconds from the block to a fact; None when one of them is not on record.
pub fn since_block_ms(record: &Record, fact: FactKind) -> Option<i64> {
    let elapsed = record.instant(fact)?.duration_since(record.blocked?);
    i64::try_from(elapsed.as_millis()).ok()
}

#[cfg(test)]
mod tests;
