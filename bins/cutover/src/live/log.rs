//! The words of the log: what a person in the window reads, one line a decision.

use job::error::Result;
use protocol::{
    checks,
    finding::{Verdict, listed, render},
    record::receipt_name as receipt_of_cut,
    route::Route,
};
use serde_json::json;

use super::{LiveWorld, now};
use crate::receipt;
use protocol::{
    controllers::suspension::Suspension,
    decision::Action,
    record::{Fact, Record, Start},
    snapshot::Snapshot,
};

impl LiveWorld {
    /// Says what is about to happen.
    pub(super) fn log_action(&self, action: &Action) {
        let (source, target) = (&self.settings.source_cluster, &self.settings.target_cluster);
        let text = match action {
            Action::SuspendController(key) => format!("keeping still: {key}"),
            Action::ResumeController(key) => format!("giving back: {key}"),
            Action::Checkpoint => {
                "checkpoint on the source, restartpoint on the target, so that those in the \
                 downtime are short"
                    .to_owned()
            }
            Action::PausePoolers => {
                "pausing the old poolers: their clients wait from here on".to_owned()
            }
            Action::ReapplyBlock => {
                "setting pause and read-only in patroni again: somebody had lifted \
                them"
                    .to_owned()
            }
            Action::BlockWrites => {
                format!("blocking writes at {source}: patroni's pause and read-only")
            }
            Action::EndSessions => "ending the client sessions of the source".to_owned(),
            Action::Fence(_) => "stopping the source's server".to_owned(),
            Action::Promote => format!("promoting {target}"),
            Action::VerifyWrite => format!("proving a write on {target}"),
            Action::RepointConfig => "pointing the application to the target".to_owned(),
            Action::ScaleDown => "scaling the application to 0 again: it was started with its old \
                configuration"
                .to_owned(),
            Action::RepointServices => format!("turning the Services of {source} to {target}"),
            Action::ResumePoolers => "letting the clients of the old poolers through".to_owned(),
            Action::EndReaders => "ending the sessions that still read from the source's \
                standbys"
                .to_owned(),
            Action::ScaleUp => "scaling the application to its recorded replicas".to_owned(),
            Action::WriteReceipt => "writing the receipt".to_owned(),
            Action::RestartSource => "going back: starting the source's server".to_owned(),
            Action::UnblockWrites => {
                "going back: lifting pause and read-only at the source".to_owned()
            }
            Action::RestoreConfig => {
                "going back: pointing the application to the source".to_owned()
            }
            Action::RestoreServices => format!(
                "going back: leading the Services of {source} to it \
                again"
            ),
            // Repeated every few milliseconds until the shutdown checkpoint has arrived.
            Action::Restartpoint => return,
        };
        self.run.report.info(text);
    }

    /// Says what is recorded now.
    pub(super) fn log_fact(&self, fact: &Fact, record: &Record) {
        let report = &self.run.report;
        let route = record.started.as_ref().map(|start| start.route);
        let at = fact.at().unwrap_or_else(now);
        let since_block = record
            .blocked
            .map_or(0, |blocked| at.duration_since(blocked).as_millis());
        match fact {
            Fact::Started(start) => {
                report.step("Started", started(start));
                self.log_findings();
            }
            Fact::StartOver | Fact::Finished(_) => {}
            Fact::Blocked(_) => report.step(
                "Blocking",
                "DOWNTIME BEGINS: from here on writes wait \
                or are refused",
            ),
            Fact::Checkpointed(_) => report.step(
                "Checkpointed",
                "both sides have just written a \
                checkpoint",
            ),
            Fact::Marker(marker) => {
                report.step(
                    "WritesBlocked",
                    format!(
                        "+{since_block} ms writes are blocked, {} sessions ended, marker {}",
                        marker.sessions_ended.len(),
                        marker.lsn
                    ),
                );
                if !marker.sessions_ended.is_empty() {
                    report.info(format!("ended: {}", listed(&marker.sessions_ended)));
                }
            }
            Fact::Fenced(_) => report.step(
                "CaughtUp",
                format!(
                    "+{since_block} ms the target has replayed the marker; from here the \
                    source is stopped"
                ),
            ),
            Fact::Promotion(promotion) => {
                report.fact(
                    "shutdown_checkpoint",
                    promotion.shutdown_checkpoint.to_string(),
                );
                report.step(
                    "Fenced",
                    format!(
                        "+{since_block} ms the source is down; its shutdown checkpoint {} is the \
                         last record and the target has replayed it (to {}): nothing is missing",
                        promotion.shutdown_checkpoint, promotion.replayed
                    ),
                );
                report.step(
                    "PointOfNoReturn",
                    "POINT OF NO RETURN: the promotion is recorded, from here there is only \
                     forward",
                );
            }
            Fact::Promoted(promoted) => {
                report.fact("timeline", promoted.timeline.0);
                let restart = match &record.started {
                    Some(start) if start.target_pending_restart => ", its restart is over",
                    _ => "",
                };
                report.step(
                    "Promoted",
                    format!(
                        "+{since_block} ms the target is primary on timeline {}{restart}, a write \
                         is proved",
                        promoted.timeline
                    ),
                );
            }
            Fact::Routed(_) => {
                let who = match route {
                    Some(Route::Service) => "the source's Services lead",
                    _ => "the application's ConfigMap points",
                };
                report.step("Routed", format!("+{since_block} ms {who} to the target"));
            }
            Fact::Serving(_) => {
                report.fact("downtime_ms", json!(since_block));
                let what = match route {
                    Some(Route::Service) => {
                        "the old poolers let their clients through to the \
                        target"
                    }
                    _ => "the application is ready on the target",
                };
                report.step(
                    "Serving",
                    format!(
                        "DOWNTIME ENDS: {what}, {since_block} ms after the \
                    block"
                    ),
                );
            }
            Fact::Readers(readers) => {
                if !readers.ended.is_empty() {
                    let names = listed(&readers.ended);
                    report.step(
                        "ReadersEnded",
                        format!(
                            "sessions at the source's standbys were \
                        ended: {names}"
                        ),
                    );
                }
            }
            Fact::RollbackStarted(back) => {
                report.warning("RollbackStarted", format!("GOING BACK: {}", back.reason))
            }
            Fact::RolledBack(_) => {
                let after = if record.blocked.is_some() {
                    format!("DOWNTIME ENDS after {since_block} ms: ")
                } else {
                    String::new()
                };
                report.step(
                    "RolledBack",
                    format!(
                        "{after}the application runs on the source as \
                    before"
                    ),
                );
            }
        }
    }

    /// The last words of a finished cut, also of one that an earlier run has finished.
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
    }

    fn receipt(&self) -> String {
        let (name, namespace) = (
            receipt_of_cut(&self.settings.target_cluster),
            &self.run.namespace,
        );
        format!("receipt: kubectl get configmap {name} -n {namespace} -o yaml")
    }

    /// What does not block the cutover, but should be known before it.
    fn log_findings(&self) {
        let last = self.collector.last();
        let mut findings = last.map_or_else(Vec::new, |last| checks::all(last, &self.limits));
        findings.retain(|finding| finding.verdict != Verdict::Ok);
        for line in render(&findings) {
            self.run.report.info(line);
        }
    }

    /// Who came back to the source after its sessions were ended: their writes are refused, and
    /// somebody should know them.
    pub(super) fn log_reconnected(&self, before: &[String], now: &[String]) {
        let new: Vec<String> = now
            .iter()
            .filter(|name| !before.contains(name))
            .cloned()
            .collect();
        if !new.is_empty() {
            self.run
                .report
                .info(format!("came back to the source: {}", listed(&new)));
        }
    }

    /// An abort that comes too late is answered, once.
    pub(super) fn log_late_abort(&mut self, record: &Record, seen: &Snapshot) {
        if let Some(why) = seen
            .abort
            .as_ref()
            .filter(|_| record.past_point_of_no_return() && !self.told_too_late)
        {
            self.told_too_late = true;
            self.run.report.warning(
                "TooLateToGoBack",
                format!(
                    "{why}, and that is no longer possible: the promotion is recorded, the \
                    target may have taken writes; going on"
                ),
            );
        }
    }

    /// The fields that stay as they are, because their owners would undo the cut, and how they are
    /// given back one day.
    fn log_permanent(&self, start: &Start) {
        let ours = start
            .suspensions
            .iter()
            .filter(|suspension| suspension.permanent && suspension.object.kind != "postgresql");
        for suspension in ours {
            self.run.report.warning(
                "StaysPaused",
                format!(
                    "{} stays as it is, because {}: change it where it is kept (git), then {}",
                    suspension.key(),
                    suspension.why,
                    suspension.by_hand(&self.run.namespace)
                ),
            );
        }
    }

    /// The receipt, immutable; a rerun finds it written.
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
        self.run.report.step("Receipt", "the receipt is written");
        self.log_permanent(start);
        Ok(Fact::Finished(now()))
    }
}

fn started(start: &Start) -> String {
    let pods: i32 = start.replicas.values().sum();
    let route = match start.route {
        Route::Config => "by the application's ConfigMap",
        Route::Service => "by the source's Services",
    };
    format!(
        "recorded: system {}, timeline {}, leader {}, {} workloads with {pods} replicas, route \
         {route}, to be kept still: {}",
        start.source.system_identifier,
        start.source.timeline,
        start.leader,
        start.replicas.len(),
        listed(
            &start
                .suspensions
                .iter()
                .map(Suspension::key)
                .collect::<Vec<_>>()
        )
    )
}
