//! What is true when a cutover has stopped, by the last fact on record, and how to go on.

use std::fmt;

use super::FactKind;
use crate::{record::Record, route::Route};

/// How to go on when no program runs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Before the point of no return: forward, or back.
    Either,
    /// Past the point of no return.
    Forward,
    /// The cutover is finished.
    Nothing,
    /// A rollback has begun.
    RollingBack,
    /// Nothing is left of the cutover.
    StartAgain,
}

impl Resume {
    /// The column "rollback" of README's table.
    pub fn rollback(self) -> &'static str {
        match self {
            Self::Either => "possible",
            Self::Forward | Self::Nothing => "no",
            Self::RollingBack => "begun",
            Self::StartAgain => "not needed",
        }
    }
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Either => "start cutover again, it goes on or rolls back; or start rollback",
            Self::Forward => "start cutover again, it goes on; a rollback is no longer possible",
            Self::Nothing => {
                "nothing; keep the source as it is: stopped, paused, its operator suspended"
            }
            Self::RollingBack => "start rollback or cutover again, it completes the rollback",
            Self::StartAgain => "start a cutover when the cause is fixed",
        })
    }
}

/// The row of README's table that a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The key of the last fact; `nothing` when there is none.
    pub key: &'static str,
    /// What is true.
    pub then: &'static str,
    /// How to go on.
    pub resume: Resume,
}

pub(super) fn position(last: Option<FactKind>, route: Route) -> Position {
    let nothing = Position {
        key: "nothing",
        then: "nothing was changed",
        resume: Resume::StartAgain,
    };
    last.and_then(FactKind::step)
        .map_or(nothing, |step| Position {
            key: step.key,
            then: (step.then)(route),
            resume: step.resume,
        })
}

/// What is true by this record, and how to go on.
pub fn summary(record: &Record) -> String {
    let start = record.started.as_ref();
    let route = start.map_or(Route::Config, |start| start.route);
    let Position { key, then, resume } = position(record.last(), route);
    format!("(recorded last: {key}) {then} → {resume}")
}

/// The sentence in the annotation on the record's ConfigMap.
pub fn state(record: &Record) -> String {
    let Some((fact, step)) = record.last().and_then(|fact| Some((fact, fact.step()?))) else {
        return "no cutover has begun".to_owned();
    };
    let mut parts = Vec::new();
    match record.instant(fact) {
        Some(at) => parts.push(format!("{} at {at:.0}", step.state)),
        None => parts.push(step.state.to_owned()),
    }
    let over = record.serving.is_some() || record.rolled_back.is_some();
    if let Some(blocked) = record.blocked.filter(|_| !over) {
        parts.push(format!("downtime running since {blocked:.0}"));
    }
    parts.push(match step.resume {
        Resume::Nothing => {
            "keep the source as it is: stopped, paused, its operator suspended".to_owned()
        }
        Resume::StartAgain => (step.then)(Route::Config).to_owned(),
        resume => format!("if no Job runs: {resume}"),
    });
    parts.join("; ")
}
