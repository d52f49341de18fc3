//! The harness's own source, before anything is concluded from it.

use std::time::{Duration, Instant};

use harness::{
    control_plane::ControlPlane,
    source::{Checksums, Dcs, Hashes, Source, SourceOptions, Tls, rest},
};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use serde_json::json;

async fn start(options: SourceOptions) -> (ControlPlane, Source) {
    let begun = Instant::now();
    let plane = ControlPlane::start().await.unwrap();
    let ready = begun.elapsed();
    let source = Source::start(&plane, options).await.unwrap();
    eprintln!("control plane {ready:.1?}, source {:.1?}", begun.elapsed() - ready);
    (plane, source)
}

async fn text(source: &Source, database: &str, query: &str) -> String {
    source.connect(database).await.unwrap().query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn with_endpoints_it_is_as_spilo_leaves_it_and_switches_over() {
    let (plane, source) = start(SourceOptions::default()).await;
    let pods: Api<Pod> = Api::namespaced(plane.admin(), "mastodon");
    let leader = source.leader().await.unwrap().name().to_owned();
    let pod = pods.get(&leader).await.unwrap();
    assert_eq!(pod.labels()["spilo-role"], "master");
    let status: serde_json::Value = serde_json::from_str(&pod.annotations()["status"]).unwrap();
    assert_eq!(status["api_url"], format!("{}/patroni", source.leader().await.unwrap().rest_url()));
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
            text(&source, "mastodon", &format!("select current_setting('{setting}')")).await,
            value,
            "{setting}"
        );
    }
    assert_eq!(
        text(&source, "mastodon", "select datcollate from pg_database where datname = 'mastodon'").await,
        "en_US.utf-8"
    );
    assert!(
        text(&source, "postgres", "select rolpassword from pg_authid where rolname = 'mastodon'")
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
    assert_eq!(pods.get(&leader).await.unwrap().labels()["spilo-role"], "replica");
    assert_eq!(text(&source, "mastodon", "select count(*)::text from statuses").await, "8000");
    source.stop().await.unwrap();
    assert!(source.members().iter().all(|member| !member.postgres_runs()));
}

#[tokio::test]
async fn with_configmaps_scram_and_checksums_a_stop_in_pause_is_undone_on_the_same_timeline() {
    let options = SourceOptions {
        dcs: Dcs::ConfigMaps,
        hashes: Hashes::Scram,
        checksums: Checksums::On,
        tls: Tls::SelfSigned,
        ..Default::default()
    };
    let (_plane, source) = start(options).await;
    assert_eq!(text(&source, "mastodon", "select current_setting('data_checksums')").await, "on");
    assert!(
        text(&source, "postgres", "select rolpassword from pg_authid where rolname = 'mastodon'")
            .await
            .starts_with("SCRAM")
    );
    let leader = source.leader().await.unwrap();
    let timeline = "select timeline_id::text from pg_control_checkpoint()";
    let before = text(&source, "postgres", timeline).await;

    let block = json!({"pause": true, "postgresql": {"parameters": {"default_transaction_read_only": "on"}}});
    source.patch_configuration(&block).await.unwrap();
    let read_only = "select current_setting('default_transaction_read_only')";
    until("read-only", async || text(&source, "postgres", read_only).await == "on").await;

    // The fence as cutover does it; the answer does not matter, the server is going down under it.
    let stop = "do $$ begin execute format('copy (select 1) to program %L', format('%s/pg_ctl stop -D %s -m fast -W',
        (select setting from pg_config() where name = 'BINDIR'), current_setting('data_directory'))); end $$";
    let client = source.connect_to(leader, "postgres").await.unwrap();
    client.batch_execute(stop).await.ok();
    until("the server stopped", async || !leader.postgres_runs()).await;
    // Longer than a round of Patroni (loop_wait is 10 s): what it does not do in this time it does not do.
    let watched = Instant::now();
    let replica = source.members().iter().find(|member| member.name() != leader.name()).unwrap();
    let standby = source.connect_to(replica, "postgres").await.unwrap();
    while watched.elapsed() < Duration::from_secs(12) {
        assert!(!leader.postgres_runs(), "the stopped server was started again");
        let in_recovery: bool = standby.query_one("select pg_is_in_recovery()", &[]).await.unwrap().get(0);
        assert!(in_recovery, "the other member was promoted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    rest::demand(Method::POST, &format!("{}/restart", leader.rest_url()), &json!({}))
        .await
        .unwrap();
    until("the leader is back", async || {
        source.leader().await.is_ok_and(|now| now.name() == leader.name())
    })
    .await;
    let undo = json!({"pause": null, "postgresql": {"parameters": {"default_transaction_read_only": null}}});
    source.patch_configuration(&undo).await.unwrap();
    until("writable", async || text(&source, "postgres", read_only).await == "off").await;
    source.healthy().await.unwrap();
    assert_eq!(text(&source, "postgres", timeline).await, before);

    source.kill_leader_postgres().await.unwrap();
    until("a leader after the crash", async || source.leader().await.is_ok()).await;
    source.healthy().await.unwrap();
}

async fn until(what: &str, seen: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !seen().await {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
