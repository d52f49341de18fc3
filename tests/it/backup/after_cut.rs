//! After a cut: the source's leader is stopped, and nobody writes to it ever again.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use harness::{
    application::Epoch,
    kubelet::{Ended, Launch},
    ledger::{Key, Outcome},
    manifests::access::rbac_is_exact,
    migration::{CLUSTER, Migration, NAMESPACE, succeeded},
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

/// A migration that is over, and the volume of its backup.
struct Over {
    migration: Migration,
    volume: PathBuf,
}

impl Over {
    async fn new(members: u8) -> Self {
        let options = SourceOptions {
            members,
            ..SourceOptions::default()
        };
        let migration = Migration::set_up(options, Epoch::now(), |_| ())
            .await
            .unwrap();
        // Kubernetes does not change the pod of an existing Job.
        environment::remove(
            &migration.plane,
            ("batch", "v1", "Job"),
            "zalando-backup-job",
        )
        .await;
        environment::apply_manifests(&migration.plane).await;
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
            &["there was no cut yet", "would copy mastodon-postgresql-0"],
        );
        succeeded(
            "cutover",
            &migration.step("cutover").run(SOON).await.unwrap(),
        )
        .unwrap();
        migration.application.acknowledges(100, SOON).await.unwrap();
        Self { migration, volume }
    }

    fn step(&self) -> Launch<'_> {
        self.migration
            .step(STEP)
            .env("SCRATCH_KEEP_FREE_PERCENT", "0")
    }

    async fn run(&self, launch: Launch<'_>, code: i32, words: &[&str]) -> Ended {
        let ended = launch.run(SOON).await.unwrap();
        ends(&ended, code, words);
        ended
    }

    /// The member that was stopped.
    fn leader(&self) -> &Member {
        &self.migration.source.members()[0]
    }

    async fn restart_leader(&self) {
        let url = format!("{}/restart", self.leader().rest_url());
        rest::demand(Method::POST, &url, &json!({})).await.unwrap();
    }

    /// Waits for what the leader's Patroni says of it (GET /health).
    async fn patroni_says(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let url = format!("{}/health", self.leader().rest_url());
        let says = async {
            loop {
                let health = rest::get(&url).await.unwrap();
                if is(&health) {
                    return health;
                }
                sleep(POLL).await;
            }
        };
        timeout(SOON, says)
            .await
            .unwrap_or_else(|_| panic!("Patroni does not say {what}"))
    }

    /// What the source has acknowledged.
    fn acknowledged(&self) -> BTreeSet<Key> {
        let members = self.migration.source.members();
        let addresses: Vec<String> = members
            .iter()
            .map(|member| member.address().to_string())
            .collect();
        let attempts = self.migration.application.attempts();
        let by_source = |outcome: &Outcome| matches!(outcome, Outcome::Acknowledged(server) if addresses.contains(&server.address));
        attempts
            .into_iter()
            .filter(|attempt| by_source(&attempt.outcome))
            .map(|attempt| attempt.key)
            .collect()
    }

    /// Restores a folder, has PostgreSQL judge and start it, and reads the ledger.
    async fn ledger(&self, name: &str) -> BTreeSet<Key> {
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
async fn the_source_is_copied_from_a_member_in_recovery_and_its_ledger_is_complete() {
    let over = Over::new(2).await;
    let words = [
        "mastodon-postgresql-1 is running (replica)",
        "runs in recovery and stands at",
        "exactly at the last record that the source has ever written",
        "backup complete",
        "not ready to delete: the retention of 7 days is over at",
        "validate-cnpg has not said anything yet",
    ];
    // The operator's configuration is looked for in both forms, and found in neither.
    over.run(
        over.step()
            .env("OPERATOR_CONFIG", "zalando/postgres-operator"),
        0,
        &words,
    )
    .await;
    let (rows, acknowledged) = (over.ledger("final").await, over.acknowledged());
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

    goodbye(&over).await;

    // The new primary, which goes on writing.
    let words = ["is the new primary, on timeline 2", "backup complete"];
    over.run(
        over.step()
            .env("FROM", "target")
            .env("BACKUP_NAME", "of-the-target"),
        0,
        &words,
    )
    .await;
    assert!(over.ledger("of-the-target").await.is_superset(&rows));
    let other = over.step().env("FROM", "target");
    over.run(
        other,
        3,
        &[
            "the backup that is there is one of the source",
            "choose another BACKUP_NAME",
        ],
    )
    .await;

    let objects: Vec<Value> = environment::manifests(&over.migration.plane)
        .into_iter()
        .filter(|object| object["metadata"]["name"] == "replica-migration-final-backup")
        .collect();
    // Everything that is granted was used, and nothing was refused; only the names of volumes
    // nobody can know beforehand.
    let difference = rbac_is_exact(&over.migration.plane.audit().unwrap(), &objects)
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

    // Somebody starts the source again: nothing of it may be trusted, and nothing deleted.
    over.restart_leader().await;
    let again = over.step().env("BACKUP_NAME", "again");
    let words = [
        "mastodon-postgresql-0 runs as a primary although the cut is over",
        "delete nothing until then",
    ];
    over.run(again, 4, &words).await;
}

/// What a deletion would remove, who still uses the source, and the commands when nobody does.
async fn goodbye(over: &Over) {
    let plane = &over.migration.plane;
    plane.namespace("zalando").await.unwrap();
    let data =
        json!({"enable_secrets_deletion": "false", "delete_annotation_date_key": "delete-date"});
    let operator = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "postgres-operator"}, "data": data});
    plane.apply("zalando", &[operator]).await.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(plane.admin());
    for (member, policy) in [(0, "Retain"), (1, "Delete")] {
        let volume = json!({
            "metadata": {"name": format!("pv-mastodon-postgresql-{member}")},
            "spec": {"capacity": {"storage": "40Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": policy,
                "hostPath": {"path": "/nowhere"}},
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
    let validated = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("validate-cnpg-{CLUSTER}")}, "data": verdict});
    plane.apply(NAMESPACE, &[validated]).await.unwrap();
    let ready = || {
        over.step()
            .env("OPERATOR_CONFIG", "zalando/postgres-operator")
            .env("RETENTION_DAYS", "0")
            .env("VERIFY", "stream")
    };

    // The application takes its password from the operator's Secret; three more would lose
    // something, too.
    let secret = "mastodon.mastodon-postgresql.credentials.postgresql.acid.zalan.do";
    let straggler = over
        .migration
        .source
        .connect_to(&over.migration.source.members()[1], NAMESPACE)
        .await
        .unwrap();
    straggler
        .batch_execute("set application_name = 'straggler'")
        .await
        .unwrap();
    let secret = json!({"secretKeyRef": {"name": secret, "key": "password"}});
    let container = json!({"name": "report", "image": "report", "env": [{"name": "PGPASSWORD", "valueFrom": secret}]});
    let pod = json!({"restartPolicy": "Never", "containers": [container]});
    plane
        .apply(
            NAMESPACE,
            &[
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "grafana"},
                    "data": {"datasource": "postgres://grafana@mastodon-postgresql-repl.mastodon.svc:5432/mastodon"}}),
                json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "report"},
                    "spec": {"schedule": "0 6 * * 1", "jobTemplate": {"spec": {"template": {"spec": pod}}}}}),
            ],
        )
        .await
        .unwrap();
    let words = [
        "a backup is complete already",
        "Secrets (.mastodon-postgresql.credentials.postgresql.acid.zalan.do): mastodon, pooler, \
         postgres, standby: stay",
        "volume pgdata-mastodon-postgresql-0 (40Gi): deleted \
         (enable_persistent_volume_claim_deletion), its data stays",
        "volume pgdata-mastodon-postgresql-1 (40Gi): deleted \
         (enable_persistent_volume_claim_deletion), and THE DATA with it (reclaim policy Delete",
        "still used: sessions at mastodon-postgresql-1: 1 of postgres in mastodon (straggler)",
        "still used: ConfigMap grafana names mastodon-postgresql-repl in .data.datasource",
        "still used: CronJob report names mastodon.mastodon-postgresql.credentials",
        "the Cluster database still names mastodon-postgresql in .externalClusters[0]",
        "the operator is told to leave it alone",
        "still used: Deployment mastodon-web names mastodon.mastodon-postgresql.credentials",
        "in .spec.template.spec.containers[0].env[0].valueFrom.secretKeyRef.name",
        "still used: ConfigMap mastodon-database names mastodon-postgresql-pooler in .data.DB_HOST",
        "still used: the Service mastodon-postgresql leads to the target and goes with the source",
        "not ready to delete: 13 uses of it are listed above",
    ];
    over.run(ready(), 0, &words).await;
    drop(straggler);
    for (kind, name) in [
        (("", "v1", "ConfigMap"), "grafana"),
        (("batch", "v1", "CronJob"), "report"),
    ] {
        environment::remove(plane, kind, name).await;
    }
    own_secret(over).await;
    own_hosts(over).await;
    let words = [
        "nobody uses it",
        "ready to delete; this step deletes nothing",
        "kubectl annotate -n mastodon postgresql/mastodon-postgresql --overwrite delete-date=",
        "kubectl annotate -n mastodon postgresql/mastodon-postgresql acid.zalan.do/controller-",
        "kubectl delete -n mastodon postgresql/mastodon-postgresql",
    ];
    let ended = over.run(ready(), 0, &words).await;
    assert_eq!(ended.termination_json()["ready_to_delete"], true);
}

/// The application gets the target's hosts, and the names of before lead nowhere.
async fn own_hosts(over: &Over) {
    let admin = over.migration.plane.admin();
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
    let nowhere =
        json!([{"op": "replace", "path": "/spec/selector", "value": {"leads": "nowhere"}}]);
    let nowhere = Patch::Json::<()>(serde_json::from_value(nowhere).unwrap());
    for service in ["mastodon-postgresql", "mastodon-postgresql-repl"] {
        services
            .patch(service, &PatchParams::default(), &nowhere)
            .await
            .unwrap();
    }
}

/// The application gets a Secret of its own.
async fn own_secret(over: &Over) {
    let admin = over.migration.plane.admin();
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
async fn a_source_with_one_member_is_started_read_only_for_its_backup() {
    let over = Over::new(1).await;
    let words = [
        "no member of the source runs: mastodon-postgresql-0 is",
        "FROM=target",
        "start the source read-only",
    ];
    over.run(over.step(), 3, &words).await;

    // README, A source with one member: in the pod, while Patroni is paused.
    let (setup, data) = (
        over.migration.plane.setup(),
        over.leader().layout().data.clone(),
    );
    let signal = data.join("standby.signal");
    let control = |words: &[&str]| {
        let mut command = setup.postgres("pg_ctl");
        command
            .args(words)
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
    over.patroni_says("running", |health| health["state"] == "running")
        .await;

    // Nobody can write to it, and Patroni leaves it as it is.
    let session = over
        .migration
        .source
        .connect_to(over.leader(), NAMESPACE)
        .await
        .unwrap();
    let error = session
        .batch_execute("create table late (n int)")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006", "{error}");
    over.run(
        over.step(),
        0,
        &[
            "exactly at the last record that the source has ever written",
            "backup complete",
        ],
    )
    .await;
    let rows = over.ledger("final").await;
    let acknowledged = over.acknowledged();
    assert!(acknowledged.len() > 50 && rows.is_superset(&acknowledged));
    // A round of Patroni's later it is still a standby.
    let round = over.patroni_says("anything", |_| true).await["dcs_last_seen"].clone();
    over.patroni_says("another round", |health| health["dcs_last_seen"] != round)
        .await;
    let row = session
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));

    // Stopped again and the file removed, everything is as the cut left it: the way back opens the
    // same timeline.
    drop(session);
    demand(&mut control(&["stop", "-m", "fast"]));
    std::fs::remove_file(&signal).unwrap();
    over.restart_leader().await;
    let session = over
        .migration
        .source
        .connect_to(over.leader(), "postgres")
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
