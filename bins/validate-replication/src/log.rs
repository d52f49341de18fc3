//! What this step logs: the positions of both sides, and a line for each finding.

use job::context::JobContext;
use platform::{collector::endpoints::Endpoints, postgres::endpoint};
use protocol::{
    finding::{Finding, Verdict, lines},
    snapshot::Snapshot,
    wal::Lsn,
};

use crate::settings::Settings;

/// Logs what is compared with what.
pub fn begin(run: &JobContext, settings: &Settings, endpoints: &Endpoints) {
    run.report.info(format!(
        "source {} at {}, target {} at {}, database {}",
        settings.source_cluster,
        endpoint(&endpoints.source),
        settings.target_cluster,
        endpoint(&endpoints.target),
        settings.database
    ));
}

/// Logs the positions; `flushed` is what the source has flushed of its WAL.
pub fn positions(run: &JobContext, snapshot: &Snapshot, flushed: Option<Lsn>) {
    let report = &run.report;
    report.step("CheckingReplication", "Checking replication status...");
    let (Some(source), Some(target)) = (snapshot.source.answer(), snapshot.target.answer()) else {
        return;
    };
    let (insert, replay) = (source.insert, target.replay);
    let shown = |lsn: Option<Lsn>| lsn.map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
    report.info(format!(
        "  Zalando LSN: {} inserted, {} flushed",
        shown(insert),
        shown(flushed)
    ));
    report.info(format!(
        "  CNPG LSN:    {} replayed, {} received",
        shown(replay.replay),
        shown(replay.receive)
    ));
    if let Some((insert, replayed)) = insert.zip(replay.replay) {
        let bytes = insert.bytes_since(replayed);
        report.info(format!("  Lag:         {bytes} bytes"));
        report.fact("source_lsn", insert.to_string());
        report.fact("target_lsn", replayed.to_string());
        report.fact("lag_bytes", bytes);
    }
    report.fact("timeline", source.identity.timeline.0);
}

/// Logs that the data is compared now.
pub fn data_begins(run: &JobContext) {
    run.report
        .step("ValidatingData", "Validating data consistency...");
}

/// Logs that the data is not compared, and why.
pub fn data_skipped(run: &JobContext) {
    run.report
        .info("data is compared once replication is as wanted");
}

/// Logs a line for each finding; one that requires an operator's action also becomes an Event.
pub fn findings(run: &JobContext, findings: &[Finding]) {
    for line in lines(findings) {
        let text = format!("  {}", line.text);
        match line.event {
            None => run.report.info(text),
            Some(reason) => run.report.warning(&reason, text),
        }
    }
}

/// Logs the verdict; where findings block the cutover, the program also ends with an error.
pub fn end(run: &JobContext, findings: &[Finding]) {
    let count = |matches: fn(&Finding) -> bool| findings.iter().filter(|one| matches(one)).count();
    let to_decide = count(|finding| finding.verdict == Verdict::Decide);
    let missing = count(Finding::blocks);
    run.report.fact("warnings", to_decide);
    run.report.fact("missing", missing);
    match (missing, to_decide) {
        (0, 0) => run.report.step(
            "ReadyForCutover",
            "Replication is healthy and ready for cutover",
        ),
        (0, _) => run.report.step(
            "ReadyForCutover",
            format!(
                "Replication is healthy and ready for cutover ({to_decide} findings above to \
                 decide on)"
            ),
        ),
        _ => run.report.warning(
            "NotReady",
            format!("{missing} of {} findings block the cutover", findings.len()),
        ),
    }
}
