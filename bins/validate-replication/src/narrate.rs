//! What the log says: positions as LSNs, lags in bytes.

use job::context::Run;
use protocol::{
    checks::{Finding, Verdict},
    wal::Lsn,
};

use crate::{counts, sessions::Ends, settings::Settings, settle::Settled};

/// The first line: who is compared with whom.
pub fn begin(run: &Run, settings: &Settings, ends: &Ends) {
    let (source, target) = ends.named();
    run.report.info(format!(
        "source {} at {source}, target {} at {target}, database {}",
        settings.source_cluster, settings.target_cluster, settings.database
    ));
}

/// The positions, then what was found around them.
pub fn status(run: &Run, settled: &Settled) {
    let report = &run.report;
    report.step("CheckingReplication", "Checking replication status...");
    let (source, replay) = (settled.servers.source_lsn, settled.servers.replay);
    let shown = |lsn: Option<Lsn>| lsn.map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
    report.info(format!(
        "  Zalando LSN: {} inserted, {} flushed",
        shown(source),
        shown(settled.servers.source_flushed)
    ));
    report.info(format!(
        "  CNPG LSN:    {} replayed, {} received",
        shown(replay.replay),
        shown(replay.receive)
    ));
    if let Some((source, replayed)) = source.zip(replay.replay) {
        let bytes = source.bytes_since(replayed);
        report.info(format!("  Lag:         {bytes} bytes"));
        report.fact("source_lsn", source.to_string());
        report.fact("target_lsn", replayed.to_string());
        report.fact("lag_bytes", bytes);
    }
    report.fact("timeline", settled.servers.source.identity.timeline.0);
    findings(run, &settled.of_servers);
    findings(run, &settled.of_objects);
}

/// The data is compared now.
pub fn data_begins(run: &Run) {
    run.report
        .step("ValidatingData", "Validating data consistency...");
}

/// The data is not compared, and why.
pub fn data_skipped(run: &Run) {
    run.report
        .info("data is compared once replication is as wanted");
}

/// A line each; what is not as wanted also becomes an Event.
pub fn findings(run: &Run, findings: &[Finding]) {
    for (index, finding) in findings.iter().enumerate() {
        let hint = finding.hint.as_deref().unwrap_or_default();
        let before = findings[..index]
            .iter()
            .filter(|earlier| earlier.check == finding.check)
            .count();
        let reason = reason(finding.check, before);
        match finding.verdict {
            // The table's name stands first.
            Verdict::Ok if finding.check == counts::CHECK => {
                run.report.info(format!("  {}", finding.found))
            }
            Verdict::Ok => run.report.info(format!("  {finding}")),
            Verdict::Warning => run.report.warning(
                &reason,
                format!("  {}: {} → {hint}", finding.check, finding.found),
            ),
            Verdict::NotYet | Verdict::Misconfigured | Verdict::Blocker => {
                run.report.warning(&reason, format!("  {finding} → {hint}"))
            }
        }
    }
}

/// The Event's reason for a check: its words in UpperCamelCase, numbered where a check has several
/// findings, because Events with the same reason are taken for one that is repeated.
fn reason(check: &str, before: usize) -> String {
    let words = check
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let mut reason: String = words
        .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
        .collect();
    if before > 0 {
        reason.push_str(&(before + 1).to_string());
    }
    reason
}

/// The verdict, when it is good; the bad one is the error that ends the program.
pub fn end(run: &Run, findings: &[Finding]) {
    let count = |wanted: fn(Verdict) -> bool| {
        findings
            .iter()
            .filter(|finding| wanted(finding.verdict))
            .count()
    };
    let warnings = count(|verdict| verdict == Verdict::Warning);
    let missing = count(|verdict| verdict > Verdict::Warning);
    run.report.fact("warnings", warnings);
    run.report.fact("missing", missing);
    match (missing, warnings) {
        (0, 0) => run.report.step(
            "ReadyForCutover",
            "Replication is healthy and ready for cutover",
        ),
        (0, _) => run.report.step(
            "ReadyForCutover",
            format!("Replication is healthy and ready for cutover ({warnings} warnings above)"),
        ),
        _ => run.report.warning(
            "NotReady",
            format!("{missing} of {} checks stand against a cut", findings.len()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_becomes_a_reason_of_its_own() {
        assert_eq!(reason("hot-standby settings", 0), "HotStandbySettings");
        assert_eq!(
            reason("application's configuration", 0),
            "ApplicationSConfiguration"
        );
        assert_eq!(reason("row counts", 1), "RowCounts2");
    }
}
