//! The words of the log: what a person in the window reads, one line a decision.

use serde_json::json;
use shared::error::Result;

use super::{Live, now};
use crate::{
    decision::Action,
    journal::{Fact, Journal, Start},
    receipt,
};

impl Live {
    /// Says what is about to happen.
    pub(super) fn narrate_action(&self, action: &Action) {
        let (source, target) = (&self.settings.source_cluster, &self.settings.target_cluster);
        let text = match action {
            Action::FreezeOperator => format!("freezing the Zalando operator for {source}"),
            Action::Checkpoint => {
                "checkpoint on the source, restartpoint on the target, so that those in the downtime are short".to_owned()
            }
            Action::Hold => "setting pause and read-only in patroni again: somebody had lifted them".to_owned(),
            Action::Block => "DOWNTIME BEGINS: blocking writes at the source, scaling the application to 0".to_owned(),
            Action::EndSessions => "ending the client sessions of the source".to_owned(),
            Action::Fence(_) => "stopping the source's server".to_owned(),
            Action::Promote => format!("promoting {target}"),
            Action::ProveWrite => format!("proving a write on {target}"),
            Action::Route => "pointing the application to the target".to_owned(),
            Action::ScaleUp => "scaling the application to its recorded replicas".to_owned(),
            Action::WriteReceipt => "writing the receipt".to_owned(),
            Action::RestartSource => "going back: starting the source's server".to_owned(),
            Action::Unblock => "going back: lifting pause and read-only at the source".to_owned(),
            Action::Unroute => "going back: pointing the application to the source".to_owned(),
            Action::UnfreezeOperator => "giving the Zalando operator its cluster back".to_owned(),
            // Repeated every few milliseconds until the shutdown checkpoint has arrived.
            Action::Restartpoint => return,
        };
        self.run.report.info(text);
    }

    /// Says what is recorded now.
    pub(super) fn narrate_fact(&self, fact: &Fact, journal: &Journal) {
        let report = &self.run.report;
        let since_block = journal.blocked.map_or(0, |blocked| now().duration_since(blocked).as_millis());
        match fact {
            Fact::Started(start) => report.step("Started", started(start)),
            Fact::Blocked(_) | Fact::Anew | Fact::Finished(_) => {}
            Fact::Checkpointed(_) => report.step("Checkpointed", "both sides have just written a checkpoint"),
            Fact::Marker(marker) => {
                report.step(
                    "WritesBlocked",
                    format!(
                        "+{since_block} ms writes are blocked, {} sessions ended, marker {}",
                        marker.sessions_ended, marker.lsn
                    ),
                );
            }
            Fact::Fenced(_) => report.step(
                "CaughtUp",
                format!("+{since_block} ms the target has replayed the marker; from here the source is stopped"),
            ),
            Fact::Promotion(promotion) => {
                report.fact("shutdown_checkpoint", promotion.shutdown_checkpoint.to_string());
                report.step(
                    "Fenced",
                    format!(
                        "+{since_block} ms the source is down; its shutdown checkpoint {} is the last record and the target has replayed it (to {}): nothing is missing",
                        promotion.shutdown_checkpoint, promotion.replayed
                    ),
                );
                report.step(
                    "PointOfNoReturn",
                    "POINT OF NO RETURN: the promotion is recorded, from here there is only forward",
                );
            }
            Fact::Promoted(promoted) => {
                report.fact("timeline", promoted.timeline.0);
                report.step(
                    "Promoted",
                    format!(
                        "+{since_block} ms the target is primary on timeline {}, its restart is over, a write is proved",
                        promoted.timeline
                    ),
                );
            }
            Fact::Routed(_) => report.step(
                "Routed",
                format!("+{since_block} ms the application's ConfigMap points to the target"),
            ),
            Fact::Serving(_) => {
                report.fact("downtime_ms", json!(since_block));
                report.step(
                    "Serving",
                    format!("DOWNTIME ENDS: the application is ready on the target, {since_block} ms after the block"),
                );
            }
            Fact::GoingBack(back) => report.warning("GoingBack", format!("GOING BACK: {}", back.reason)),
            Fact::Returned(_) => {
                let after = if journal.blocked.is_some() {
                    format!("DOWNTIME ENDS after {since_block} ms: ")
                } else {
                    String::new()
                };
                report.step("Returned", format!("{after}the application runs on the source as before"));
            }
        }
    }

    /// The receipt, immutable; a rerun finds it written.
    pub(super) async fn write_receipt(&self, start: &Start) -> Result<Fact> {
        let journal = self.record.as_ref().map(|record| record.facts.clone()).unwrap_or_default();
        receipt::write(&self.run.client, &self.run.namespace, &self.record_name(), start, &journal).await?;
        self.run.report.step(
            "Receipt",
            format!(
                "receipt: kubectl get configmap {}-receipt -n {} -o yaml",
                self.record_name(),
                self.run.namespace
            ),
        );
        Ok(Fact::Finished(now()))
    }
}

fn started(start: &Start) -> String {
    let pods: i32 = start.replicas.values().sum();
    format!(
        "recorded: system {}, timeline {}, leader {}, {} Deployments with {pods} replicas",
        start.source.system_identifier,
        start.source.timeline,
        start.leader,
        start.replicas.len()
    )
}
