//! The receipt: what an immutable ConfigMap answers, a year later, to "was anything lost?".
//!
//! `journal.json` is the record at that time, for programs; `summary.json` and `proof.txt` are for
//! people. All of it is one schema with the record ([`SCHEMA`]).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    record::{
        FactKind, Promoted, Promotion, Record, SCHEMA, Start,
        keys::{SCHEMA_KEY, Unusable, schema},
    },
    steps,
};

/// The key that holds the record.
const RECORD: &str = "journal.json";

/// The receipt of a cutover that serves the application on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The schema that it was written in.
    pub schema: u32,
    /// The state before the cutover: both sides and the leader that was stopped.
    pub started: Start,
    /// Where the source's WAL ends, with the proof.
    pub promotion: Promotion,
    /// The target as a primary.
    pub promoted: Promoted,
    /// When the target began to serve the application.
    pub serving: Timestamp,
}

impl Receipt {
    /// Reads the ConfigMap's data, in this schema or any earlier one.
    ///
    /// # Errors
    /// It was written by a newer version, or not by cutover.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, Unusable> {
        let schema = schema(data)?;
        let text = data
            .get(RECORD)
            .ok_or_else(|| Unusable::Contents(format!("it has no {RECORD}")))?;
        let record: Record = serde_json::from_str(text)
            .map_err(|error| Unusable::Contents(format!("its {RECORD}: {error}")))?;
        let (Some(started), Some(promotion), Some(promoted), Some(serving)) = (
            record.started,
            record.promotion,
            record.promoted,
            record.serving,
        ) else {
            return Err(Unusable::Contents(format!(
                "its {RECORD} is of a cutover that does not serve the application yet"
            )));
        };
        Ok(Self {
            schema,
            started,
            promotion,
            promoted,
            serving,
        })
    }
}

/// The ConfigMap's data; `program` is the name and version that `program` names there.
pub fn data(start: &Start, record: &Record, program: &str) -> BTreeMap<String, String> {
    let facts = serde_json::to_string_pretty(record).unwrap_or_default();
    let summary = serde_json::to_string_pretty(&summary(start, record)).unwrap_or_default();
    [
        (SCHEMA_KEY.to_owned(), SCHEMA.to_string()),
        ("summary.json".to_owned(), summary),
        (RECORD.to_owned(), facts),
        ("proof.txt".to_owned(), proof(start, record)),
        ("program".to_owned(), program.to_owned()),
    ]
    .into()
}

/// Instants, and the milliseconds from the block to each milestone of the table of steps.
fn summary(start: &Start, record: &Record) -> Value {
    let since_block = |fact| steps::since_block_ms(record, fact);
    let milestones: Map<String, Value> = steps::milestones()
        .map(|(fact, milestone)| (milestone.key.to_owned(), json!(since_block(fact))))
        .collect();
    json!({
        "source": start.source, "target": start.target, "route": start.route,
        "replicas": start.replicas,
        "began": start.at, "blocked": record.blocked, "served": record.serving,
        "ms_since_block": milestones,
        // From the block to the write that cutover has verified on the target, and to the first
        // that a client could make there.
        "write_gap_ms": {
            "verified": since_block(FactKind::Promoted),
            "clients": since_block(FactKind::Serving),
        },
        "marker": record.marker, "promotion": record.promotion, "promoted": record.promoted,
        "reconnected": record.fenced.as_ref().map(|fenced| &fenced.reconnected),
        "readers_ended": record.readers.as_ref().map(|readers| &readers.ended),
        "readers_left": record.readers.as_ref().map(|readers| &readers.left),
        "suspended_and_resumed": suspended(start, false),
        "suspended_permanently": suspended(start, true),
    })
}

/// The controllers' fields that were changed for the time of the cutover, or permanently.
fn suspended(start: &Start, permanent: bool) -> Vec<String> {
    let suspensions = start.suspensions.iter();
    suspensions
        .filter(|suspension| suspension.permanent == permanent)
        .map(|suspension| suspension.key())
        .collect()
}

/// The argument in words.
fn proof(start: &Start, record: &Record) -> String {
    let (Some(promotion), Some(promoted)) = (&record.promotion, &record.promoted) else {
        return "the cutover was not finished".to_owned();
    };
    format!(
        "The source {} (timeline {}) was stopped cleanly. The last record that it wrote is its \
         shutdown checkpoint at {};\n\
         the target had replayed exactly to the end of that record, {}, when its promotion was \
         recorded. So everything that\n\
         the source ever acknowledged is on the target, and nothing was written on the source \
         after it. The target is primary\n\
         on timeline {}.\n",
        start.source.system_identifier,
        promotion.timeline,
        promotion.shutdown_checkpoint,
        promotion.replayed,
        promoted.timeline
    )
}
