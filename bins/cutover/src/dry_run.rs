//! What a dry run prints: the findings, and the plan with its names and numbers.

use protocol::{
    checks, decide,
    finding::{listed, render},
    record::receipt_name as receipt_of_cut,
    route::Route,
    snapshot::Snapshot,
    steps::{self, Plan},
};

use crate::settings::Settings;

/// The lines of the plan.
pub fn lines(seen: &Snapshot, settings: &Settings) -> Vec<String> {
    let findings = render(&checks::all(seen, &settings.limits()));
    let steps = steps::plan(&plan(seen, settings));
    findings
        .into_iter()
        .chain(steps.into_iter().map(|line| format!("would {line}")))
        .collect()
}

/// The names and numbers of the plan.
fn plan(seen: &Snapshot, settings: &Settings) -> Plan {
    let route = decide::route(&settings.limits(), seen);
    let patroni = seen.patroni.answer();
    let leader = patroni.and_then(|patroni| patroni.leader.clone());
    let source = seen.source.answer();
    let target = seen.target.answer();
    Plan {
        source: settings.source_cluster.to_string(),
        target: settings.target_cluster.to_string(),
        route,
        leader: leader.unwrap_or_else(|| "(none)".into()),
        replicas: counts(seen),
        suspensions: suspensions(seen),
        poolers: poolers(seen),
        sessions: source.map_or(0, |source| source.clients.len()),
        // Only a target that archives while it follows is restarted.
        target_pending_restart: target
            .is_some_and(|target| target.running.pending_restart_after_promotion()),
        repoint: repoint(seen, settings, route),
        receipt: receipt_of_cut(&settings.target_cluster),
        block_max_seconds: settings.cutover_max_seconds,
    }
}

fn counts(seen: &Snapshot) -> String {
    let counts: Vec<String> = seen
        .apps
        .iter()
        .map(|(name, app)| format!("{name} {}", app.wanted))
        .collect();
    counts.join(", ")
}

fn suspensions(seen: &Snapshot) -> String {
    let fields = seen.suspensions.iter().map(|standing| {
        let permanent = if standing.now.permanent {
            " (permanently)"
        } else {
            ""
        };
        format!("{}{permanent}", standing.now.key())
    });
    fields.collect::<Vec<_>>().join(", ")
}

fn poolers(seen: &Snapshot) -> String {
    let pods: Vec<String> = seen
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

fn repoint(seen: &Snapshot, settings: &Settings, route: Route) -> String {
    match route {
        Route::Config => {
            let changes = settings.app_config_target.0.iter().map(|(key, value)| {
                let now = seen.config.values.get(key).cloned().flatten();
                format!(
                    "{key} {} → {value}",
                    now.unwrap_or_else(|| "(absent)".into())
                )
            });
            format!(
                "{}: {}",
                seen.config.name,
                changes.collect::<Vec<_>>().join(", ")
            )
        }
        Route::Service => {
            let services = settings.services();
            let repointed = services
                .iter()
                .filter(|(name, _)| seen.services.contains_key(*name))
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
