//! What is asked before the first effect, and again just before the block: the same checks that
//! validate-replication lists.

use std::collections::BTreeMap;

use job::error::Result;
use platform::{
    kubernetes::{cnpg::Cluster, zalando::Postgresql},
    postgres::{Source, Target, read_secret},
};
use protocol::{
    checks::{
        Finding,
        objects::{self, PatroniSeen},
        route::{self as by_route, Pooler},
        servers,
    },
    controllers::suspension::SUSPENDED,
    route::Route,
    snapshot::{ServerState, kubernetes::ClusterState},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::settings::Settings;
use protocol::{
    controllers::suspension::Suspension,
    snapshot::{PoolerState, Reachability, Snapshot},
};

/// What the checks look at beside the observation.
pub struct Sides<'a> {
    /// The source's resource.
    pub postgresql: &'a Postgresql,
    /// The target's.
    pub cluster: &'a Cluster,
    /// Sessions, where they are open.
    pub sessions: Option<(&'a Source, &'a Target)>,
    /// Our own freeze is in place and must not count as somebody else's.
    pub started: bool,
}

/// Everything that could stand against a cut.
///
/// # Errors
/// The databases'.
pub async fn findings(
    seen: &Snapshot,
    route: Route,
    sides: &Sides<'_>,
    settings: &Settings,
) -> Result<Vec<Finding>> {
    let mut findings = of_objects(seen, route, sides, settings);
    findings.extend(of_servers(seen, settings));
    if let Some((source, target)) = sides.sessions {
        let (of_source, of_target, prepared, backups, tablespaces) = futures::try_join!(
            platform::postgres::settings::hot_standby(source),
            platform::postgres::settings::hot_standby(target),
            source.prepared_transactions(),
            source.base_backups(),
            source.tablespaces()
        )?;
        findings.push(servers::hot_standby(&of_source, &of_target));
        findings.push(servers::no_prepared_transactions(&prepared));
        findings.push(servers::no_base_backup(&backups));
        findings.push(servers::no_tablespaces(&tablespaces));
        if route == Route::Service {
            let owner = sides.cluster.owner();
            let stored = source.password_hash(&owner).await?;
            let kept = settings
                .owner_hash_file
                .as_ref()
                .and_then(|file| read_secret(file).ok());
            findings.push(by_route::owner_hash(
                &owner,
                stored.as_ref().map(SecretString::expose_secret),
                kept.as_ref().map(SecretString::expose_secret),
            ));
        }
    }
    Ok(findings)
}

fn of_objects(
    seen: &Snapshot,
    route: Route,
    sides: &Sides<'_>,
    settings: &Settings,
) -> Vec<Finding> {
    let superuser = sides.cluster.superuser();
    let cluster = ClusterState {
        follows: seen.follows,
        ..sides.cluster.seen()
    };
    let patroni = match &seen.patroni {
        Reachability::Up(patroni) => PatroniSeen {
            leader: patroni.leader.clone(),
            unreachable: None,
            paused: patroni.paused == Some(true),
        },
        Reachability::Unreachable(failure) => PatroniSeen {
            leader: None,
            unreachable: Some(failure.to_string()),
            paused: false,
        },
    };
    let mut findings = vec![
        objects::replica_mode(&cluster),
        objects::one_instance(&cluster),
        objects::not_fenced(&cluster),
        objects::superuser_kept(&superuser),
        objects::wal_archive(&cluster),
        objects::patroni(&patroni),
    ];
    match route {
        Route::Config => findings.extend(of_application(seen, settings)),
        Route::Service => findings.extend(of_doors(seen, sides.postgresql, settings)),
    }
    if !sides.started {
        let ours = Suspension::zalando_operator(&settings.source_cluster, None).key();
        let operator = seen
            .suspensions
            .iter()
            .find(|standing| standing.now.key() == ours);
        let controller = operator.and_then(|standing| standing.now.original.as_str());
        findings.push(objects::operator_not_frozen(controller, SUSPENDED));
    }
    findings
}

fn of_application(seen: &Snapshot, settings: &Settings) -> [Finding; 2] {
    let names: Vec<String> = settings.apps.0.iter().map(ToString::to_string).collect();
    let values = seen.config.values.iter();
    let data: BTreeMap<String, String> = values
        .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
        .collect();
    [
        objects::deployments(&names, &[]),
        objects::app_config(&seen.config.name, &data, &settings.app_config_target.0),
    ]
}

fn of_doors(seen: &Snapshot, postgresql: &Postgresql, settings: &Settings) -> [Finding; 3] {
    let pooler = |seen: &protocol::snapshot::PoolerPodState| Pooler {
        pod: seen.pod.clone(),
        paused: match &seen.state {
            Reachability::Up(state) => Ok(*state != PoolerState::Serving),
            Reachability::Unreachable(failure) => Err(failure.to_string()),
        },
    };
    let poolers: Vec<Pooler> = seen.poolers.iter().map(pooler).collect();
    let mode = postgresql
        .spec
        .connection_pooler
        .as_ref()
        .and_then(|pooler| pooler.mode.as_deref());
    let names: Vec<String> = settings.services().into_keys().collect();
    [
        by_route::poolers(&poolers),
        by_route::pool_mode(mode.filter(|_| !poolers.is_empty())),
        by_route::services(&names, &seen.services),
    ]
}

fn of_servers(seen: &Snapshot, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Reachability::Up(source) = &seen.source {
        findings.push(servers::source_is_primary(&ServerState {
            identity: source.identity,
            in_recovery: !source.primary,
        }));
        findings.push(servers::source_writable(if source.read_only {
            "on"
        } else {
            "off"
        }));
    }
    if let Reachability::Up(target) = &seen.target {
        findings.push(servers::target_in_recovery(&ServerState {
            identity: target.identity,
            in_recovery: target.in_recovery,
        }));
        findings.push(servers::streaming(&target.replay));
        findings.push(servers::replay_not_paused(&target.replay));
        findings.push(servers::restart_after_promotion(
            &target.running.archive_mode,
        ));
    }
    if let (Reachability::Up(source), Reachability::Up(target)) = (&seen.source, &seen.target) {
        findings.push(servers::system_identifier(
            &source.identity,
            &target.identity,
        ));
        findings.push(servers::major_version(&source.identity, &target.identity));
        findings.push(servers::timeline(&source.identity, &target.identity));
        if let Some(insert) = source.insert {
            findings.push(servers::lag(insert, &target.replay, settings.lag_bytes_max));
        }
    }
    findings
}
