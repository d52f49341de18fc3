//! Who reaches the target after the Services were repointed: the downtime ends when clients are
//! served, not when a console reports that it is no longer paused.

use std::time::Duration;

use serde_json::{Value, json};

use super::environment::{Environment, SERVICE, SOON, SOURCE, assert_ended};

/// A transaction through a pooler is open when the cutover comes to its block; a pod of a pooler is
/// deleted in the pause; a policy admits the Job and that pooler to the target, and refuses the
/// other two poolers, of which one has clients and one has none. SOURCE_HOSTADDR is the leader's
/// own address, as where DNS cannot resolve the Service: the Service that is repointed is asked
/// nevertheless. When clients are served, a sync of the Zalando operator that was queued before it
/// was suspended turns that Service back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_downtime_ends_when_every_pooler_reaches_the_target() {
    let environment = Environment::ready().await;
    let [with_clients, deleted, without_clients] = &environment.migration.poolers;
    let report = with_clients.session("mastodon").await.unwrap();
    report.batch_execute("begin; select 1").await.unwrap();
    is_a_long_transaction(&environment).await;
    let leader = environment.migration.source.leader().await.unwrap();
    let running = environment
        .cutover()
        .env("SOURCE_HOSTADDR", &leader.address().to_string())
        .env("FAILPOINT", "before ResumePoolers")
        .env("SERVICES_WATCH_SECONDS", "10")
        .start()
        .await
        .unwrap();
    let calm = "waiting for a calm moment to pause the poolers; long transactions: pooler a person";
    running.wait_for_line(calm, SOON).await.unwrap();
    report.batch_execute("commit").await.unwrap();
    running
        .wait_for_line("blocking writes at", SOON)
        .await
        .unwrap();
    deleted.terminate().await.unwrap();
    running
        .wait_for_line("failpoint before ResumePoolers: waiting", SOON)
        .await
        .unwrap();
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
    running
        .wait_for_line("watching the Services for 10 s", SOON)
        .await
        .unwrap();
    is_turned_back(&environment).await;
    let ended = running.wait(SOON).await.unwrap();
    let words = [
        "and its clients wait",
        "NetworkPolicy? TLS (server_tls_sslmode)? pg_hba?",
        "DOWNTIME ENDS",
    ];
    assert_ended(&ended, 0, &words);
    let admitted = format!("pooler {} does not", deleted.pod());
    assert!(!ended.text().contains(&admitted), "{ended}");
    // PAUSE is refused where one is in force.
    deleted.console("pause").await.unwrap();
    deleted.console("resume").await.unwrap();
    environment.nothing_is_lost().await;
}

/// Takes the selector from the source's Service, as the operator's sync does where Endpoints hold
/// Patroni's state, and waits until the cutover has repointed it.
async fn is_turned_back(environment: &Environment) {
    let selector = async || {
        let service = environment.object(SERVICE, SOURCE).await;
        service["spec"]["selector"].clone()
    };
    let repointed = selector().await;
    assert_ne!(repointed, Value::Null);
    let change = json!({"spec": {"selector": null}});
    environment.patch(SERVICE, SOURCE, change).await;
    let waits = async {
        while selector().await != repointed {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waits).await.unwrap();
    assert_eq!(environment.fact("finished").await, Value::Null);
}

/// Waits until the transaction through a pooler is as old as cutover waits for.
async fn is_a_long_transaction(environment: &Environment) {
    let session = environment
        .migration
        .source
        .connect("mastodon")
        .await
        .unwrap();
    let old = "select count(*) = 1 from pg_stat_activity
        where usename = 'pooler' and clock_timestamp() - xact_start > interval '2 s'";
    let waits = async {
        while !session.query_one(old, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waits).await.unwrap();
}
