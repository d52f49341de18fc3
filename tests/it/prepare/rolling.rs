//! What is changed in the `postgresql` resource, when it was asked for.

use std::{sync::Arc, time::Duration};

use harness::{
    manifests::{self, access::rbac_is_exact},
    source::{SourceOptions, operator::Operator},
};

use super::environment::{CLUSTER, Environment, SOON};

/// Both pods made anew, with a switchover between them.
const ROLLED: Duration = Duration::from_secs(240);

#[tokio::test]
async fn streaming_replica_needs_a_permission_and_then_rolls_the_source_once() {
    let environment = Environment::set(SourceOptions::default()).await;
    let untouched = environment.state().await;
    let refused = environment
        .job()
        .env("SOURCE_AUTH", "streaming_replica")
        .run(SOON)
        .await
        .unwrap();
    assert_eq!(refused.exit_code, 3, "{refused}");
    assert!(
        refused
            .text()
            .contains("set ALLOW_SOURCE_ROLLING_UPDATE=true"),
        "{refused}"
    );
    assert_eq!(environment.state().await, untouched);

    let operator = Operator::follow(&environment.plane, Arc::clone(&environment.source))
        .await
        .unwrap();
    let job = || {
        let job = environment
            .job()
            .env("SOURCE_AUTH", "streaming_replica")
            .env("ALLOW_SOURCE_ROLLING_UPDATE", "true");
        job.env("WAL_KEEP_MB", "1024")
    };
    let rolled = job().run(ROLLED).await.unwrap();
    assert_eq!(rolled.exit_code, 0, "{rolled}");
    environment.source.healthy().await.unwrap();
    assert_eq!(
        environment
            .ask::<String>("select current_setting('wal_keep_size')")
            .await,
        "1GB"
    );
    let list: Vec<String> =
        environment.postgresqls().get(CLUSTER).await.unwrap().data["spec"]["patroni"]["pg_hba"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap().to_owned())
            .collect();
    assert!(
        list.contains(&"hostssl replication streaming_replica all scram-sha-256".to_owned()),
        "{list:?}"
    );
    assert!(
        list.iter()
            .any(|line| line.starts_with("local") && line.contains("trust")),
        "the whole of Spilo's list: {list:?}"
    );
    assert!(
        list.iter().any(|line| line.split_whitespace().take(3).eq([
            "hostssl",
            "replication",
            "standby"
        ])),
        "{list:?}"
    );

    assert_eq!(
        environment
            .secret_text("zalando-streaming-replica", "username")
            .await,
        "streaming_replica"
    );
    let hash: String = environment
        .ask("select rolpassword from pg_authid where rolname = 'streaming_replica'")
        .await;
    assert!(
        hash.starts_with("SCRAM-SHA-256$"),
        "md5 although password_encryption is md5"
    );
    assert!(
        !environment.server_log().await.contains(&hash),
        "the verifier is in the server's log"
    );
    assert!(
        !rolled.text().contains(&hash)
            && !rolled.text().contains(
                &environment
                    .secret_text("zalando-streaming-replica", "password")
                    .await
            )
    );
    let external = &environment.manifest().await[0]["spec"]["externalClusters"][0];
    assert_eq!(
        external["connectionParameters"]["user"],
        "streaming_replica"
    );

    let state = environment.state().await;
    let again = job().run(SOON).await.unwrap();
    assert_eq!(again.exit_code, 0, "{again}");
    assert_eq!(
        environment.state().await,
        state,
        "a second run changes nothing"
    );
    assert_eq!(
        operator.syncs(),
        1,
        "both changes in one, and none for the second run"
    );

    // With the other role, too, everything that the Role grants was used by now.
    let standby = environment.run().await;
    assert_eq!(standby.exit_code, 0, "{standby}");
    let objects = manifests::of_step(
        &manifests::example(environment.plane.setup()).unwrap(),
        "prepare-zalando",
    );
    rbac_is_exact(&environment.plane.audit().unwrap(), &objects).unwrap();

    // Somebody takes the role's password away: the Secret's is set again.
    environment
        .sql("postgres", "alter role streaming_replica password null")
        .await;
    let mended = job().run(SOON).await.unwrap();
    assert_eq!(mended.exit_code, 0, "{mended}");
    assert!(
        mended
            .text()
            .contains("password of role streaming_replica set"),
        "{mended}"
    );
}

#[tokio::test]
async fn while_nobody_acts_on_a_change_it_waits_and_goes_on_through_a_failover_and_an_end() {
    let environment = Environment::set(SourceOptions::default()).await;
    // No operator runs.
    let waiting = environment
        .job()
        .env("WAL_KEEP_MB", "1024")
        .start()
        .await
        .unwrap();
    waiting
        .wait_for_line("waiting for the operator: wal_keep_size of 1024 MB", SOON)
        .await
        .unwrap();
    waiting.terminate();
    let ended = waiting.wait(SOON).await.unwrap();
    assert_eq!(ended.exit_code, 1, "{ended}");
    assert!(ended.text().contains("asked to end (SIGTERM)"), "{ended}");
    assert_eq!(environment.secret("database-owner").await, None);

    let waiting = environment
        .job()
        .env("WAL_KEEP_MB", "1024")
        .start()
        .await
        .unwrap();
    waiting
        .wait_for_line("waiting for the operator", SOON)
        .await
        .unwrap();
    environment.source.switchover().await.unwrap();
    let parameters = serde_json::json!({"postgresql": {"parameters": {"wal_keep_size": "1GB"}}});
    environment
        .source
        .patch_configuration(&parameters)
        .await
        .unwrap();
    let ended = waiting.wait(SOON).await.unwrap();
    assert_eq!(ended.exit_code, 0, "{ended}");
}

#[tokio::test]
async fn without_an_api_server_in_the_middle_it_ends_as_not_yet_and_a_rerun_goes_on() {
    let environment = Environment::set(SourceOptions::default()).await;
    let waiting = environment
        .job()
        .env("WAL_KEEP_MB", "1024")
        .start()
        .await
        .unwrap();
    waiting
        .wait_for_line("waiting for the operator", SOON)
        .await
        .unwrap();
    let leader = environment.source.connect("postgres").await.unwrap();
    environment.plane.stop_api_server().await;
    // In the operator's stead, so that it goes on, and meets the missing API server. Patroni holds
    // out for a while without it.
    leader
        .batch_execute("alter system set wal_keep_size = '1GB'")
        .await
        .unwrap();
    leader
        .batch_execute("select pg_reload_conf()")
        .await
        .unwrap();
    let ended = waiting.wait(SOON).await.unwrap();
    assert_eq!(ended.exit_code, 1, "{ended}");
    environment.plane.start_api_server().await.unwrap();
    environment.source.healthy().await.unwrap();
    environment
        .sql("postgres", "alter system reset wal_keep_size")
        .await;
    let ended = environment.run().await;
    assert_eq!(ended.exit_code, 0, "{ended}");
}
