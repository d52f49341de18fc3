//! Tests of the harness's source, on which other tests rely.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{
    control_plane::ControlPlane,
    source::{
        Checksums, Dcs, Hashes, Member, Source, SourceOptions, Tls, operator::Operator, rest,
    },
};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::json;

async fn start(options: SourceOptions) -> (ControlPlane, Source) {
    let begun = Instant::now();
    let plane = ControlPlane::start().await.unwrap();
    let ready = begun.elapsed();
    let source = Source::start(&plane, options).await.unwrap();
    eprintln!(
        "control plane {ready:.1?}, source {:.1?}",
        begun.elapsed() - ready
    );
    (plane, source)
}

async fn text(source: &Source, database: &str, query: &str) -> String {
    source
        .connect(database)
        .await
        .unwrap()
        .query_one(query, &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn with_endpoints_it_matches_spilo_and_switches_over() {
    let (plane, source) = start(SourceOptions::default()).await;
    let pods: Api<Pod> = Api::namespaced(plane.admin(), "mastodon");
    let leader = source.leader().await.unwrap().name().to_owned();
    let pod = pods.get(&leader).await.unwrap();
    assert_eq!(pod.labels()["spilo-role"], "master");
    let status: serde_json::Value = serde_json::from_str(&pod.annotations()["status"]).unwrap();
    assert_eq!(
        status["api_url"],
        format!("{}/patroni", source.leader().await.unwrap().rest_url())
    );
    for (setting, value) in [
        ("data_checksums", "off"),
        ("password_encryption", "md5"),
        ("lc_messages", "en_US.utf-8"),
        ("log_statement", "ddl"),
        ("ssl", "on"),
        ("max_connections", "136"),
        ("wal_level", "replica"),
    ] {
        assert_eq!(
            text(
                &source,
                "mastodon",
                &format!("select current_setting('{setting}')")
            )
            .await,
            value,
            "{setting}"
        );
    }
    assert_eq!(
        text(
            &source,
            "mastodon",
            "select datcollate from pg_database where datname = 'mastodon'"
        )
        .await,
        "en_US.utf-8"
    );
    assert!(
        text(
            &source,
            "postgres",
            "select rolpassword from pg_authid where rolname = 'mastodon'"
        )
        .await
        .starts_with("md5")
    );
    assert!(
        text(&source, "postgres", "select current_setting('hba_file')")
            .await
            .ends_with("/pgdata/pgroot/data/pg_hba.conf")
    );

    source.switchover().await.unwrap();
    assert_ne!(source.leader().await.unwrap().name(), leader);
    assert_eq!(
        pods.get(&leader).await.unwrap().labels()["spilo-role"],
        "replica"
    );
    assert_eq!(
        text(&source, "mastodon", "select count(*)::text from statuses").await,
        "8000"
    );
    source.stop().await.unwrap();
    assert!(
        source
            .members()
            .iter()
            .all(|member| !member.postgres_runs())
    );
}

#[tokio::test]
async fn with_configmaps_a_server_stopped_while_paused_restarts_on_the_same_timeline() {
    let options = SourceOptions {
        dcs: Dcs::ConfigMaps,
        hashes: Hashes::Scram,
        checksums: Checksums::On,
        tls: Tls::SelfSigned,
        ..Default::default()
    };
    let (_plane, source) = start(options).await;
    assert_eq!(
        text(
            &source,
            "mastodon",
            "select current_setting('data_checksums')"
        )
        .await,
        "on"
    );
    assert!(
        text(
            &source,
            "postgres",
            "select rolpassword from pg_authid where rolname = 'mastodon'"
        )
        .await
        .starts_with("SCRAM")
    );
    let leader = source.leader().await.unwrap();
    let timeline = "select timeline_id::text from pg_control_checkpoint()";
    let before = text(&source, "postgres", timeline).await;

    let parameters = |read_only: Option<&str>| {
        let setting = json!({"default_transaction_read_only": read_only});
        json!({"parameters": setting})
    };
    let block = json!({"pause": true, "postgresql": parameters(Some("on"))});
    source.patch_configuration(&block).await.unwrap();
    let read_only = "select current_setting('default_transaction_read_only')";
    until("read-only", async || {
        text(&source, "postgres", read_only).await == "on"
    })
    .await;

    // The fence as cutover performs it. The result is ignored, because the server is shutting down.
    let stop =
        "do $$ begin execute format('copy (select 1) to program %L', format('%s/pg_ctl stop \
        -D %s -m fast -W',
        (select setting from pg_config() where name = 'BINDIR'), \
        current_setting('data_directory'))); end $$";
    let client = source.connect_to(leader, "postgres").await.unwrap();
    assert_eq!(leader_metrics(leader).await, [1, 1]);
    client.batch_execute(stop).await.ok();
    until("the server stopped", async || !leader.postgres_runs()).await;
    assert_eq!(leader_metrics(leader).await[1], 0);
    // Longer than a loop of Patroni (loop_wait is 10 s), in which it would have acted.
    let watched = Instant::now();
    let replica = source
        .members()
        .iter()
        .find(|member| member.name() != leader.name())
        .unwrap();
    let standby = source.connect_to(replica, "postgres").await.unwrap();
    while watched.elapsed() < Duration::from_secs(12) {
        assert!(
            !leader.postgres_runs(),
            "the stopped server was started again"
        );
        let in_recovery: bool = standby
            .query_one("select pg_is_in_recovery()", &[])
            .await
            .unwrap()
            .get(0);
        assert!(in_recovery, "the other member was promoted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    rest::demand(
        Method::POST,
        &format!("{}/restart", leader.rest_url()),
        &json!({}),
    )
    .await
    .unwrap();
    until("the leader is back", async || {
        source
            .leader()
            .await
            .is_ok_and(|now| now.name() == leader.name())
    })
    .await;
    let undo = json!({"pause": null, "postgresql": parameters(None)});
    source.patch_configuration(&undo).await.unwrap();
    until("writable", async || {
        text(&source, "postgres", read_only).await == "off"
    })
    .await;
    source.healthy().await.unwrap();
    assert_eq!(leader_metrics(leader).await, [1, 1]);
    assert_eq!(leader_metrics(replica).await, [0, 1]);
    assert_eq!(text(&source, "postgres", timeline).await, before);

    let postmaster = std::fs::read_to_string(leader.layout().data.join("postmaster.pid")).unwrap();
    source.kill_leader_postgres().await.unwrap();
    let changed = || {
        std::fs::read_to_string(leader.layout().data.join("postmaster.pid"))
            .is_ok_and(|now| now.lines().next() != postmaster.lines().next())
    };
    until("another postmaster", async || {
        changed() && leader.postgres_runs()
    })
    .await;
    until("a leader after the crash", async || {
        source.leader().await.is_ok()
    })
    .await;
    source.healthy().await.unwrap();
}

/// The two metrics by which the alert SourceAnswersAgain of manifests/components/prometheus-rules
/// detects that the source has a leader.
async fn leader_metrics(member: &Member) -> [u8; 2] {
    let metrics = rest::get(&format!("{}/metrics", member.rest_url()))
        .await
        .unwrap();
    let metrics = metrics.as_str().unwrap();
    ["patroni_primary", "patroni_postgres_running"].map(|metric| {
        let series = format!(
            "{metric}{{scope=\"mastodon-postgresql\",name=\"{}\"}} ",
            member.name()
        );
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value
            .unwrap_or_else(|| panic!("no {series}in {metrics}"))
            .parse()
            .unwrap()
    })
}

#[tokio::test]
async fn the_operator_follows_the_resource_unless_another_controller_is_named() {
    let (plane, source) = start(SourceOptions::default()).await;
    let source = Arc::new(source);
    let operator = Operator::follow(&plane, Arc::clone(&source)).await.unwrap();
    let timeline = "select timeline_id::text from pg_control_checkpoint()";
    let lines =
        "select count(*)::text from pg_hba_file_rules where 'streaming_replica' = any (user_name)";
    let before = text(&source, "postgres", timeline).await;

    let parameters = json!({"wal_keep_size": "1GB", "max_connections": "150"});
    change(
        &plane,
        json!({"spec": {"postgresql": {"parameters": parameters}}}),
    )
    .await;
    until("the parameters are synced", async || operator.syncs() == 1).await;
    assert_eq!(
        text(
            &source,
            "postgres",
            "select current_setting('wal_keep_size')"
        )
        .await,
        "1GB"
    );
    assert_eq!(
        text(
            &source,
            "postgres",
            "select current_setting('max_connections')"
        )
        .await,
        "150"
    );
    assert_eq!(
        text(&source, "postgres", timeline).await,
        before,
        "a restart causes no failover"
    );

    let pg_hba = [
        "local all all trust",
        "hostssl replication standby all md5",
        "hostssl replication streaming_replica all scram-sha-256",
        "hostssl all all all md5",
    ];
    let suspended = json!({
        "metadata": {"annotations": {"acid.zalan.do/controller": "another-operator"}},
        "spec": {"patroni": {"pg_hba": pg_hba}},
    });
    change(&plane, suspended).await;
    change(
        &plane,
        json!({"metadata": {"annotations": {"acid.zalan.do/controller": null}}}),
    )
    .await;
    // Once a later change is synced, the operator has handled the earlier ones, too.
    change(
        &plane,
        json!({"spec": {"postgresql": {"parameters": {"wal_keep_size": "2GB"}}}}),
    )
    .await;
    until("the later change is synced", async || operator.syncs() == 2).await;
    assert_eq!(text(&source, "postgres", lines).await, "0");

    let mut pg_hba = pg_hba.to_vec();
    pg_hba.push("hostnossl all all all reject");
    change(&plane, json!({"spec": {"patroni": {"pg_hba": pg_hba}}})).await;
    until("the pods are rolled", async || operator.syncs() == 3).await;
    assert_eq!(text(&source, "postgres", lines).await, "1");
    source
        .connect("postgres")
        .await
        .unwrap()
        .batch_execute("checkpoint")
        .await
        .unwrap();
    assert_ne!(
        text(&source, "postgres", timeline).await,
        before,
        "a rolling update ends with a switchover"
    );
    let status = resources(&plane)
        .get("mastodon-postgresql")
        .await
        .unwrap()
        .data["status"]
        .clone();
    assert_eq!(status["PostgresClusterStatus"], "Running");
}

#[tokio::test]
async fn a_suspended_leader_does_not_answer_and_continues_once_resumed() {
    let (_plane, source) = start(SourceOptions::default()).await;
    let leader = source.leader().await.unwrap();
    let client = source.connect("postgres").await.unwrap();
    leader.suspend();
    let answer =
        tokio::time::timeout(Duration::from_secs(2), client.query_one("select 1", &[])).await;
    assert!(answer.is_err(), "a suspended server answered");
    leader.resume();
    client.query_one("select 1", &[]).await.unwrap();
    source.healthy().await.unwrap();
}

fn resources(plane: &ControlPlane) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("acid.zalan.do", "v1", "postgresql");
    Api::namespaced_with(
        plane.admin(),
        "mastodon",
        &ApiResource::from_gvk_with_plural(&kind, "postgresqls"),
    )
}

async fn change(plane: &ControlPlane, patch: serde_json::Value) {
    resources(plane)
        .patch(
            "mastodon-postgresql",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .unwrap();
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
