//! What a dry run prints: the plan with its names and numbers, and what it would refuse for.

use shared::readiness::Verdict;

use crate::{observation::Observation, settings::Settings};

/// The lines of the plan.
pub fn lines(seen: &Observation, settings: &Settings) -> Vec<String> {
    let (source, target) = (&settings.source_cluster, &settings.target_cluster);
    let counts: Vec<String> = seen.apps.iter().map(|(name, app)| format!("{name} {}", app.wanted)).collect();
    let config: Vec<String> = settings
        .app_config_target
        .0
        .iter()
        .map(|(key, value)| {
            format!(
                "{key} {} → {value}",
                seen.config.values.get(key).cloned().flatten().unwrap_or_else(|| "(absent)".into())
            )
        })
        .collect();
    let clients = seen.source.answer().map_or(0, |source| source.clients.len());
    let leader = seen
        .patroni
        .answer()
        .and_then(|patroni| patroni.leader.clone())
        .unwrap_or_else(|| "(none)".into());
    let mut lines: Vec<String> = seen
        .readiness
        .iter()
        .map(|finding| format!("{} {finding}", mark(finding.verdict)))
        .collect();
    lines.extend(
        [
            format!("1. record the identities and the replica counts: {}", counts.join(", ")),
            format!("2. freeze the Zalando operator for {source} (annotation acid.zalan.do/controller)"),
            "3. CHECKPOINT on the source, restartpoint on the target".to_owned(),
            format!("4. DOWNTIME BEGINS: pause and read-only through the patroni of {leader}, the application to 0, end {clients} client sessions"),
            "5. wait until the target has replayed the marker".to_owned(),
            format!("6. stop the server of {leader} cleanly; prove from the target's pg_control that its last record has arrived"),
            format!("7. POINT OF NO RETURN: record the promotion, then set spec.replica.enabled: false on {target}"),
            format!("8. wait for the promotion and for CNPG's restart of {target}, then prove a write"),
            format!("9. {}: {}; scale the application up: DOWNTIME ENDS", seen.config.name, config.join(", ")),
            format!("10. write the receipt cutover-{target}-receipt; {source} stays stopped, paused and frozen"),
            format!("way back: by itself until 7, at the latest {} s after the block", settings.cutover_max_seconds),
        ]
        .map(|line| format!("would {line}")),
    );
    lines
}

fn mark(verdict: Verdict) -> char {
    match verdict {
        Verdict::Ok => '✓',
        Verdict::Warning | Verdict::NotYet => '!',
        Verdict::Misconfigured | Verdict::Blocker => '✗',
    }
}
