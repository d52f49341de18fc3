//! The log lines of the table, with their data.

use serde_json::{Value, json};

use super::{listed, since_block_ms};
use crate::{
    controllers::suspension::Suspension,
    decision::Action,
    record::{FactKind, Record, Start},
    route::Route,
    snapshot::kubernetes::StoredManifest,
};

/// Something to report.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A step that is done: a line and an Event.
    Step {
        /// Reason of the Event.
        event: &'static str,
        /// Text of both.
        text: String,
    },
    /// The same as a warning.
    Warning {
        /// Reason of the Event.
        event: &'static str,
        /// Text of both.
        text: String,
    },
    /// A line only.
    Info(String),
    /// A value of the termination message.
    Value(&'static str, Value),
}

impl Line {
    /// A step that is done.
    pub fn step(event: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self::Step { event, text }
    }
}

/// A fact that has just been recorded.
pub struct Progress<'a> {
    /// The record, the fact included.
    pub record: &'a Record,
    /// The fact.
    pub fact: FactKind,
}

impl Progress<'_> {
    /// The route on record.
    pub(super) fn route(&self) -> Route {
        let start = self.record.started.as_ref();
        start.map_or(Route::Config, |start| start.route)
    }

    /// Milliseconds since the block.
    fn ms(&self) -> i64 {
        since_block_ms(self.record, self.fact).unwrap_or_default()
    }

    /// A step with the time since the block.
    pub(super) fn since_block(&self, event: &'static str, text: &str) -> Line {
        Line::step(event, format!("+{} ms {text}", self.ms()))
    }

    /// The lines of the fact's row.
    pub fn lines(&self) -> Vec<Line> {
        self.fact
            .step()
            .map_or_else(Vec::new, |step| (step.log)(self))
    }
}

pub(super) fn started(progress: &Progress<'_>) -> Option<Line> {
    let start = progress.record.started.as_ref()?;
    Some(Line::step("Started", start_line(start)))
}

fn start_line(start: &Start) -> String {
    let pods: i32 = start.replicas.values().sum();
    let route = match start.route {
        Route::Config => "by the application's ConfigMap",
        Route::Service => "by the source's Services",
    };
    let suspensions: Vec<String> = start.suspensions.iter().map(Suspension::key).collect();
    format!(
        "recorded: system {}, timeline {}, leader {}, {} workloads with {pods} replicas, route \
         {route}, to be suspended: {}",
        start.source.system_identifier,
        start.source.timeline,
        start.leader,
        start.replicas.len(),
        listed(&suspensions)
    )
}

pub(super) fn marker(progress: &Progress<'_>) -> Vec<Line> {
    let Some(marker) = &progress.record.marker else {
        return Vec::new();
    };
    let ended = &marker.sessions_ended;
    let text = format!(
        "writes are blocked, {} sessions ended, marker {}",
        ended.len(),
        marker.lsn
    );
    let mut lines = vec![progress.since_block("WritesBlocked", &text)];
    if !ended.is_empty() {
        lines.push(Line::Info(format!("sessions ended: {}", listed(ended))));
    }
    lines
}

pub(super) fn promotion(progress: &Progress<'_>) -> Vec<Line> {
    let Some(promotion) = &progress.record.promotion else {
        return Vec::new();
    };
    let checkpoint = promotion.shutdown_checkpoint.to_string();
    let proved = format!(
        "the source is down; its shutdown checkpoint {checkpoint} is the last record, and the \
         target has replayed it (to {}): nothing is missing",
        promotion.replayed
    );
    vec![
        Line::Value("shutdown_checkpoint", json!(checkpoint)),
        progress.since_block("Fenced", &proved),
        Line::step(
            "PointOfNoReturn",
            "POINT OF NO RETURN: the promotion is recorded, the cutover only goes forward from \
             here",
        ),
    ]
}

pub(super) fn promoted(progress: &Progress<'_>) -> Vec<Line> {
    let Some(promoted) = &progress.record.promoted else {
        return Vec::new();
    };
    let start = progress.record.started.as_ref();
    let restart = if start.is_some_and(|start| start.target_pending_restart) {
        ", its restart is over"
    } else {
        ""
    };
    let text = format!(
        "the target is primary on timeline {}{restart}, a write is verified",
        promoted.timeline
    );
    vec![
        Line::Value("timeline", json!(promoted.timeline.0)),
        progress.since_block("Promoted", &text),
    ]
}

pub(super) fn serving(progress: &Progress<'_>) -> Vec<Line> {
    let ms = progress.ms();
    let resumed = match progress.route() {
        Route::Service => "client traffic goes through the source's poolers to the target",
        Route::Config => "the application is ready on the target",
    };
    vec![
        Line::Value("downtime_ms", json!(ms)),
        Line::step(
            "Serving",
            format!("DOWNTIME ENDS: {resumed}, {ms} ms after the block"),
        ),
    ]
}

pub(super) fn manifest(progress: &Progress<'_>) -> Vec<Line> {
    let Some(manifest) = &progress.record.manifest else {
        return Vec::new();
    };
    let map = &manifest.config_map;
    vec![match manifest.found {
        StoredManifest::Promoted => Line::step(
            "ManifestRewritten",
            format!("the manifest in the ConfigMap {map} says spec.replica.enabled: false"),
        ),
        StoredManifest::Missing => Line::Info(format!("no manifest is stored (ConfigMap {map})")),
        StoredManifest::Edited | StoredManifest::Follows | StoredManifest::Unread => {
            Line::Warning {
                event: "ManifestEdited",
                text: format!(
                    "the manifest in the ConfigMap {map} was not left as prepare-zalando wrote it, \
                     so it is not rewritten: set spec.replica.enabled: false in it (kubectl edit \
                     configmap {map}), or delete it; applied as it is, it would make the new \
                     primary a standby"
                ),
            }
        }
    }]
}

pub(super) fn readers(progress: &Progress<'_>) -> Vec<Line> {
    let Some(readers) = &progress.record.readers else {
        return Vec::new();
    };
    let ended = (!readers.ended.is_empty()).then(|| {
        let names = listed(&readers.ended);
        Line::step(
            "ReadersEnded",
            format!("sessions at the source's standbys were ended: {names}"),
        )
    });
    let left = (!readers.left.is_empty()).then(|| Line::Warning {
        event: "ReadersLeft",
        text: format!(
            "sessions are left at the source's standbys, where no new row arrives: {}; point their \
             clients to the target",
            listed(&readers.left)
        ),
    });
    ended.into_iter().chain(left).collect()
}

pub(super) fn rollback_started(progress: &Progress<'_>) -> Vec<Line> {
    let begun = progress.record.rollback_started.as_ref();
    let lines = begun.map(|begun| Line::Warning {
        event: "RollbackStarted",
        text: format!("ROLLING BACK: {}", begun.reason),
    });
    lines.into_iter().collect()
}

pub(super) fn rolled_back(progress: &Progress<'_>) -> Vec<Line> {
    let downtime = if progress.record.blocked.is_some() {
        format!("DOWNTIME ENDS after {} ms: ", progress.ms())
    } else {
        String::new()
    };
    vec![Line::step(
        "RolledBack",
        format!("{downtime}the application runs on the source as before"),
    )]
}

/// The log line before an action; None for one that is repeated every few milliseconds.
pub fn action_line(action: &Action, source: &str, target: &str) -> Option<String> {
    let text = match action {
        Action::SuspendController(key) => format!("suspending {key}"),
        Action::ResumeController(key) => format!("resuming {key}"),
        Action::DisableCrashRestart => {
            format!("setting restart_after_crash: off in patroni's configuration of {source}")
        }
        Action::Checkpoint => {
            "checkpoint on the source, restartpoint on the target, so that those in the downtime \
             are short"
                .to_owned()
        }
        Action::PausePoolers => {
            "pausing the source's poolers: their clients wait from here on".to_owned()
        }
        Action::ReapplyBlock => {
            "setting pause and read-only in patroni again: another actor had lifted them".to_owned()
        }
        Action::BlockWrites => {
            format!("blocking writes at {source}: patroni's pause and read-only")
        }
        Action::EndSessions => "ending the client sessions of the source".to_owned(),
        Action::Fence(_) => "stopping the source's server".to_owned(),
        Action::Restartpoint => return None,
        Action::Promote => format!("promoting {target}"),
        Action::VerifyWrite => format!("verifying a write on {target}"),
        Action::RepointConfig => "repointing the application to the target".to_owned(),
        Action::ScaleDown => {
            "scaling the application to 0 again: it was started with its old configuration"
                .to_owned()
        }
        Action::RepointServices => format!("repointing the Services of {source} to {target}"),
        Action::ResumePoolers => "resuming client traffic on the source's poolers".to_owned(),
        Action::RewriteManifest => {
            format!("setting spec.replica.enabled: false in the stored manifest of {target}")
        }
        Action::FindReaders => {
            "looking for sessions that still read from the source's standbys".to_owned()
        }
        Action::ScaleUp => "scaling the application to its recorded replicas".to_owned(),
        Action::WriteReceipt => "writing the receipt".to_owned(),
        Action::RestartSource => "rolling back: starting the source's server".to_owned(),
        Action::UnblockWrites => {
            "rolling back: restoring patroni's pause and settings at the source".to_owned()
        }
        Action::RestoreConfig => {
            "rolling back: repointing the application to the source".to_owned()
        }
        Action::RestoreServices => {
            format!("rolling back: repointing the Services of {source} to it")
        }
    };
    Some(text)
}
