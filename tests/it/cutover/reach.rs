//! Who reaches the target after the Services were repointed: the downtime ends when clients are
//! served, not when a console reports that it is no longer paused.

use serde_json::Value;

use super::environment::{Environment, SOON, assert_ended};

/// A policy admits the Job and one pooler to the target, and refuses the other two poolers, of
/// which one has clients and one has none. SOURCE_HOSTADDR is the leader's own address, as where
/// DNS cannot resolve the Service: the Service that is repointed is asked nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_downtime_ends_when_every_pooler_reaches_the_target() {
    let environment = Environment::ready().await;
    let leader = environment.migration.source.leader().await.unwrap();
    let running = environment
        .cutover()
        .env("SOURCE_HOSTADDR", &leader.address().to_string())
        .env("FAILPOINT", "before ResumePoolers")
        .start()
        .await
        .unwrap();
    running
        .wait_for_line("failpoint before ResumePoolers: waiting", SOON)
        .await
        .unwrap();
    let [with_clients, _, without_clients] = &environment.migration.poolers;
    for pooler in [with_clients, without_clients] {
        pooler.reaches_upstream(false);
    }
    running.release_failpoint();
    for pooler in [with_clients, without_clients] {
        let words = format!("pooler {} does not reach the target", pooler.pod());
        running.wait_for_line(&words, SOON).await.unwrap();
    }
    assert_eq!(environment.fact("serving").await, Value::Null);
    for pooler in [with_clients, without_clients] {
        pooler.reaches_upstream(true);
    }
    let ended = running.wait(SOON).await.unwrap();
    let words = [
        "and its clients wait",
        "NetworkPolicy? TLS (server_tls_sslmode)? pg_hba?",
        "DOWNTIME ENDS",
    ];
    assert_ended(&ended, 0, &words);
    let admitted = format!("pooler {} does not", environment.migration.poolers[1].pod());
    assert!(!ended.text().contains(&admitted), "{ended}");
    environment.nothing_is_lost().await;
}
