//! What a dry run prints: the findings, and the plan with its names and numbers.

use protocol::{
    checks, decide,
    finding::{listed, render},
    record::receipt_name,
    route::Route,
    snapshot::Snapshot,
    steps::{self, Plan},
};

use crate::settings::Settings;

/// The lines of the plan.
pub fn lines(snapshot: &Snapshot, settings: &Settings) -> Vec<String> {
    let findings = render(&checks::all(snapshot, &settings.limits()));
    let steps = steps::plan(&plan(snapshot, settings));
    findings
        .into_iter()
        .chain(steps.into_iter().map(|line| format!("would {line}")))
        .collect()
}

/// The names and numbers of the plan.
fn plan(snapshot: &Snapshot, settings: &Settings) -> Plan {
    let route = decide::route(&settings.limits(), snapshot);
    let patroni = snapshot.patroni.answer();
    let leader = patroni.and_then(|patroni| patroni.leader.clone());
    let source = snapshot.source.answer();
    let target = snapshot.target.answer();
    Plan {
        source: settings.source_cluster.to_string(),
        target: settings.target_cluster.to_string(),
        route,
        leader: leader.unwrap_or_else(|| "(none)".into()),
        replicas: counts(snapshot),
        suspensions: suspensions(snapshot),
        poolers: poolers(snapshot),
        sessions: source.map_or(0, |source| source.clients.len()),
        // Only a target that archives while it follows is restarted.
        target_pending_restart: target
            .is_some_and(|target| target.running.pending_restart_after_promotion()),
        repoint: repoint(snapshot, settings, route),
        receipt: receipt_name(&settings.target_cluster),
        block_max_seconds: settings.cutover_max_seconds,
    }
}

fn counts(snapshot: &Snapshot) -> String {
    let counts: Vec<String> = snapshot
        .apps
        .iter()
        .map(|(name, app)| format!("{name} {}", app.wanted))
        .collect();
    counts.join(", ")
}

fn suspensions(snapshot: &Snapshot) -> String {
    let fields = snapshot.suspensions.iter().map(|standing| {
        let permanent = if standing.now.permanent {
            " (permanently)"
        } else {
            ""
        };
        format!("{}{permanent}", standing.now.key())
    });
    fields.collect::<Vec<_>>().join(", ")
}

fn poolers(snapshot: &Snapshot) -> String {
    let pods: Vec<String> = snapshot
        .poolers
        .iter()
        .map(|pooler| pooler.pod.clone())
        .collect();
    if pods.is_empty() {
        "no pooler".to_owned()
    } else {
        listed(&pods)
    }
}

fn repoint(snapshot: &Snapshot, settings: &Settings, route: Route) -> String {
    match route {
        Route::Config => {
            let changes = settings.app_config_target.0.iter().map(|(key, value)| {
                let now = snapshot.config.values.get(key).cloned().flatten();
                format!(
                    "{key} {} → {value}",
                    now.unwrap_or_else(|| "(absent)".into())
                )
            });
            format!(
                "{}: {}",
                snapshot.config.name,
                changes.collect::<Vec<_>>().join(", ")
            )
        }
        Route::Service => {
            let services = settings.services();
            let repointed = services
                .iter()
                .filter(|(name, _)| snapshot.services.contains_key(*name))
                .map(|(name, selector)| {
                    let labels: Vec<String> = selector
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"))
                        .collect();
                    format!("{name} → {}", labels.join(","))
                });
            format!("the Services {}", repointed.collect::<Vec<_>>().join(", "))
        }
    }
}
