//! What the cut was: the receipt's instants on the run's time axis, the ledger against the rows,
//! the target's own times.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use harness::{
    application::Origin,
    ledger::{self, Outcome},
    migration::{CLUSTER, Migration, NAMESPACE},
    target::InstanceHandle,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::Value;

use crate::{
    PAUSE, SLICE, is_forgotten,
    report::{Forgotten, Mark, Report, Span, Step},
};

/// Stops the application, reads the rows back, and fills the report.
pub async fn judge(
    migration: Migration,
    target: InstanceHandle,
    report: &mut Report,
    origin: Origin,
) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(migration.plane.admin(), NAMESPACE);
    let receipt = maps
        .get(&format!("cutover-{CLUSTER}-receipt"))
        .await
        .context("reading the receipt")?;
    report.receipt = receipt.data.unwrap_or_default();
    let axis = Axis::new(origin);
    let moments = target.moments();
    let span = |from: Option<tokio::time::Instant>, to: Option<tokio::time::Instant>| {
        Some(Span {
            from: origin.place(from?),
            to: origin.place(to?),
        })
    };
    report.promoting = span(moments.asked, moments.primary);
    // From primary on CNPG owes the restart, and until the pod is in its Service again nobody can
    // be let in.
    report.restarting = moments
        .restart_began
        .and_then(|_| span(moments.primary, moments.serving));
    let fenced = steps(report, &axis)?;

    let cut = migration.cut(&target, Some(fenced));
    let Migration {
        mut application,
        source,
        ..
    } = migration;
    let attempts = application.stop().await?;
    let (on_target, on_source) = harness::migration::rows(&source, &target).await?;
    report.verdict = ledger::judge(&attempts, &on_target, &on_source, &cut, PAUSE);
    report.series = ledger::series(&attempts, &cut, SLICE);
    // The gaps are the application's: the forgotten writer comes and goes as it is let.
    let (of_application, _): (Vec<_>, Vec<_>) = attempts
        .iter()
        .cloned()
        .partition(|a| !is_forgotten(&a.key.client));
    let felt = ledger::judge(&of_application, &[], &[], &cut, PAUSE);
    (
        report.verdict.gap,
        report.verdict.gap_by_client,
        report.verdict.later_gaps,
    ) = (felt.gap, felt.gap_by_client, felt.later_gaps);
    report.errors = Some(
        of_application
            .iter()
            .filter(|a| !matches!(a.outcome, Outcome::Acknowledged(_)))
            .count(),
    );
    let of_forgotten: Vec<_> = attempts
        .iter()
        .filter(|a| is_forgotten(&a.key.client) && matches!(a.outcome, Outcome::Acknowledged(_)))
        .collect();
    let lost = report
        .verdict
        .lost
        .iter()
        .filter(|key| is_forgotten(&key.client))
        .count();
    report.forgotten = Some(Forgotten {
        name: harness::migration::FORGOTTEN.into(),
        acknowledged: of_forgotten.len(),
        found: of_forgotten.len() - lost,
        lost,
    });
    Ok(())
}

/// Wall clock to the run's axis.
struct Axis {
    wall: Timestamp,
    at: Duration,
}

impl Axis {
    fn new(origin: Origin) -> Self {
        Self {
            wall: Timestamp::now(),
            at: origin.elapsed(),
        }
    }

    fn place(&self, instant: Timestamp) -> Duration {
        self.at
            .saturating_sub(self.wall.duration_since(instant).unsigned_abs())
    }
}

/// The journal's instants as steps; returns when the source was proved to be down.
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
        Ok(axis.place(text.parse()?))
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
    let [block, route, serve] = match by_service {
        true => [
            "pause poolers, block writes",
            "the Service leads to the target",
            "poolers go on",
        ],
        false => [
            "block writes, end sessions",
            "route",
            "application's pods start",
        ],
    };
    let promote = match report.restarting {
        Some(_) => "promotion, restart, first write",
        None => "promotion, first write",
    };
    let named = [
        (block, blocked, marker),
        ("target replays the marker", marker, fenced),
        ("stop the source and prove it", fenced, promotion),
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
