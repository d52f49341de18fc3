//! What a dry run prints: the plan with its names and numbers, and what it would refuse for.

use protocol::{
    checks,
    finding::{listed, render},
    record::receipt_name as receipt_of_cut,
    route::Route,
};

use crate::settings::Settings;
use protocol::{decide, snapshot::Snapshot};

/// The lines of the plan.
pub fn lines(seen: &Snapshot, settings: &Settings) -> Vec<String> {
    let (source, target) = (&settings.source_cluster, &settings.target_cluster);
    let route = decide::route(&settings.limits(), seen);
    let leader = seen
        .patroni
        .answer()
        .and_then(|patroni| patroni.leader.clone());
    let leader = leader.unwrap_or_else(|| "(none)".into());
    let findings = render(&checks::all(seen, &settings.limits()));
    let steps = [
        format!(
            "1. record the identities and the replica counts: {}",
            counts(seen)
        ),
        format!("2. keep still: {}", kept_still(seen)),
        "3. CHECKPOINT on the source, restartpoint on the target".to_owned(),
        format!("4. DOWNTIME BEGINS: {}", block(seen, route, &leader)),
        "5. wait until the target has replayed the marker".to_owned(),
        format!(
            "6. stop the server of {leader} cleanly; prove from the target's pg_control that its \
             last record has arrived"
        ),
        format!(
            "7. POINT OF NO RETURN: record the promotion, then set spec.replica.enabled: false on \
             {target}"
        ),
        format!(
            "8. wait for the promotion{}, then prove a write",
            restart(seen, target)
        ),
        format!("9. {}: DOWNTIME ENDS", routing(seen, settings, route)),
        format!(
            "10. give back what was kept still, write the receipt {}; {source} stays stopped, \
             paused and frozen",
            receipt_of_cut(target)
        ),
        format!(
            "way back: by itself until 7, at the latest {} s after the block",
            settings.cutover_max_seconds
        ),
    ];
    findings
        .into_iter()
        .chain(steps.map(|line| format!("would {line}")))
        .collect()
}

/// Only a target that archives while it follows is restarted.
fn restart(seen: &Snapshot, target: &str) -> String {
    let owed = seen
        .target
        .answer()
        .is_some_and(|target| target.running.pending_restart_after_promotion());
    if owed {
        format!(" and for CNPG's restart of {target}")
    } else {
        String::new()
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

fn kept_still(seen: &Snapshot) -> String {
    let kept = seen
        .suspensions
        .iter()
        .map(|standing| match standing.now.permanent {
            true => format!("{} (stays so)", standing.now.key()),
            false => standing.now.key(),
        });
    kept.collect::<Vec<_>>().join(", ")
}

fn block(seen: &Snapshot, route: Route, leader: &str) -> String {
    let clients = seen
        .source
        .answer()
        .map_or(0, |source| source.clients.len());
    let how = match route {
        Route::Config => "the application to 0".to_owned(),
        Route::Service => {
            let pods: Vec<String> = seen
                .poolers
                .iter()
                .map(|pooler| pooler.pod.clone())
                .collect();
            format!(
                "PAUSE at {}",
                if pods.is_empty() {
                    "no pooler".to_owned()
                } else {
                    listed(&pods)
                }
            )
        }
    };
    format!(
        "{how}, pause and read-only through the patroni of {leader}, end {clients} client sessions"
    )
}

fn routing(seen: &Snapshot, settings: &Settings, route: Route) -> String {
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
                "{}: {}; scale the application up",
                seen.config.name,
                changes.collect::<Vec<_>>().join(", ")
            )
        }
        Route::Service => {
            let services = settings.services();
            let turned = services
                .iter()
                .filter(|(name, _)| seen.services.contains_key(*name))
                .map(|(name, selector)| {
                    let labels: Vec<String> = selector
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"))
                        .collect();
                    format!("{name} → {}", labels.join(","))
                });
            format!(
                "turn the Services {}; RESUME",
                turned.collect::<Vec<_>>().join(", ")
            )
        }
    }
}
