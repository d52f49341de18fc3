//! Tests of the harness's target, on which other tests rely: a copy that cannot start and its
//! repair, promotion with and without a restart, passwords, fencing, and the application meanwhile.

use std::{sync::Arc, time::Duration};

use harness::{
    application::{Application, Epoch, Settings, rows},
    control_plane::ControlPlane,
    kubelet,
    ledger::{self, Key, Outcome, Topology},
    service::{Services, pooler::Pooler},
    source::{Source, SourceOptions},
    target::{InstanceHandle, Options, Target},
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "mastodon";
const SOURCE: &str = "mastodon-postgresql";
const SOON: Duration = Duration::from_secs(30);
/// The error of a pod that has Patroni's file locations, as the operator logs it.
const PATRONIS_HBA: &str = "could not load /home/postgres/pgdata/pgroot/data/pg_hba.conf";

struct Environment {
    plane: ControlPlane,
    source: Source,
    services: Arc<Services>,
    target: Target,
}

impl Environment {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
        plane.namespace(NAMESPACE).await.unwrap();
        let source = Source::start(
            &plane,
            SourceOptions {
                rows: 800,
                ..SourceOptions::default()
            },
        )
        .await
        .unwrap();
        let services = Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
            .await
            .unwrap();
        let services = Arc::new(services);
        let target = Target::start(Options {
            setup: plane.setup(),
            instance: Arc::clone(plane.instance()),
            client: plane.admin(),
            services: Arc::clone(&services),
            programs: kubelet::built().await.unwrap(),
            hidden: source
                .members()
                .iter()
                .map(|member| member.layout().home.clone())
                .collect(),
        });
        Self {
            plane,
            source,
            services,
            target,
        }
    }

    fn clusters(&self) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
            "postgresql.cnpg.io",
            "v1",
            "Cluster",
        ));
        Api::namespaced_with(self.plane.admin(), NAMESPACE, &resource)
    }

    async fn status(&self, cluster: &str) -> Value {
        self.clusters().get(cluster).await.unwrap().data["status"].clone()
    }

    async fn change(&self, cluster: &str, patch: Value) {
        self.clusters()
            .patch(cluster, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Ends the spread checkpoint for which pg_basebackup waits.
    async fn checkpoint_the_source(&self, instance: &InstanceHandle) {
        let session = self.source.connect("postgres").await.unwrap();
        let waits = "select exists (select from pg_stat_progress_basebackup)";
        let begun = Instant::now();
        while !session
            .query_one(waits, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            assert!(
                begun.elapsed() < SOON,
                "no base backup begins\n{}",
                instance.logs()
            );
            sleep(Duration::from_millis(20)).await;
        }
        session.batch_execute("checkpoint").await.unwrap();
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < SOON, "{what}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn cluster(name: &str) -> Value {
    json!({
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "metadata": {"name": name},
        "spec": {
            "instances": 1, "storage": {"size": "1Gi"},
            "imageName": "ghcr.io/cloudnative-pg/postgresql:17.6-standard-trixie",
            "smartShutdownTimeout": 1,
            "bootstrap": {"pg_basebackup": {
                "source": "zalando", "database": "mastodon", "owner": "mastodon",
            }},
            "replica": {"enabled": true, "source": "zalando"},
            "externalClusters": [{
                "name": "zalando",
                "connectionParameters": {
                    "host": format!("{SOURCE}.{NAMESPACE}.svc"), "port": "5432",
                    "user": "standby", "dbname": "postgres", "sslmode": "verify-full",
                },
                "password": {
                    "name": format!("standby.{SOURCE}.credentials.postgresql.acid.zalan.do"),
                    "key": "password",
                },
                "sslRootCert": {"name": format!("{SOURCE}-ca"), "key": "ca.crt"},
            }],
            "postgresql": {
                "parameters": {
                    "max_connections": "136", "max_worker_processes": "8", "max_wal_senders": "10",
                    "max_prepared_transactions": "0", "max_locks_per_transaction": "64",
                    "pg_stat_statements.track": "top",
                },
                "pg_hba": ["hostssl replication standby all md5", "hostssl all all all md5"],
            },
        },
    })
}

fn adopt() -> Value {
    let container = json!({
        "name": "adopt-pgdata", "image": "programs", "command": ["/adopt-pgdata"],
        "env": [{"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"}],
        "volumeMounts": [{"name": "pgdata", "mountPath": "/var/lib/postgresql/data"}],
    });
    let patch = json!([{"op": "add", "path": "/spec/initContainers/-", "value": container}]);
    json!({"metadata": {"annotations": {"cnpg.io/podPatch": patch.to_string()}}})
}

async fn one(session: &tokio_postgres::Client, query: &str) -> String {
    session.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_patronis_directory_is_repaired_streams_and_is_promoted() {
    let environment = Environment::start().await;
    let instance = a_clone_of_a_wrong_host_retries_forever(&environment).await;
    a_copy_that_refers_to_patronis_files_does_not_start(&environment, &instance).await;
    it_streams_once_it_is_repaired(&environment, &instance).await;
    changed_settings_are_reloaded_and_a_fence_stops_it(&environment, &instance).await;
    promotion_restarts_it_and_keeps_or_nulls_passwords(&environment, &instance).await;
    a_killed_server_is_restarted(&environment, &instance).await;
}

async fn a_clone_of_a_wrong_host_retries_forever(environment: &Environment) -> InstanceHandle {
    let stored = one(
        &environment.source.connect("postgres").await.unwrap(),
        "select rolpassword from pg_authid where rolname = 'mastodon'",
    )
    .await;
    let owner = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owner"},
        "stringData": {"username": "mastodon", "password": stored},
    });
    let mut database = cluster("database");
    database["spec"]["bootstrap"]["pg_basebackup"]["secret"] = json!({"name": "owner"});
    // The example's host, which no Zalando cluster has.
    database["spec"]["externalClusters"][0]["connectionParameters"]["host"] =
        json!(format!("{SOURCE}-rw.{NAMESPACE}.svc"));
    environment
        .plane
        .apply(NAMESPACE, &[owner, database.clone()])
        .await
        .unwrap();
    let instance = environment.target.instance("database", SOON).await.unwrap();
    instance
        .wait_for_line(
            "DB not available, will retry: failed to connect: hostname resolving error",
            SOON,
        )
        .await
        .unwrap();
    environment
        .target
        .phase("database", "Setting up primary", SOON)
        .await
        .unwrap();
    let spec = environment.clusters().get("database").await.unwrap().data["spec"].clone();
    assert_eq!(
        spec["postgresql"]["parameters"]["archive_mode"], "always",
        "the webhook's defaults"
    );
    assert_eq!(
        spec["postgresql"]["parameters"]["wal_receiver_timeout"],
        "5s"
    );
    // Its Job keeps the host that it has read, so only a new Cluster helps.
    deletion_removes_everything_of_cloudnativepg(environment).await;
    database["spec"]["externalClusters"][0]["connectionParameters"]["host"] =
        json!(format!("{SOURCE}.{NAMESPACE}.svc"));
    environment
        .plane
        .apply(NAMESPACE, &[database])
        .await
        .unwrap();
    environment.target.instance("database", SOON).await.unwrap()
}

async fn a_copy_that_refers_to_patronis_files_does_not_start(
    environment: &Environment,
    instance: &InstanceHandle,
) {
    environment.checkpoint_the_source(instance).await;
    instance.wait_for_line(PATRONIS_HBA, SOON).await.unwrap();
    environment
        .target
        .phase(
            "database",
            "Waiting for the instances to become active",
            SOON,
        )
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    environment
        .until("the pod is in a crash loop", async || {
            let status =
                serde_json::to_value(pods.get("database-1").await.unwrap().status).unwrap();
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert!(
        environment
            .services
            .resolve("database-rw.mastodon.svc")
            .is_some(),
        "the name resolves even if no server answers"
    );
}

async fn it_streams_once_it_is_repaired(environment: &Environment, instance: &InstanceHandle) {
    environment.change("database", adopt()).await;
    let pods: Api<Pod> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    pods.delete("database-1", &DeleteParams::default())
        .await
        .unwrap();
    environment
        .target
        .phase("database", "Cluster in healthy state", SOON)
        .await
        .unwrap();
    let session = instance.admin("mastodon").await.unwrap();
    environment
        .until("it streams", async || {
            one(
                &session,
                "select count(*)::text from pg_stat_wal_receiver where status = 'streaming'",
            )
            .await
                == "1"
        })
        .await;
    the_monitoring_query_returns_its_lag(environment, &session).await;
    for (setting, value) in [
        ("archive_mode", "always"),
        ("primary_slot_name", ""),
        ("cluster_name", "database"),
        ("log_statement", "ddl"),
    ] {
        assert_eq!(
            one(&session, &format!("select current_setting('{setting}')")).await,
            value,
            "{setting}"
        );
    }
    let source = environment.source.connect("postgres").await.unwrap();
    let standby = "select application_name || ' ' || usename from pg_stat_replication where \
        application_name = 'database'";
    assert_eq!(one(&source, standby).await, "database standby");
    let status = environment.status("database").await;
    assert_eq!(
        status["systemID"],
        one(
            &source,
            "select system_identifier::text from pg_control_system()"
        )
        .await
        .as_str()
    );
    assert_eq!(
        status["timelineID"],
        Value::Null,
        "empty until the promotion"
    );
    assert_eq!(
        status["instancesReportedState"]["database-1"]["isPrimary"],
        false
    );
    assert_eq!(status["currentPrimary"], "database-1");
}

/// The query of manifests/components/prometheus-rules, with the rights of CloudNativePG's exporter.
async fn lag_bytes(session: &tokio_postgres::Client) -> Option<i64> {
    let text = std::fs::read_to_string(
        harness::manifests::folder().join("components/prometheus-rules/queries.yaml"),
    )
    .unwrap();
    let map: ConfigMap = serde_yaml_ng::from_str(&text).unwrap();
    let queries: Value = serde_yaml_ng::from_str(&map.data.unwrap()["queries"]).unwrap();
    let query = queries["replica_migration"]["query"].as_str().unwrap();
    session.batch_execute("set role pg_monitor").await.unwrap();
    let rows = session
        .query(&format!("select lag_bytes::int8 from ({query}) as q"), &[])
        .await
        .unwrap();
    session.batch_execute("reset role").await.unwrap();
    rows.first().map(|row| row.get(0))
}

async fn the_monitoring_query_returns_its_lag(
    environment: &Environment,
    session: &tokio_postgres::Client,
) {
    environment
        .until("nothing is behind", async || {
            lag_bytes(session).await == Some(0)
        })
        .await;
    session
        .batch_execute("select pg_wal_replay_pause()")
        .await
        .unwrap();
    let source = environment.source.connect("mastodon").await.unwrap();
    source
        .batch_execute("select pg_logical_emit_message(false, 'lag', repeat('x', 100000))")
        .await
        .unwrap();
    environment
        .until("100 kB are behind", async || {
            lag_bytes(session)
                .await
                .is_some_and(|bytes| bytes >= 100_000)
        })
        .await;
    session
        .batch_execute("select pg_wal_replay_resume()")
        .await
        .unwrap();
    environment
        .until("nothing is behind again", async || {
            lag_bytes(session).await == Some(0)
        })
        .await;
}

async fn changed_settings_are_reloaded_and_a_fence_stops_it(
    environment: &Environment,
    instance: &InstanceHandle,
) {
    environment
        .change(
            "database",
            json!({"spec": {"postgresql": {"parameters": {"work_mem": "7MB"}}}}),
        )
        .await;
    let session = instance.admin("postgres").await.unwrap();
    environment
        .until("the setting is in force", async || {
            one(&session, "select current_setting('work_mem')").await == "7MB"
        })
        .await;
    let since = one(&session, "select pg_postmaster_start_time()::text").await;
    environment
        .change(
            "database",
            json!({"metadata": {"annotations": {"cnpg.io/fencedInstances": "[\"*\"]"}}}),
        )
        .await;
    environment
        .until("the fence holds", async || {
            instance.admin("postgres").await.is_err()
        })
        .await;
    assert_eq!(
        environment.status("database").await["phase"],
        "Cluster in healthy state",
        "a fence does not show in the phase"
    );
    environment
        .change(
            "database",
            json!({"metadata": {"annotations": {"cnpg.io/fencedInstances": null}}}),
        )
        .await;
    environment
        .until("the fence is lifted", async || {
            instance.admin("postgres").await.is_ok()
        })
        .await;
    let session = instance.admin("postgres").await.unwrap();
    assert_ne!(
        one(&session, "select pg_postmaster_start_time()::text").await,
        since
    );
}

/// The target loses its connection, and the source keeps accepting writes.
async fn the_source_continues_alone(environment: &Environment, instance: &InstanceHandle) {
    let mut external = cluster("database")["spec"]["externalClusters"].clone();
    external[0]["connectionParameters"]["host"] = json!("gone");
    environment
        .change("database", json!({"spec": {"externalClusters": external}}))
        .await;
    let session = instance.admin("postgres").await.unwrap();
    environment
        .until("it does not stream any more", async || {
            one(
                &session,
                "select count(*)::text from pg_stat_wal_receiver where status = 'streaming'",
            )
            .await
                == "0"
        })
        .await;
    assert_eq!(
        lag_bytes(&session).await,
        None,
        "that is for another alert to tell"
    );
    environment
        .source
        .connect("mastodon")
        .await
        .unwrap()
        .batch_execute("create table public.late ()")
        .await
        .unwrap();
}

async fn promotion_restarts_it_and_keeps_or_nulls_passwords(
    environment: &Environment,
    instance: &InstanceHandle,
) {
    let hash = |session, role: &'static str| async move {
        let session: harness::session::Session = session;
        one(
            &session,
            &format!(
                "select coalesce(rolpassword, 'none') from pg_authid where rolname = '{role}'"
            ),
        )
        .await
    };
    let before = hash(instance.admin("postgres").await.unwrap(), "mastodon").await;
    the_source_continues_alone(environment, instance).await;
    environment
        .change("database", json!({"spec": {"replica": {"enabled": false}}}))
        .await;
    let promotion_times = instance.promoted(SOON).await.unwrap();
    let since = |moment: Option<tokio::time::Instant>| {
        moment.map(|moment| moment.duration_since(promotion_times.requested.unwrap()))
    };
    eprintln!(
        "promoting {:?}, primary {:?}, restart {:?} to {:?}, serving {:?}",
        since(promotion_times.promoting),
        since(promotion_times.primary),
        since(promotion_times.restart_began),
        since(promotion_times.restart_ended),
        since(promotion_times.serving)
    );
    let (primary, own) = (
        since(promotion_times.primary).unwrap(),
        promotion_times.own().unwrap(),
    );
    assert!(
        primary > Duration::from_millis(600),
        "a promotion is not quicker at CNPG: {primary:?}"
    );
    assert!(
        own > Duration::from_millis(2_300) && own < Duration::from_secs(10),
        "{own:?}"
    );
    let session = instance.admin("postgres").await.unwrap();
    assert_eq!(
        one(&session, "select pg_is_in_recovery()::text").await,
        "false"
    );
    let late = one(
        &instance.admin("mastodon").await.unwrap(),
        "select coalesce(to_regclass('public.late')::text, 'lost')",
    )
    .await;
    assert_eq!(late, "lost", "promotion does not wait for the last WAL");
    assert_eq!(
        one(&session, "select current_setting('archive_mode')").await,
        "on"
    );
    assert_eq!(
        one(
            &session,
            "select count(*)::text from pg_roles where rolname = 'streaming_replica' and \
             rolreplication"
        )
        .await,
        "1"
    );
    let status = environment.status("database").await;
    assert_eq!(status["timelineID"], 2);
    assert_eq!(
        status["instancesReportedState"]["database-1"]["isPrimary"],
        true
    );
    assert_eq!(
        status["phase"], "Primary instance is being restarted in-place",
        "healthy comes late"
    );
    assert_eq!(
        hash(instance.admin("postgres").await.unwrap(), "mastodon").await,
        before,
        "a hash is kept verbatim"
    );
    assert_eq!(
        hash(session, "postgres").await,
        "none",
        "enableSuperuserAccess is off"
    );
    environment
        .target
        .phase("database", "Cluster in healthy state", SOON)
        .await
        .unwrap();
    assert_eq!(
        environment.status("database").await["phaseReason"],
        "Primary instance restarted in-place"
    );
    assert!(instance.promotion_times().healthy.is_some());

    environment
        .plane
        .apply(NAMESPACE, &[pooler_object("database-pooler-rw", "rw")])
        .await
        .unwrap();
    let session = instance.admin("postgres").await.unwrap();
    let made = "select count(*)::text from pg_proc p, pg_roles r where p.proname = 'user_search' \
        and r.rolname = 'cnpg_pooler_pgbouncer'";
    environment
        .until("the pooler's role and function are made", async || {
            one(&session, made).await == "1"
        })
        .await;
}

async fn a_killed_server_is_restarted(environment: &Environment, instance: &InstanceHandle) {
    let since = one(
        &instance.admin("postgres").await.unwrap(),
        "select pg_postmaster_start_time()::text",
    )
    .await;
    instance.kill().await;
    environment
        .until("it is back", async || {
            match instance.admin("postgres").await {
                Ok(session) => {
                    one(&session, "select pg_postmaster_start_time()::text").await != since
                }
                Err(_) => false,
            }
        })
        .await;
}

async fn deletion_removes_everything_of_cloudnativepg(environment: &Environment) {
    environment
        .clusters()
        .delete("database", &DeleteParams::default())
        .await
        .unwrap();
    environment
        .until("the Cluster is gone", async || {
            environment
                .target
                .instance("database", Duration::ZERO)
                .await
                .is_err()
        })
        .await;
    let secrets: Api<Secret> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    environment
        .until("the name is gone", async || {
            environment.services.resolve("database-rw").is_none()
        })
        .await;
    environment
        .until("the Secrets are gone", async || {
            secrets.get_opt("database-ca").await.unwrap().is_none()
        })
        .await;
    assert!(
        secrets.get_opt("owner").await.unwrap().is_some(),
        "a Secret that CNPG does not own is kept"
    );
}

/// The application during a cutover by hand: the source is stopped, the target promoted without a
/// restart, and the ConfigMap changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_follows_its_config_map_and_no_acknowledged_write_is_lost() {
    let environment = Environment::start().await;
    let mut database = cluster("database");
    database["metadata"]["annotations"] = adopt()["metadata"]["annotations"].clone();
    database["metadata"]["annotations"]["cnpg.io/skipWalArchiving"] = json!("enabled");
    // CNPG drops the extension unless one of its parameters is set; Zalando's views depend on it.
    database["spec"]["postgresql"]["parameters"]
        .as_object_mut()
        .unwrap()
        .remove("pg_stat_statements.track");
    database["spec"]["bootstrap"]["pg_basebackup"]["secret"] =
        json!({"name": format!("mastodon.{SOURCE}.credentials.postgresql.acid.zalan.do")});
    environment
        .plane
        .apply(
            NAMESPACE,
            &[database, pooler_object("database-pooler-rw", "rw")],
        )
        .await
        .unwrap();
    let instance = environment.target.instance("database", SOON).await.unwrap();
    environment.checkpoint_the_source(&instance).await;
    let (name, upstream) = (format!("{SOURCE}-pooler"), SOURCE);
    let _pooler = Pooler::start(
        &environment.plane.admin(),
        environment.plane.instance(),
        Arc::clone(&environment.services),
        &name,
        upstream,
        39,
    )
    .await
    .unwrap();
    let epoch = Epoch::now();
    let mut application = Application::deploy(
        environment.plane.admin(),
        Arc::clone(&environment.services),
        Settings::mastodon(NAMESPACE),
        epoch,
    )
    .await
    .unwrap();
    application.ready(SOON).await.unwrap();
    application
        .start_unmanaged_writer("forgotten", SOURCE)
        .await
        .unwrap();
    environment
        .target
        .phase("database", "Cluster in healthy state", SOON)
        .await
        .unwrap();
    application.acknowledges(200, SOON).await.unwrap();

    scale(&environment, 0).await;
    environment
        .until("no pod is left", async || no_pods(&environment).await)
        .await;
    // Not paused: a paused Patroni leaves its server running when it ends, and the server would be
    // killed with what it had not sent.
    environment.source.stop().await.unwrap();
    let fenced = epoch.elapsed();
    environment
        .change("database", json!({"spec": {"replica": {"enabled": false}}}))
        .await;
    let promotion_times = instance.promoted(SOON).await.unwrap();
    assert_eq!(
        promotion_times.restart_began, None,
        "archive_mode was off before and is off now"
    );
    instance
        .wait_for_line("could not reconcile extensions for database", SOON)
        .await
        .unwrap();
    let session = instance.admin("postgres").await.unwrap();
    assert_eq!(
        one(
            &session,
            "select count(*)::text from pg_roles where rolname = 'cnpg_pooler_pgbouncer'"
        )
        .await,
        "0",
        "all after it is left undone"
    );
    assert_eq!(
        one(
            &session,
            "select left(rolpassword, 13) from pg_authid where rolname = 'mastodon'"
        )
        .await,
        "SCRAM-SHA-256",
        "cleartext is hashed"
    );
    let config = json!({"data": {"DB_HOST": "database-pooler-rw"}});
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> =
        Api::namespaced(environment.plane.admin(), NAMESPACE);
    maps.patch(
        "mastodon-database",
        &PatchParams::default(),
        &Patch::Merge(config),
    )
    .await
    .unwrap();
    scale(&environment, 1).await;
    application.acknowledges(100, SOON).await.unwrap();
    let attempts = application.stop().await.unwrap();

    let found = rows_of(&instance).await;
    let address = |address: std::net::Ipv4Addr| address.to_string();
    let cut = Topology {
        source: environment
            .source
            .members()
            .iter()
            .map(|member| address(member.address()))
            .collect(),
        target: [address(instance.address())].into(),
        fenced: Some(fenced),
    };
    let verdict = ledger::judge(&attempts, &found, &[], &cut, Duration::from_millis(500));
    assert!(verdict.holds(), "{verdict:?}");
    assert!(verdict.acknowledged >= 300, "{verdict:?}");
    assert!(
        verdict.gap_by_client.contains_key("mastodon-web/0/0"),
        "a client keeps its name: {:?}",
        verdict.gap_by_client
    );
    assert!(attempts.iter().any(|a| a.key.client == "forgotten"
        && a.sent > fenced
        && matches!(a.outcome, Outcome::Refused(_))));
    eprintln!(
        "{} acknowledged, gap {:?}, own {:?}",
        verdict.acknowledged,
        verdict.gap.unwrap().length(),
        promotion_times.own()
    );
}

fn pooler_object(name: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Pooler", "metadata": {"name": name},
        "spec": {
            "cluster": {"name": "database"}, "type": kind, "instances": 1,
            "pgbouncer": {"poolMode": "session"},
        },
    })
}

async fn scale(environment: &Environment, replicas: u32) {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> =
        Api::namespaced(environment.plane.admin(), NAMESPACE);
    for (name, _) in harness::application::DEPLOYMENTS {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

async fn no_pods(environment: &Environment) -> bool {
    let pods: Api<Pod> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let labelled = kube::api::ListParams::default().labels("app.kubernetes.io/part-of=mastodon");
    pods.list(&labelled).await.unwrap().items.is_empty()
}

async fn rows_of(instance: &InstanceHandle) -> Vec<Key> {
    let session = instance.admin("mastodon").await.unwrap();
    rows(&session).await.unwrap()
}
