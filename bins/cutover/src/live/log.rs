//! The log of the cutover: the lines of the table of steps, and what only this program knows.

use job::error::Result;
use protocol::{
    calm, checks,
    decision::Action,
    finding::{Verdict, listed, render},
    record::{Fact, FactKind, Record, Start, receipt_name},
    served,
    snapshot::Snapshot,
    steps::{self, Line, Progress},
};

use super::{LiveWorld, now};
use crate::receipt;

impl LiveWorld {
    /// Logs an action before it is performed.
    pub(super) fn log_action(&self, action: &Action) {
        let (source, target) = (&self.settings.source_cluster, &self.settings.target_cluster);
        if let Some(text) = steps::action_line(action, source, target) {
            self.run.report.info(text);
        }
    }

    /// Reports a fact that has just been recorded.
    pub(super) fn log_fact(&self, fact: FactKind, record: &Record) {
        let report = &self.run.report;
        for line in (Progress { record, fact }).lines() {
            match line {
                Line::Step { event, text } => report.step(event, text),
                Line::Warning { event, text } => report.warning(event, text),
                Line::Info(text) => report.info(text),
                Line::Value(key, value) => report.fact(key, value),
            }
        }
        match (fact, &record.started) {
            (FactKind::Started, _) => self.log_findings(),
            (FactKind::Blocked, Some(start)) => self.log_no_calm_moment(start),
            (FactKind::Serving, _) => self.log_waiting_pools(),
            (FactKind::Finished, Some(start)) => self.log_permanent(start),
            _ => {}
        }
    }

    /// Logs the end of a finished cutover, also of one that an earlier run has finished.
    pub fn log_end(&self) {
        let Some(record) = self.record.as_ref().map(|record| &record.facts) else {
            return;
        };
        let report = &self.run.report;
        if let (Some(blocked), Some(serving), Some(promoted)) =
            (record.blocked, record.serving, &record.promoted)
        {
            report.fact(
                "downtime_ms",
                serving.duration_since(blocked).as_millis() as u64,
            );
            report.fact("timeline", promoted.timeline.0);
        }
        report.info(self.receipt());
        let config = &self.settings.app_config_target.0;
        for line in steps::closing(record, &self.settings.target_cluster, config) {
            report.info(line);
        }
    }

    fn receipt(&self) -> String {
        let (name, namespace) = (
            receipt_name(&self.settings.target_cluster),
            &self.run.namespace,
        );
        format!("receipt: kubectl get configmap {name} -n {namespace} -o yaml")
    }

    /// Logs the findings that do not block the cutover, but should be known before it.
    fn log_findings(&self) {
        let last = self.collector.last();
        let mut findings = last.map_or_else(Vec::new, |last| checks::all(last, &self.limits));
        findings.retain(|finding| finding.verdict != Verdict::Ok);
        for line in render(&findings) {
            self.run.report.info(line);
        }
    }

    /// Warns that the block begins without a calm moment for the pause of the poolers.
    fn log_no_calm_moment(&self, start: &Start) {
        let last = self.collector.last();
        if let Some(missing) = last.and_then(|last| calm::missing(start, last)) {
            self.run.report.warning(
                "NoCalmMoment",
                format!(
                    "no longer {missing}: transactions that do not end within PAUSE_MAX_SECONDS \
                     are ended"
                ),
            );
        }
    }

    /// Warns of pools whose clients still wait although their pooler reaches the target.
    fn log_waiting_pools(&self) {
        let waiting = self
            .collector
            .last()
            .map_or_else(Vec::new, served::waiting_pools);
        if !waiting.is_empty() {
            self.run.report.warning(
                "PoolWaits",
                format!(
                    "clients still wait for a server connection at {}: look at the poolers' log \
                     for the refused logins of that database or role",
                    listed(&waiting)
                ),
            );
        }
    }

    /// Logs the clients that reconnected to the source after their sessions were ended: their
    /// writes are refused.
    pub(super) fn log_reconnected(&self, before: &[String], now: &[String]) {
        let new: Vec<String> = now
            .iter()
            .filter(|name| !before.contains(name))
            .cloned()
            .collect();
        if !new.is_empty() {
            self.run
                .report
                .info(format!("reconnected to the source: {}", listed(&new)));
        }
    }

    /// Logs once that an abort comes too late.
    pub(super) fn log_late_abort(&mut self, record: &Record, snapshot: &Snapshot) {
        if let Some(why) = snapshot
            .abort
            .as_ref()
            .filter(|_| record.past_point_of_no_return() && !self.late_abort_logged)
        {
            self.late_abort_logged = true;
            self.run.report.warning(
                "TooLateToRollBack",
                format!(
                    "{why}, and that is no longer possible: the promotion is recorded, the \
                    target may have taken writes; the cutover goes on"
                ),
            );
        }
    }

    /// Logs the fields that stay suspended, because their controllers would revert the cutover, and
    /// how they are resumed later.
    fn log_permanent(&self, start: &Start) {
        let permanent = start
            .suspensions
            .iter()
            .filter(|suspension| suspension.permanent && suspension.object.kind != "postgresql");
        for suspension in permanent {
            self.run.report.warning(
                "StaysSuspended",
                format!(
                    "{} stays suspended, because {}: change it where it is kept (git), then {}",
                    suspension.key(),
                    suspension.why,
                    suspension.by_hand(&self.run.namespace)
                ),
            );
        }
    }

    /// Writes the receipt, which is immutable; a second run finds it written.
    pub(super) async fn write_receipt(&self, start: &Start) -> Result<Fact> {
        let record = self
            .record
            .as_ref()
            .map(|record| record.facts.clone())
            .unwrap_or_default();
        receipt::write(
            &self.run.client,
            &self.run.namespace,
            &self.settings.target_cluster,
            start,
            &record,
        )
        .await?;
        Ok(Fact::Finished(now()))
    }
}
