//! What is asked before the first effect, and again just before the block: the same checks that validate-replication lists.

use std::collections::BTreeMap;

use shared::{
    config::Name,
    error::Result,
    kubernetes::{cnpg::Cluster, zalando::FROZEN},
    postgres::{Source, Target},
    readiness::{
        Finding,
        objects::{self, ClusterSeen, PatroniSeen},
        servers::{self, Server},
    },
};

use crate::{
    observation::{Observation, Sight},
    settings::Settings,
};

/// Everything that could stand against a cut. `started`: our own freeze is in place and must not count as somebody else's.
///
/// # Errors
/// The databases'.
pub async fn findings(
    seen: &Observation,
    cluster: &Cluster,
    source: Option<&Source>,
    target: Option<&Target>,
    settings: &Settings,
    started: bool,
) -> Result<Vec<Finding>> {
    let mut findings = of_objects(seen, cluster, settings, started);
    findings.extend(of_servers(seen, settings));
    if let (Some(source), Some(target)) = (source, target) {
        let (of_source, of_target, prepared, backups) = futures::try_join!(
            shared::postgres::settings::hot_standby(source),
            shared::postgres::settings::hot_standby(target),
            source.prepared_transactions(),
            source.base_backups()
        )?;
        findings.push(servers::hot_standby(&of_source, &of_target));
        findings.push(servers::no_prepared_transactions(&prepared));
        findings.push(servers::no_base_backup(&backups));
    }
    Ok(findings)
}

fn of_objects(seen: &Observation, cluster: &Cluster, settings: &Settings, started: bool) -> Vec<Finding> {
    let superuser = cluster.superuser();
    let cluster = ClusterSeen {
        follows: seen.follows,
        ..cluster.seen()
    };
    let patroni = match &seen.patroni {
        Sight::Answers(patroni) => PatroniSeen {
            leader: patroni.leader.clone(),
            unreachable: None,
            paused: patroni.paused == Some(true),
        },
        Sight::Silent(why) => PatroniSeen {
            leader: None,
            unreachable: Some(why.clone()),
            paused: false,
        },
    };
    let names: Vec<String> = settings.apps.0.iter().map(Name::to_string).collect();
    let missing: Vec<String> = names.iter().filter(|name| !seen.apps.contains_key(*name)).cloned().collect();
    let data: BTreeMap<String, String> = seen
        .config
        .values
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
        .collect();
    let mut findings = vec![
        objects::replica_mode(&cluster),
        objects::one_instance(&cluster),
        objects::not_fenced(&cluster),
        objects::superuser_kept(&superuser),
        objects::wal_archive(&cluster),
        objects::patroni(&patroni),
        objects::deployments(&names, &missing),
        objects::app_config(&seen.config.name, &data, &settings.app_config_target.0),
    ];
    if !started {
        findings.push(objects::operator_not_frozen(seen.controller.as_deref(), FROZEN));
    }
    findings
}

fn of_servers(seen: &Observation, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Sight::Answers(source) = &seen.source {
        findings.push(servers::source_is_primary(&Server {
            identity: source.identity,
            in_recovery: !source.primary,
        }));
        findings.push(servers::source_writable(if source.read_only { "on" } else { "off" }));
    }
    if let Sight::Answers(target) = &seen.target {
        findings.push(servers::target_in_recovery(&Server {
            identity: target.identity,
            in_recovery: target.in_recovery,
        }));
        findings.push(servers::streaming(&target.replay));
        findings.push(servers::replay_not_paused(&target.replay));
    }
    if let (Sight::Answers(source), Sight::Answers(target)) = (&seen.source, &seen.target) {
        findings.push(servers::system_identifier(&source.identity, &target.identity));
        findings.push(servers::major_version(&source.identity, &target.identity));
        findings.push(servers::timeline(&source.identity, &target.identity));
        if let Some(insert) = source.insert {
            findings.push(servers::lag(insert, &target.replay, settings.lag_bytes_max));
        }
    }
    findings
}
