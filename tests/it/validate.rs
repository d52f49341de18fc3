//! validate-replication as a black box: its result, its progress, and every state that blocks the
//! cutover.

mod environment;

use std::{collections::BTreeSet, time::Duration};

use environment::{
    CLUSTER, Environment, NAMESPACE, SOON, SOURCE, STEP, at_target, cluster, deployment, number,
    until,
};
use harness::{
    authority::Authority,
    kubelet::Ended,
    unrelated_server::{Major, UnrelatedServer},
};
use serde_json::{Value, json};

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, words: &[&str]) {
    let text = ended.text();
    assert_eq!(ended.exit_code, code, "\n{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing\n{text}");
    }
}

const READY: &str = "Replication is healthy and ready for cutover";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streaming_target_is_ready_and_the_check_changes_nothing() {
    let (environment, _instance) = Environment::streaming(800).await;
    let before = environment.everything().await;
    for attempt in ["first", "second"] {
        let ended = environment.run().await;
        let counts = ["accounts: 200", "statuses: 800", "users: 100"]
            .map(|table| format!("{table} rows (Zalando) ✓ matches (CNPG)"));
        let mut words = vec![
            "Checking replication status...",
            "Zalando LSN: 0/",
            "CNPG LSN:    0/",
            "Validating data consistency...",
            READY,
        ];
        words.extend(counts.iter().map(String::as_str));
        assert_ended(&ended, 0, &words);
        let word = ended.termination_json();
        assert_eq!(
            (&word["verdict"], &word["missing"], &word["timeline"]),
            (&json!("done"), &json!(0), &json!(1)),
            "{attempt}"
        );
        assert!(
            ended.cost.memory_peak_bytes < 40_000_000,
            "{} bytes resident",
            ended.cost.memory_peak_bytes
        );
    }
    assert_eq!(
        environment.everything().await,
        before,
        "something has changed"
    );
    let uses: BTreeSet<_> = environment
        .plane
        .audit()
        .unwrap()
        .into_iter()
        .filter(|one| one.service_account() == Some(&format!("replica-migration-{STEP}")))
        .collect();
    assert!(uses.iter().any(|one| one.resource == "pods"), "{uses:?}");
    for one in uses {
        assert!(!one.is_forbidden(), "{one:?}");
        let writes = one.verb != "get" && one.verb != "list";
        assert!(
            !writes || (one.resource == "events" && one.verb == "create"),
            "{one:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_counts_are_exact_while_rows_are_inserted_and_deleted() {
    let (environment, instance) = Environment::streaming(4000).await;
    let (begun, stop) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
    let writer = async {
        let session = environment.source.connect("mastodon").await.unwrap();
        let mut round = 0;
        let writes = async {
            loop {
                round += 1;
                let sql = format!(
                    "insert into statuses (account_id, text) select 1 + n, 'new' from \
                     generate_series(1, 20) n;
                     delete from statuses where id = {round}; update statuses set text = 'changed' \
                     where id = {round} + 2000"
                );
                session.batch_execute(&sql).await.unwrap();
                begun.notify_one();
            }
        };
        tokio::select! { () = writes => {}, () = stop.notified() => {} }
    };
    let reader = async {
        begun.notified().await;
        let ended = environment
            .run_with("KEY_TABLES", "public.statuses,users")
            .await;
        stop.notify_one();
        ended
    };
    let (ended, ()) = tokio::join!(reader, writer);
    assert_ended(
        &ended,
        0,
        &[
            "the source wrote",
            "public.statuses: ",
            "users: 500 rows (Zalando) ✓ matches (CNPG)",
            READY,
        ],
    );
    assert!(
        !ended.text().contains("the source wrote nothing"),
        "{}",
        ended.text()
    );

    // The same standby without some of its rows: a page of the file is lost, as by a disk failure.
    let session = environment.source.connect("mastodon").await.unwrap();
    let file: String = session
        .query_one("select pg_relation_filepath('users')", &[])
        .await
        .unwrap()
        .get(0);
    // A page that is still dirty in memory would be written back and repair the file, so a
    // restartpoint writes all of them first.
    session.batch_execute("checkpoint").await.unwrap();
    let written: String = session
        .query_one("select pg_current_wal_flush_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    let replayed = format!("select (pg_last_wal_replay_lsn() >= '{written}')::int::bigint");
    until("the checkpoint is replayed", async || {
        number(&instance.admin("mastodon").await.unwrap(), &replayed).await == 1
    })
    .await;
    at_target(&instance, "checkpoint").await;
    let file = std::fs::File::options()
        .write(true)
        .open(instance.pgdata().join(file))
        .unwrap();
    file.set_len(8192).unwrap();
    let ended = environment.run_with("KEY_TABLES", "users").await;
    assert_ended(
        &ended,
        3,
        &[
            "row-counts:users: wanted 500 to 500 of the 500 rows at the target",
            "no faithful copy",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_the_clone_and_requests_the_checkpoint_that_the_clone_needs() {
    let environment = Environment::without_a_cluster(800).await;
    assert_ended(
        &environment.run().await,
        2,
        &[
            "the Cluster database does not exist in namespace mastodon",
            "apply the manifest",
        ],
    );

    environment.apply(cluster()).await;
    // The pod mounts the Secret once, at its start; CNPG creates it a moment after the Cluster.
    environment.target_authority().await;
    let ended = environment
        .kubelet
        .step(STEP)
        .env("VALIDATE_MAX_SECONDS", "60")
        .run(SOON)
        .await
        .unwrap();
    let words = [
        "the clone: waiting for checkpoint to finish",
        "asking the source for one now (CHECKPOINT)",
        "the source has written a checkpoint",
        READY,
    ];
    assert_ended(&ended, 0, &words);
    // The spread checkpoint would have taken five minutes.
    assert!(
        ended.elapsed < Duration::from_secs(40),
        "{:?}",
        ended.elapsed
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_cannot_log_in_is_reported_with_its_likely_cause() {
    let environment = Environment::without_a_cluster(80).await;
    let mut wrong = cluster();
    // The example's host, which no Zalando cluster has.
    wrong["spec"]["externalClusters"][0]["connectionParameters"]["host"] =
        json!(format!("{SOURCE}-rw.{NAMESPACE}.svc"));
    environment.apply(wrong).await;
    let instance = environment.target.instance(CLUSTER, SOON).await.unwrap();
    instance
        .wait_for_line("DB not available, will retry", SOON)
        .await
        .unwrap();
    let ended = environment.run_with("VALIDATE_MAX_SECONDS", "33").await;
    let words = [
        "database-1-pgbasebackup has not begun to copy",
        "kubectl logs job/database-1-pgbasebackup",
        "gave up at the deadline",
    ];
    assert_ended(&ended, 1, &words);

    // As slow as the copy of a large database: 1 MB/s.
    let _copy = environment.slow_base_backup();
    let ended = environment.run_with("VALIDATE_MAX_SECONDS", "23").await;
    assert_ended(
        &ended,
        1,
        &[
            "MB/s, about ",
            "gave up at the deadline: the target does not accept connections: the clone is being \
             made",
        ],
    );
    let lines: Vec<_> = ended
        .log
        .iter()
        .filter(|line| line.text.contains(" % of "))
        .collect();
    // The first line, and two after ten seconds each.
    assert_eq!(lines.len(), 3, "{}", ended.text());

    let running = environment.kubelet.step(STEP).start().await.unwrap();
    running.wait_for_line(" % of ", SOON).await.unwrap();
    assert_ended(
        &running.delete().await.unwrap(),
        1,
        &["asked to end (SIGTERM)"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_cannot_start_is_reported_with_its_likely_cause() {
    let environment = Environment::without_a_cluster(80).await;
    let mut unpatched = cluster();
    unpatched["metadata"]["annotations"] = json!({});
    environment.apply(unpatched).await;
    let instance = environment.target.instance(CLUSTER, SOON).await.unwrap();
    environment.speed_up_the_clone().await;
    instance
        .wait_for_line("could not load", SOON)
        .await
        .unwrap();
    let ended = environment.run_with("VALIDATE_MAX_SECONDS", "15").await;
    assert_ended(
        &ended,
        1,
        &[
            "CrashLoopBackOff",
            "lacks the annotation cnpg.io/podPatch",
            "gave up at the deadline",
        ],
    );
}

/// Runs the step; asserts its exit code and texts of its log.
async fn run_ends(environment: &Environment, code: i32, words: &[&str]) {
    assert_ended(&environment.run().await, code, words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_exits_2_and_is_named_and_changes_nothing() {
    let (environment, _instance) = Environment::streaming(80).await;
    let before = environment.everything().await;
    let (wrong, foreign) = (
        environment.file("password", "wrong"),
        environment.file(
            "ca.crt",
            Authority::root("another CA").unwrap().certificate(),
        ),
    );
    let missing = environment
        .step()
        .without("DATABASE")
        .run(SOON)
        .await
        .unwrap();
    assert_ended(
        &missing,
        2,
        &[
            "the variable DATABASE is missing",
            "ConfigMap replica-migration",
        ],
    );
    for (key, value, words) in [
        ("SOURCE_CLUSTER", "", "a Kubernetes name is empty"),
        ("TARGET_HOST", " ", "it is empty"),
        ("LAG_BYTES_MAX", "much", "much"),
        (
            "ACCEPT",
            "appsup",
            "there is no check \"appsup\"; the checks are",
        ),
        (
            "APP_CONFIG_TARGET",
            "DB_HOST",
            "\"DB_HOST\" is not KEY=value",
        ),
        (
            "KEY_TABLES",
            "a.b.c",
            "\"a.b.c\" is not table or schema.table",
        ),
        // The Role names the objects, so a get of any other name is forbidden.
        (
            "SOURCE_CLUSTER",
            "absent",
            "postgresqls.acid.zalan.do \"absent\" is forbidden",
        ),
        (
            "TARGET_CLUSTER",
            "absent",
            "clusters.postgresql.cnpg.io \"absent\" is forbidden",
        ),
        (
            "APPS",
            "mastodon-web,absent",
            "deployments.apps \"absent\" is forbidden",
        ),
        ("APPS", ",", "found APPS is empty"),
        ("APP_CONFIG_TARGET", "NO_SUCH_KEY=x", "NO_SUCH_KEY=(absent)"),
        (
            "KEY_TABLES",
            "accounts,nowhere",
            "row-counts:nowhere: wanted a table, found none at the source",
        ),
        ("DATABASE", "nowhere", "database \"nowhere\" does not exist"),
        ("SOURCE_USER", "mastodon", "password authentication failed"),
        (
            "SOURCE_PASSWORD_FILE",
            &wrong,
            "password authentication failed for user \"postgres\"",
        ),
        (
            "TARGET_PASSWORD_FILE",
            &wrong,
            "password authentication failed for user \"postgres\"",
        ),
        ("SOURCE_PASSWORD_FILE", "/nowhere", "reading /nowhere"),
        ("SOURCE_SSLROOTCERT", &foreign, "certificate verify failed"),
        ("TARGET_SSLROOTCERT", &foreign, "certificate verify failed"),
        ("SOURCE_SSLROOTCERT", "", "sslmode verify-full needs a CA"),
    ] {
        let ended = environment.run_with(key, value).await;
        assert!(!ended.text().contains("wrong\n"), "a password in the log");
        assert_ended(&ended, 2, &[words]);
    }
    // The example's host: it does not resolve, and no certificate covers it.
    let address = environment
        .plane
        .instance()
        .address(environment::LEADER)
        .to_string();
    let misnamed = environment
        .step()
        .env("SOURCE_HOST", &format!("{SOURCE}-rw.{NAMESPACE}.svc"))
        .env("SOURCE_HOSTADDR", &address);
    assert_ended(
        &misnamed.run(SOON).await.unwrap(),
        2,
        &["certificate verify failed", "hostname mismatch"],
    );
    let unused = environment
        .plane
        .instance()
        .address(environment::UNUSED_HOST)
        .to_string();
    assert_ended(
        &environment.run_with("SOURCE_HOSTADDR", &unused).await,
        1,
        &[
            "connecting to mastodon-postgresql.mastodon.svc:5432",
            "refused",
        ],
    );
    assert_eq!(
        environment.everything().await,
        before,
        "something has changed"
    );

    environment
        .patch_role(json!({"rules": environment.rules_without("pods").await}))
        .await;
    run_ends(
        &environment,
        2,
        &[
            "pods is forbidden",
            "cannot list resource",
            "apply the step's manifests again",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_that_block_the_cutover_are_reported_with_a_hint() {
    let (environment, instance) = Environment::streaming(80).await;
    let patroni = async |change: Value| {
        environment
            .source
            .patch_configuration(&change)
            .await
            .unwrap();
    };
    patroni(json!({"pause": true})).await;
    run_ends(
        &environment,
        3,
        &["leader mastodon-postgresql-0, paused", "resume it"],
    )
    .await;
    let read_only = |value: Value| {
        let parameters = json!({"default_transaction_read_only": value});
        json!({"pause": null, "postgresql": {"parameters": parameters}})
    };
    patroni(read_only(json!("on"))).await;
    let session = environment.source.connect("mastodon").await.unwrap();
    let setting = "select count(*) from pg_settings where name = 'default_transaction_read_only' \
        and reset_val = 'on'";
    until("read-only", async || number(&session, setting).await == 1).await;
    run_ends(
        &environment,
        3,
        &["source-writable: wanted default_transaction_read_only off at the source, found on"],
    )
    .await;
    patroni(read_only(Value::Null)).await;
    until("writable", async || number(&session, setting).await == 0).await;

    // As on a machine with another C library: according to the catalog, text was sorted by an older
    // version.
    let older = "update pg_database set datcollversion = '2.28' where datname = current_database();
        create table by_name (name text not null) partition by range (name)";
    environment
        .source
        .connect("mastodon")
        .await
        .unwrap()
        .batch_execute(older)
        .await
        .unwrap();
    let actual = "select pg_database_collation_actual_version(oid) from pg_database where datname \
        = current_database()";
    let row = environment
        .source
        .connect("mastodon")
        .await
        .unwrap()
        .query_one(actual, &[])
        .await
        .unwrap();
    let provided: String = row.get(0);
    let made = format!(
        "collations: mastodon made with 2.28, the source provides {provided}, the target \
         {provided}; test strings sort alike"
    );
    let words = [
        made.as_str(),
        " indexes of mastodon depend on it (",
        "public.index_users_on_email",
        "partitioned by ranges of text: public.by_name",
        "refresh collation version",
        READY,
    ];
    run_ends(&environment, 0, &words).await;

    at_target(&instance, "select pg_wal_replay_pause()").await;
    run_ends(
        &environment,
        3,
        &[
            "replay-paused: wanted replay running, found paused",
            "data is compared once replication is as wanted",
        ],
    )
    .await;
    at_target(&instance, "select pg_wal_replay_resume()").await;

    session
        .batch_execute("begin; lock table users")
        .await
        .unwrap();
    run_ends(
        &environment,
        1,
        &[
            "row-counts:users: wanted its rows counted",
            "lock timeout",
            "statuses: 80 rows (Zalando) ✓ matches",
        ],
    )
    .await;
    session.batch_execute("rollback").await.unwrap();

    environment
        .patch_cluster(json!({"spec": {"enableSuperuserAccess": false}}))
        .await;
    run_ends(&environment, 3, &["CNPG would remove the password"]).await;
    environment
        .patch_cluster(json!({"spec": {"enableSuperuserAccess": true}}))
        .await;

    let controller =
        |value: Value| json!({"metadata": {"annotations": {"acid.zalan.do/controller": value}}});
    environment
        .patch(
            ("acid.zalan.do", "v1", "postgresql"),
            SOURCE,
            controller(json!("another-operator")),
        )
        .await;
    run_ends(
        &environment,
        0,
        &["acid.zalan.do/controller: another-operator", READY],
    )
    .await;
    environment
        .patch(
            ("acid.zalan.do", "v1", "postgresql"),
            SOURCE,
            controller(Value::Null),
        )
        .await;

    environment
        .patch(
            ("apps", "v1", "Deployment"),
            "mastodon-web",
            json!({"spec": {"replicas": 0}}),
        )
        .await;
    run_ends(
        &environment,
        0,
        &["! apps-up:mastodon-web: 1 of 0 ready", READY],
    )
    .await;
    let accepted = environment.run_with("ACCEPT", "apps-up:mastodon-web").await;
    let words = [
        "✓ handled: ",
        "apps-up:mastodon-web: 1 of 0 ready (accepted)",
    ];
    assert_ended(&accepted, 0, &words);
    environment
        .remove(("apps", "v1", "Deployment"), "mastodon-web")
        .await;
    run_ends(
        &environment,
        2,
        &[
            "apps: wanted all of APPS, found no mastodon-web",
            "correct APPS",
        ],
    )
    .await;
    environment.apply(deployment("mastodon-web")).await;

    environment.follow("nowhere.mastodon.svc").await;
    environment.streams(false).await;
    run_ends(
        &environment,
        1,
        &[
            "wal-receiver: wanted streaming, found not streaming",
            "walsender: wanted one of the source that serves",
        ],
    )
    .await;
    environment
        .follow(&format!("{SOURCE}.{NAMESPACE}.svc"))
        .await;
    environment.streams(true).await;
    run_ends(&environment, 0, &[READY]).await;

    for (major, version) in [
        (Major::Same, ""),
        (
            Major::Other,
            "found 17.10 at the source, 16.2 at the target",
        ),
    ] {
        let unrelated_server = UnrelatedServer::start(
            &environment.plane,
            &environment.source.credentials().postgres,
            major,
        )
        .await
        .unwrap();
        let step = environment
            .step()
            .env("TARGET_HOSTADDR", &unrelated_server.address)
            .env("TARGET_SSLMODE", "require")
            .env("TARGET_SSLROOTCERT", "");
        let words = [
            "system-identifier: wanted the source's",
            "the target was made from another server",
            version,
        ];
        assert_ended(&step.run(SOON).await.unwrap(), 3, &words);
    }

    environment
        .patch_cluster(json!({"spec": {"replica": {"enabled": false}}}))
        .await;
    instance.promoted(SOON).await.unwrap();
    run_ends(
        &environment,
        3,
        &[
            "target-standby: wanted a standby, found a primary on timeline 2",
            "replica-mode: wanted the Cluster in replica mode",
        ],
    )
    .await;
    // As after a cutover, when the source no longer answers.
    let unused = environment
        .plane
        .instance()
        .address(environment::UNUSED_HOST)
        .to_string();
    let ended = environment.run_with("SOURCE_HOSTADDR", &unused).await;
    assert_ended(
        &ended,
        3,
        &[
            "replica-mode: wanted the Cluster in replica mode, found spec.replica.enabled is not \
             true",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_a_failover_and_an_outage_of_the_api_server() {
    let (environment, _instance) = Environment::streaming(80).await;
    environment.follow("nowhere.mastodon.svc").await;
    environment.streams(false).await;
    let running = environment
        .kubelet
        .step(STEP)
        .env("VALIDATE_MAX_SECONDS", "120")
        .start()
        .await
        .unwrap();
    running
        .wait_for_line("waiting: not ready for the cutover: wal-receiver", SOON)
        .await
        .unwrap();
    environment.source.switchover().await.unwrap();
    environment.plane.stop_api_server().await;
    running.wait_for_line("kubernetes api", SOON).await.unwrap();
    environment.plane.start_api_server().await.unwrap();
    environment.source.healthy().await.unwrap();
    environment
        .follow(&format!("{SOURCE}.{NAMESPACE}.svc"))
        .await;
    let ended = running.wait(Duration::from_secs(120)).await.unwrap();
    assert_ended(&ended, 0, &["timeline: 2 on both sides", READY]);

    // Without a leader: Patroni is killed, and its label removed.
    for member in environment.source.members() {
        member.kill_patroni().await.unwrap();
        environment
            .patch(
                ("", "v1", "Pod"),
                member.name(),
                json!({"metadata": {"labels": {"spilo-role": null}}}),
            )
            .await;
    }
    run_ends(
        &environment,
        1,
        &["patroni: wanted a leader, every member's REST API answers, not paused"],
    )
    .await;
}

/// On the real API server, with its defaults: a policy that admits one Deployment to the target and
/// not the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_policy_that_does_not_admit_the_application_blocks_the_cutover() {
    let (environment, _instance) = Environment::streaming(80).await;
    for app in ["mastodon-streaming", "mastodon-web"] {
        environment
            .apply(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{app}-5d9"), "labels": {"app": app}},
                "spec": {"containers": [{"name": "app", "image": "app"}]},
                "status": {"phase": "Running"},
            }))
            .await;
    }
    let policy = |apps: Value| {
        let expressions = json!([{"key": "app", "operator": "In", "values": apps}]);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "database-clients"},
            "spec": {
                "podSelector": {"matchLabels": {"cnpg.io/cluster": CLUSTER}},
                "ingress": [{
                    "from": [{"podSelector": {"matchExpressions": expressions}}],
                    "ports": [{"port": 5432}],
                }],
            },
        })
    };
    environment
        .apply(policy(json!(["mastodon-streaming"])))
        .await;
    let words = [
        "network-policy:database-clients: ",
        "do not admit mastodon-web-5d9 to database-1, port 5432",
        "add an ingress rule for these pods",
    ];
    let ended = environment.run().await;
    assert_ended(&ended, 3, &words);
    let streaming = "mastodon-streaming-5d9";
    assert!(!ended.text().contains(streaming), "{}", ended.text());
    let accepted = environment
        .run_with("ACCEPT", "network-policy:database-clients")
        .await;
    assert_ended(&accepted, 0, &["(accepted)", READY]);
    environment
        .apply(policy(json!(["mastodon-streaming", "mastodon-web"])))
        .await;
    let words = ["network-policy: 1 policies, none refuses it", READY];
    run_ends(&environment, 0, &words).await;
}
