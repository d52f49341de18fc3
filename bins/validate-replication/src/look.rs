//! One look at everything: both servers, Patroni, and the objects around them.

use std::collections::BTreeMap;

use job::{
    context::Run,
    error::{ErrorKind, Result},
    kubernetes,
};
use kube::ResourceExt as _;
use platform::{
    kubernetes::{
        cnpg::{self, Cluster},
        workloads,
        zalando::{self, Postgresql},
    },
    patroni::{self, Patroni},
    postgres::{in_recovery, settings::hot_standby},
};
use protocol::{
    checks::{Finding, objects::PatroniSeen},
    controllers::suspension::CONTROLLER,
    snapshot::{
        ServerState,
        kubernetes::{ClusterState, SuperuserAccess},
        settings::{HotStandby, SuperuserLogins},
        target::Replay,
    },
    wal::Lsn,
};

use crate::{catalog, sessions::Sides, settings::Settings};

/// Roles that CNPG looks for on the primary and that must have come with the copy
/// (docs/operators/cloudnative-pg.md#roles).
pub const CNPG_ROLES: [&str; 3] = [
    "streaming_replica",
    "cnpg_pooler_pgbouncer",
    "cnpg_metrics_exporter",
];

/// What the servers say.
#[derive(Clone, Debug)]
pub struct Servers {
    /// The source.
    pub source: ServerState,
    /// Its insert LSN, read before the target's replay; None on a standby.
    pub source_lsn: Option<Lsn>,
    /// What of it is flushed, and so sent.
    pub source_flushed: Option<Lsn>,
    /// The target.
    pub target: ServerState,
    /// Where the target stands.
    pub replay: Replay,
    /// State of the walsender at the source that serves the target.
    pub walsender: Option<String>,
    /// The five settings, source's and target's.
    pub hot_standby: (HotStandby, HotStandby),
    /// default_transaction_read_only of the source.
    pub read_only: String,
    /// Prepared transactions at the source.
    pub prepared: Vec<String>,
    /// Base backups that the source is giving.
    pub base_backups: Vec<String>,
    /// Tablespaces of the source.
    pub tablespaces: Vec<String>,
    /// WAL file that the source's archiver fails at.
    pub archiving_fails: Option<String>,
    /// recovery_min_apply_delay of the target.
    pub apply_delay: String,
    /// archive_mode of the target.
    pub archive_mode: String,
    /// Whether our logins are superusers.
    pub superuser: SuperuserLogins,
    /// [`CNPG_ROLES`] that the target lacks.
    pub roles_missing: Vec<String>,
}

/// What the objects say.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The Cluster.
    pub cluster: ClusterState,
    /// What becomes of the superuser.
    pub superuser: SuperuserAccess,
    /// The role whose password CNPG sets at the promotion.
    pub owner: String,
    /// How the source's poolers hand out connections, where that is set.
    pub pool_mode: Option<String>,
    /// The CR's annotation acid.zalan.do/controller.
    pub controller: Option<String>,
    /// Patroni.
    pub patroni: PatroniSeen,
    /// Words of APPS that no workload answers to.
    pub apps_missing: Vec<String>,
    /// Workloads that are not fully up, in words.
    pub apps_lacking: Vec<String>,
    /// The application's ConfigMap, by its real name, or why there is none.
    pub config: Result<(String, BTreeMap<String, String>), Finding>,
}

/// The two objects that everything hangs on.
pub async fn resources(run: &Run, settings: &Settings) -> Result<(Postgresql, Cluster)> {
    let postgresqls = zalando::postgresqls(&run.client, &run.namespace);
    let clusters = cnpg::clusters(&run.client, &run.namespace);
    let (source, target) = (&settings.source_cluster, &settings.target_cluster);
    let target = async {
        let cluster = kubernetes::get(&clusters, target).await?;
        cluster.ok_or_else(|| {
            kubernetes::missing(&clusters, target).hint(
                "apply the manifest that prepare-zalando rendered, or correct TARGET_CLUSTER in \
                 the ConfigMap replica-migration",
            )
        })
    };
    futures::try_join!(
        kubernetes::required(&postgresqls, source, "SOURCE_CLUSTER"),
        target
    )
}

/// Asks both servers, the source's position before the target's.
pub async fn servers(sides: &Sides, settings: &Settings) -> Result<Servers> {
    let Sides { source, target } = sides;
    let (
        of_source,
        standby,
        hot_source,
        read_only,
        prepared,
        base_backups,
        archiving_fails,
        walsender,
        super_source,
        tablespaces,
    ) = futures::try_join!(
        source.identity(),
        in_recovery(source),
        hot_standby(source),
        catalog::read_only_by_default(source),
        source.prepared_transactions(),
        source.base_backups(),
        catalog::archiving_fails(source),
        catalog::walsender(source, &settings.target_cluster),
        catalog::superuser(source),
        source.tablespaces()
    )?;
    let (source_lsn, source_flushed) = match standby {
        true => (None, None),
        false => (
            Some(source.insert_lsn().await?),
            Some(catalog::flush_lsn(source).await?),
        ),
    };
    let (
        of_target,
        target_standby,
        replay,
        hot_target,
        apply_delay,
        running,
        super_target,
        roles_missing,
    ) = futures::try_join!(
        target.identity(),
        target.in_recovery(),
        target.replay(),
        hot_standby(target),
        catalog::apply_delay(target),
        target.running(),
        catalog::superuser(target),
        catalog::roles_missing(target, &CNPG_ROLES)
    )?;
    Ok(Servers {
        source: ServerState {
            identity: of_source,
            in_recovery: standby,
        },
        source_lsn,
        source_flushed,
        target: ServerState {
            identity: of_target,
            in_recovery: target_standby,
        },
        replay,
        walsender,
        hot_standby: (hot_source, hot_target),
        read_only,
        prepared,
        base_backups,
        tablespaces,
        archiving_fails,
        apply_delay,
        archive_mode: running.archive_mode,
        superuser: SuperuserLogins {
            source: super_source,
            target: super_target,
        },
        roles_missing,
    })
}

/// Reads the objects.
pub async fn objects(run: &Run, settings: &Settings, rest: &Patroni) -> Result<Objects> {
    let (resources, patroni, apps, config) = futures::join!(
        resources(run, settings),
        patroni_seen(run, settings, rest),
        apps(run, settings),
        workloads::find_config(&run.client, &run.namespace, &settings.app_configmap)
    );
    let ((postgresql, cluster), (apps_missing, apps_lacking)) = (resources?, apps?);
    let config = match config.and_then(workloads::changeable) {
        Ok(map) => Ok((map.name_any(), map.data.unwrap_or_default())),
        Err(error) if error.kind() == ErrorKind::Config => {
            Err(crate::checks::no_config(&settings.app_configmap, &error))
        }
        Err(error) => return Err(error),
    };
    Ok(Objects {
        cluster: cluster.seen(),
        superuser: cluster.superuser(),
        owner: cluster.owner(),
        pool_mode: postgresql
            .spec
            .connection_pooler
            .as_ref()
            .and_then(|pooler| pooler.mode.clone()),
        controller: postgresql.annotations().get(CONTROLLER).cloned(),
        patroni: patroni?,
        apps_missing,
        apps_lacking,
        config,
    })
}

/// The leader's own word; a leader that does not answer is part of what is seen.
async fn patroni_seen(run: &Run, settings: &Settings, rest: &Patroni) -> Result<PatroniSeen> {
    let members = patroni::members(&run.client, &run.namespace, &settings.source_cluster).await?;
    let Some(leader) = members.iter().find(|member| member.leader) else {
        return Ok(PatroniSeen {
            leader: None,
            unreachable: None,
            paused: false,
        });
    };
    let (paused, unreachable) = match rest.cluster(leader).await {
        Ok(view) => (view.pause, None),
        Err(error) => (false, Some(error.to_string())),
    };
    Ok(PatroniSeen {
        leader: Some(leader.name.clone()),
        unreachable,
        paused,
    })
}

/// The words of APPS that nothing answers to, and the workloads that lack pods.
async fn apps(run: &Run, settings: &Settings) -> Result<(Vec<String>, Vec<String>)> {
    let (found, missing) = workloads::find(&run.client, &run.namespace, &settings.apps.0).await?;
    let replicas = found
        .iter()
        .map(|(name, workload)| (name, &workload.replicas));
    let lacking = replicas
        .filter(|(_, replicas)| replicas.wanted == 0 || replicas.ready < replicas.wanted)
        .map(|(name, replicas)| format!("{name} {} of {}", replicas.ready, replicas.wanted));
    Ok((missing, lacking.collect()))
}
