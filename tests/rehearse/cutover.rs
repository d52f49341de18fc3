//! Fills the report after the cutover: the receipt's instants on the run's time axis, the ledger's
//! verdict, the target's own times.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use harness::{
    application::Epoch,
    ledger::{self, Outcome},
    migration::{CLUSTER, Migration, NAMESPACE},
    target::InstanceHandle,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::Value;

use crate::{
    PAUSE, SLICE, is_unmanaged,
    report::{Mark, Report, Span, Step, UnmanagedWriter},
};

/// Stops the application, reads the rows back, and fills the report.
pub async fn judge(
    migration: Migration,
    target: InstanceHandle,
    report: &mut Report,
    epoch: Epoch,
) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(migration.plane.admin(), NAMESPACE);
    let receipt = maps
        .get(&format!("cutover-{CLUSTER}-receipt"))
        .await
        .context("reading the receipt")?;
    report.receipt = receipt.data.unwrap_or_default();
    let axis = Axis::new(epoch);
    let promotion_times = target.promotion_times();
    let span = |from: Option<tokio::time::Instant>, to: Option<tokio::time::Instant>| {
        Some(Span {
            from: epoch.since_epoch(from?),
            to: epoch.since_epoch(to?),
        })
    };
    report.promoting = span(promotion_times.requested, promotion_times.primary);
    // From the promotion on, a restart by CNPG is pending, and no client can be accepted until the
    // pod is in its Service again.
    report.restarting = promotion_times
        .restart_began
        .and_then(|_| span(promotion_times.primary, promotion_times.serving));
    let fenced = steps(report, &axis)?;

    let topology = migration.topology(&target, Some(fenced));
    let Migration {
        mut application,
        source,
        ..
    } = migration;
    let attempts = application.stop().await?;
    let (on_target, on_source) = harness::migration::rows(&source, &target).await?;
    report.verdict = ledger::judge(&attempts, &on_target, &on_source, &topology, PAUSE);
    report.series = ledger::series(&attempts, &topology, SLICE);
    // Gaps are those of the application only: the unmanaged writer reconnects on its own.
    let (by_application, _): (Vec<_>, Vec<_>) = attempts
        .iter()
        .cloned()
        .partition(|a| !is_unmanaged(&a.key.client));
    let noticed = ledger::judge(&by_application, &[], &[], &topology, PAUSE);
    (
        report.verdict.gap,
        report.verdict.gap_by_client,
        report.verdict.later_gaps,
    ) = (noticed.gap, noticed.gap_by_client, noticed.later_gaps);
    report.errors = Some(
        by_application
            .iter()
            .filter(|a| !matches!(a.outcome, Outcome::Acknowledged(_)))
            .count(),
    );
    let by_unmanaged: Vec<_> = attempts
        .iter()
        .filter(|a| is_unmanaged(&a.key.client) && matches!(a.outcome, Outcome::Acknowledged(_)))
        .collect();
    let lost = report
        .verdict
        .lost
        .iter()
        .filter(|key| is_unmanaged(&key.client))
        .count();
    report.unmanaged = Some(UnmanagedWriter {
        name: harness::migration::UNMANAGED.into(),
        acknowledged: by_unmanaged.len(),
        found: by_unmanaged.len() - lost,
        lost,
    });
    Ok(())
}

/// Converts wall-clock time to the run's time axis.
struct Axis {
    wall: Timestamp,
    at: Duration,
}

impl Axis {
    fn new(epoch: Epoch) -> Self {
        Self {
            wall: Timestamp::now(),
            at: epoch.elapsed(),
        }
    }

    fn since_epoch(&self, instant: Timestamp) -> Duration {
        self.at
            .saturating_sub(self.wall.duration_since(instant).unsigned_abs())
    }
}

/// Adds the journal's instants as steps; returns when the source was verified to be down.
fn steps(report: &mut Report, axis: &Axis) -> Result<Duration> {
    let journal: BTreeMap<String, Value> = serde_json::from_str(
        report
            .receipt
            .get("journal.json")
            .context("the receipt has no journal")?,
    )?;
    let instant = |key: &str| -> Result<Duration> {
        let fact = journal
            .get(key)
            .with_context(|| format!("the journal has no {key}"))?;
        let text = fact
            .as_str()
            .or_else(|| fact.get("at")?.as_str())
            .with_context(|| format!("{key} has no instant"))?;
        Ok(axis.since_epoch(text.parse()?))
    };
    let (blocked, marker, fenced, promotion) = (
        instant("blocked")?,
        instant("marker")?,
        instant("fenced")?,
        instant("promotion")?,
    );
    let (promoted, routed, serving) = (
        instant("promoted")?,
        instant("routed")?,
        instant("serving")?,
    );
    let by_service = journal
        .get("started")
        .and_then(|start| start.get("route"))
        .and_then(Value::as_str)
        == Some("service");
    let [block, route, serve] = if by_service {
        [
            "pause poolers, block writes",
            "repoint the Services",
            "resume the poolers",
        ]
    } else {
        [
            "block writes, end sessions",
            "change the configuration",
            "start the application's pods",
        ]
    };
    let promote = match report.restarting {
        Some(_) => "promote, restart, first write",
        None => "promote, first write",
    };
    let named = [
        (block, blocked, marker),
        ("replay up to the marker", marker, fenced),
        ("stop the source and verify it", fenced, promotion),
        (promote, promotion, promoted),
        (route, promoted, routed),
        (serve, routed, serving),
    ];
    report.steps = named
        .map(|(name, from, to)| Step {
            name: name.into(),
            from,
            to: Some(to),
        })
        .into();
    report.marks = [
        ("DOWNTIME BEGINS", blocked),
        ("POINT OF NO RETURN", promotion),
        ("DOWNTIME ENDS", serving),
    ]
    .map(|(name, at)| Mark {
        name: name.into(),
        at,
    })
    .into();
    (report.block, report.first_write) = (Some(blocked), Some(promoted));
    Ok(promotion)
}
