//! Backups after a cutover: the source's leader is stopped, and the source accepts no writes.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use harness::{
    application::Epoch,
    kubelet::{Ended, Launch},
    ledger::{Key, Outcome},
    manifests::access::rbac_is_exact,
    migration::{CLUSTER, Migration, NAMESPACE, succeeded},
    objects::CONFIG_MAP,
    setup::POSTGRES_MAJOR,
    source::{Member, SourceOptions, rest},
};
use http::Method;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, PersistentVolume, Secret, Service},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    environment::{self, SOON, STEP, WHOLE, ends, names_in},
    restored::{Restored, demand},
};

const POLL: Duration = Duration::from_millis(100);

/// A completed migration, and the volume for its backup.
pub struct Migrated {
    migration: Migration,
    volume: PathBuf,
}

impl Migrated {
    /// Migrates a source with these options.
    pub async fn new(options: SourceOptions) -> Self {
        let postgres = options.postgres;
        let migration = Migration::set_up(options, Epoch::now(), |_| ())
            .await
            .unwrap();
        // The pod template of an existing Job is immutable.
        environment::remove(
            &migration.plane,
            ("batch", "v1", "Job"),
            "zalando-backup-job",
        )
        .await;
        environment::apply_manifests(&migration.plane).await;
        if postgres != POSTGRES_MAJOR {
            let image = format!("registry.example.org/postgresql:{postgres}.99-standard-bookworm");
            let change = json!({"data": {"TARGET_IMAGE": image}});
            let objects = migration.objects();
            objects
                .patch(CONFIG_MAP, "replica-migration", change)
                .await
                .unwrap();
        }
        let (plane, setup) = (&migration.plane, migration.plane.setup());
        let volume = plane
            .instance()
            .subdirectory(setup, "claims/zalando-backup")
            .unwrap();
        migration.until_ready().await.unwrap();
        let dry = migration
            .step(STEP)
            .env("DRY_RUN", "true")
            .run(SOON)
            .await
            .unwrap();
        ends(
            &dry,
            0,
            &[
                "no cutover has been done",
                "would copy mastodon-postgresql-0",
            ],
        );
        succeeded(
            "cutover",
            &migration.step("cutover").run(SOON).await.unwrap(),
        )
        .unwrap();
        migration.application.acknowledges(100, SOON).await.unwrap();
        Self { migration, volume }
    }

    /// A pod of the step.
    pub fn step(&self) -> Launch<'_> {
        self.migration
            .step(STEP)
            .env("SCRATCH_KEEP_FREE_PERCENT", "0")
    }

    /// Runs the step and asserts its exit code and texts of its log.
    pub async fn run(&self, launch: Launch<'_>, code: i32, words: &[&str]) -> Ended {
        let ended = launch.run(SOON).await.unwrap();
        ends(&ended, code, words);
        ended
    }

    /// The former leader, which was stopped.
    fn leader(&self) -> &Member {
        &self.migration.source.members()[0]
    }

    async fn restart_leader(&self) {
        let url = format!("{}/restart", self.leader().rest_url());
        rest::demand(Method::POST, &url, &json!({})).await.unwrap();
    }

    /// Waits until the former leader's Patroni reports a state (GET /health).
    async fn patroni_reports(&self, state: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let url = format!("{}/health", self.leader().rest_url());
        let polling = async {
            loop {
                let health = rest::get(&url).await.unwrap();
                if matches(&health) {
                    return health;
                }
                sleep(POLL).await;
            }
        };
        timeout(SOON, polling)
            .await
            .unwrap_or_else(|_| panic!("Patroni does not report {state}"))
    }

    /// The writes that the source has acknowledged.
    pub fn acknowledged(&self) -> BTreeSet<Key> {
        let members = self.migration.source.members();
        let addresses: Vec<String> = members
            .iter()
            .map(|member| member.address().to_string())
            .collect();
        let attempts = self.migration.application.attempts();
        let by_source = |outcome: &Outcome| {
            matches!(
                outcome,
                Outcome::Acknowledged(server) if addresses.contains(&server.address)
            )
        };
        attempts
            .into_iter()
            .filter(|attempt| by_source(&attempt.outcome))
            .map(|attempt| attempt.key)
            .collect()
    }

    /// Restores a folder, verifies and starts it with PostgreSQL, and reads the ledger.
    pub async fn ledger(&self, name: &str) -> BTreeSet<Key> {
        let plane = &self.migration.plane;
        assert_eq!(names_in(&self.volume.join(name)), WHOLE);
        let restored = Restored::unpack(
            plane.setup(),
            plane.instance(),
            &self.volume.join(name),
            &format!("restored-{name}"),
        );
        restored.verify();
        let running = restored.start().await;
        let session = running.connect(NAMESPACE).await;
        harness::application::rows(&session)
            .await
            .unwrap()
            .into_iter()
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_cutover_a_member_in_recovery_is_copied_with_every_acknowledged_write() {
    let migrated = Migrated::new(SourceOptions::default()).await;
    let words = [
        "mastodon-postgresql-1 is running (replica)",
        "is in recovery at",
        "exactly the end of the source's WAL according to the receipt",
        "backup complete",
        "not ready to delete: the retention of 7 days ends at",
        "no result from validate-cnpg found",
    ];
    // The operator's configuration does not exist in either form.
    migrated
        .run(
            migrated
                .step()
                .env("OPERATOR_CONFIG", "zalando/postgres-operator"),
            0,
            &words,
        )
        .await;
    let (rows, acknowledged) = (migrated.ledger("final").await, migrated.acknowledged());
    let lost: Vec<&Key> = acknowledged.difference(&rows).collect();
    println!(
        "the source acknowledged {} writes, {} rows are in the backup",
        acknowledged.len(),
        rows.len()
    );
    assert!(
        acknowledged.len() > 50 && lost.is_empty(),
        "{} of {} are lost",
        lost.len(),
        acknowledged.len()
    );

    decommission(&migrated).await;

    // A backup of the new primary, which continues to accept writes.
    let words = ["is the new primary, on timeline 2", "backup complete"];
    migrated
        .run(
            migrated
                .step()
                .env("FROM", "target")
                .env("BACKUP_NAME", "of-the-target"),
            0,
            &words,
        )
        .await;
    assert!(migrated.ledger("of-the-target").await.is_superset(&rows));
    let other = migrated.step().env("FROM", "target");
    migrated
        .run(
            other,
            3,
            &[
                "the existing backup is one of the source",
                "choose another BACKUP_NAME",
            ],
        )
        .await;

    let objects: Vec<Value> = environment::manifests(&migrated.migration.plane)
        .into_iter()
        .filter(|object| object["metadata"]["name"] == "replica-migration-final-backup")
        .collect();
    // Every permission was used, and no request was denied. Only the names of volumes cannot be
    // known beforehand.
    let difference = rbac_is_exact(&migrated.migration.plane.audit().unwrap(), &objects)
        .unwrap_err()
        .to_string();
    let lines: Vec<&str> = difference.lines().skip(1).collect();
    assert!(
        lines.len() == 1
            && lines[0].starts_with(
                "too wide: replica-migration-final-backup: get persistentvolumes (any name)"
            ),
        "{difference}"
    );

    // The source is started again: it must not be trusted, and nothing may be deleted.
    migrated.restart_leader().await;
    let again = migrated.step().env("BACKUP_NAME", "again");
    let words = [
        "mastodon-postgresql-0 runs as a primary although the cutover has completed",
        "delete nothing until then",
    ];
    migrated.run(again, 4, &words).await;
}

/// The report lists what a deletion would remove and what still uses the source, and the commands
/// once nothing does.
async fn decommission(migrated: &Migrated) {
    let plane = &migrated.migration.plane;
    plane.namespace("zalando").await.unwrap();
    let data =
        json!({"enable_secrets_deletion": "false", "delete_annotation_date_key": "delete-date"});
    let operator = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "postgres-operator"},
        "data": data,
    });
    plane.apply("zalando", &[operator]).await.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(plane.admin());
    for (member, policy) in [(0, "Retain"), (1, "Delete")] {
        let volume = json!({
            "metadata": {"name": format!("pv-mastodon-postgresql-{member}")},
            "spec": {
                "capacity": {"storage": "40Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": policy, "hostPath": {"path": "/nowhere"},
            },
        });
        volumes
            .create(
                &PostParams::default(),
                &serde_json::from_value(volume).unwrap(),
            )
            .await
            .unwrap();
    }
    let verdict = json!({"verdict": "green", "at": jiff::Timestamp::now().to_string()});
    let validated = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("validate-cnpg-{CLUSTER}")}, "data": verdict,
    });
    plane.apply(NAMESPACE, &[validated]).await.unwrap();
    let ready = || {
        migrated
            .step()
            .env("OPERATOR_CONFIG", "zalando/postgres-operator")
            .env("RETENTION_DAYS", "0")
            .env("VERIFY", "stream")
    };

    // The application uses the password from the operator's Secret. Three other clients would lose
    // something, too.
    let secret = "mastodon.mastodon-postgresql.credentials.postgresql.acid.zalan.do";
    let session = migrated
        .migration
        .source
        .connect_to(&migrated.migration.source.members()[1], NAMESPACE)
        .await
        .unwrap();
    session
        .batch_execute("set application_name = 'console'")
        .await
        .unwrap();
    let secret = json!({"secretKeyRef": {"name": secret, "key": "password"}});
    let container = json!({
        "name": "report", "image": "report", "env": [{"name": "PGPASSWORD", "valueFrom": secret}],
    });
    let pod = json!({"restartPolicy": "Never", "containers": [container]});
    let url = "postgres://grafana@mastodon-postgresql-repl.mastodon.svc:5432/mastodon";
    let grafana = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "grafana"},
        "data": {"datasource": url},
    });
    let report = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "report"},
        "spec": {
            "schedule": "0 6 * * 1", "jobTemplate": {"spec": {"template": {"spec": pod}}},
        },
    });
    plane.apply(NAMESPACE, &[grafana, report]).await.unwrap();
    let words = [
        "a backup is complete already",
        "Secrets (.mastodon-postgresql.credentials.postgresql.acid.zalan.do): mastodon, pooler, \
         postgres, standby: kept",
        "volume pgdata-mastodon-postgresql-0 (40Gi): deleted \
         (enable_persistent_volume_claim_deletion), its data is kept",
        "volume pgdata-mastodon-postgresql-1 (40Gi): deleted \
         (enable_persistent_volume_claim_deletion), and THE DATA with it (reclaim policy Delete",
        "still used: sessions at mastodon-postgresql-1: 1 of postgres in mastodon (console)",
        "still used: ConfigMap grafana refers to mastodon-postgresql-repl in .data.datasource",
        "still used: CronJob report refers to mastodon.mastodon-postgresql.credentials",
        "the Cluster database still refers to mastodon-postgresql in .externalClusters[0]",
        "makes the operator ignore the resource",
        "still used: Deployment mastodon-web refers to mastodon.mastodon-postgresql.credentials",
        "in .spec.template.spec.containers[0].env[0].valueFrom.secretKeyRef.name",
        "still used: ConfigMap mastodon-database refers to mastodon-postgresql-pooler in \
         .data.DB_HOST",
        "still used: the Service mastodon-postgresql points to the target and is deleted with the \
         source",
        "not ready to delete: 13 uses of it are listed above",
    ];
    migrated.run(ready(), 0, &words).await;
    drop(session);
    for (kind, name) in [
        (("", "v1", "ConfigMap"), "grafana"),
        (("batch", "v1", "CronJob"), "report"),
    ] {
        environment::remove(plane, kind, name).await;
    }
    own_secret(migrated).await;
    own_hosts(migrated).await;
    let words = [
        "no remaining users",
        "ready to delete; this step deletes nothing",
        "kubectl annotate -n mastodon postgresql/mastodon-postgresql --overwrite delete-date=",
        "kubectl annotate -n mastodon postgresql/mastodon-postgresql acid.zalan.do/controller-",
        "kubectl delete -n mastodon postgresql/mastodon-postgresql",
    ];
    let ended = migrated.run(ready(), 0, &words).await;
    assert_eq!(ended.termination_json()["ready_to_delete"], true);
}

/// Configures the application with the target's hosts, and detaches the selectors of the source's
/// Services.
async fn own_hosts(migrated: &Migrated) {
    let admin = migrated.migration.plane.admin();
    let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), NAMESPACE);
    let hosts =
        json!({"data": {"DB_HOST": "database-pooler-rw", "REPLICA_DB_HOST": "database-pooler-ro"}});
    maps.patch(
        "mastodon-database",
        &PatchParams::default(),
        &Patch::Merge(hosts),
    )
    .await
    .unwrap();
    let services: Api<Service> = Api::namespaced(admin, NAMESPACE);
    let detach =
        json!([{"op": "replace", "path": "/spec/selector", "value": {"detached": "true"}}]);
    let detach = Patch::Json::<()>(serde_json::from_value(detach).unwrap());
    for service in ["mastodon-postgresql", "mastodon-postgresql-repl"] {
        services
            .patch(service, &PatchParams::default(), &detach)
            .await
            .unwrap();
    }
}

/// Gives the application a Secret of its own.
async fn own_secret(migrated: &Migrated) {
    let admin = migrated.migration.plane.admin();
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), NAMESPACE);
    let old = secrets
        .get("mastodon.mastodon-postgresql.credentials.postgresql.acid.zalan.do")
        .await
        .unwrap();
    let own = json!({"metadata": {"name": "mastodon-database-password"}, "data": old.data});
    secrets
        .create(
            &PostParams::default(),
            &serde_json::from_value(own).unwrap(),
        )
        .await
        .unwrap();
    let deployments: Api<Deployment> = Api::namespaced(admin, NAMESPACE);
    for (name, _) in harness::application::DEPLOYMENTS {
        let path = "/spec/template/spec/containers/0/env/0/valueFrom/secretKeyRef/name";
        let change =
            json!([{"op": "replace", "path": path, "value": "mastodon-database-password"}]);
        let change = Patch::Json::<()>(serde_json::from_value(change).unwrap());
        deployments
            .patch(name, &PatchParams::default(), &change)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_one_member_can_be_started_read_only_for_its_backup() {
    let options = SourceOptions {
        members: 1,
        ..SourceOptions::default()
    };
    let migrated = Migrated::new(options).await;
    let words = [
        "no member of the source runs: mastodon-postgresql-0 is",
        "FROM=target",
        "start the source read-only",
    ];
    migrated.run(migrated.step(), 3, &words).await;

    // docs/operations.md#a-source-with-one-member: in the pod, while Patroni is paused.
    let (setup, data) = (
        migrated.migration.plane.setup(),
        migrated.leader().layout().data.clone(),
    );
    let signal = data.join("standby.signal");
    let control = |arguments: &[&str]| {
        let mut command = setup.postgres("pg_ctl");
        command
            .args(arguments)
            .arg("-w")
            .arg("-D")
            .arg(&data)
            .current_dir("/");
        command
            .args(["-l"])
            .arg(data.join("../pg_log/read-only.log"));
        command
    };
    demand(Command::new("touch").arg(&signal));
    setup.user.own(&signal).unwrap();
    demand(&mut control(&["restart"]));
    migrated
        .patroni_reports("running", |health| health["state"] == "running")
        .await;

    // It accepts no writes, and Patroni leaves it as it is.
    let session = migrated
        .migration
        .source
        .connect_to(migrated.leader(), NAMESPACE)
        .await
        .unwrap();
    let error = session
        .batch_execute("create table late (n int)")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006", "{error}");
    migrated
        .run(
            migrated.step(),
            0,
            &[
                "exactly the end of the source's WAL according to the receipt",
                "backup complete",
            ],
        )
        .await;
    let rows = migrated.ledger("final").await;
    let acknowledged = migrated.acknowledged();
    assert!(acknowledged.len() > 50 && rows.is_superset(&acknowledged));
    // After another loop of Patroni it is still a standby.
    let seen = migrated.patroni_reports("any state", |_| true).await["dcs_last_seen"].clone();
    migrated
        .patroni_reports("another loop", |health| health["dcs_last_seen"] != seen)
        .await;
    let row = session
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));

    // Stopped again and with the file removed, the source is as the cutover left it: restarting the
    // leader continues the same timeline.
    drop(session);
    demand(&mut control(&["stop", "-m", "fast"]));
    std::fs::remove_file(&signal).unwrap();
    migrated.restart_leader().await;
    let session = migrated
        .migration
        .source
        .connect_to(migrated.leader(), "postgres")
        .await
        .unwrap();
    let row = session
        .query_one(
            "select pg_is_in_recovery(), timeline_id from pg_control_checkpoint()",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i32>(1)), (false, 1));
}
