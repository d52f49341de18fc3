//! Changes of the `postgresql` resource that the settings request.

use std::{sync::Arc, time::Duration};

use harness::{
    manifests::{self, access::rbac_is_exact},
    source::{SourceOptions, operator::Operator},
};

use super::environment::{CLUSTER, Environment, SOON};

/// Time in which both pods are recreated, with a switchover.
const ROLLED: Duration = Duration::from_secs(240);

#[tokio::test]
async fn streaming_replica_needs_permission_and_then_rolls_the_source_once() {
    let environment = Environment::start(SourceOptions::default()).await;
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
        "Spilo's complete list: {list:?}"
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

    // After a run with the other role, everything that the Role grants has been used.
    let standby = environment.run().await;
    assert_eq!(standby.exit_code, 0, "{standby}");
    let objects = manifests::of_step(
        &manifests::example(environment.plane.setup()).unwrap(),
        "prepare-zalando",
    );
    rbac_is_exact(&environment.plane.audit().unwrap(), &objects).unwrap();

    // The role has lost its password: the one in the Secret is set again.
    environment
        .sql("postgres", "alter role streaming_replica password null")
        .await;
    let repaired = job().run(SOON).await.unwrap();
    assert_eq!(repaired.exit_code, 0, "{repaired}");
    assert!(
        repaired
            .text()
            .contains("password of role streaming_replica set"),
        "{repaired}"
    );
}

#[tokio::test]
async fn without_an_operator_it_waits_for_the_change_even_through_a_switchover() {
    let environment = Environment::start(SourceOptions::default()).await;
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
async fn without_an_api_server_it_ends_as_transient_and_a_rerun_succeeds() {
    let environment = Environment::start(SourceOptions::default()).await;
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
    // The test applies the change in place of the operator, so the step continues and meets the
    // missing API server. Patroni keeps the leader for a while without it.
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
