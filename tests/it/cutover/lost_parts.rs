//! What a cutover needs is taken away from it: a member of the source that does not answer, its
//! record, the target's Cluster, and at last the source.

use harness::migration::CLUSTER;
use serde_json::{Value, json};

use super::environment::{
    CNPG, CONFIG_MAP, Environment, POD, POSTGRESQL, SOON, SOURCE, assert_ended,
};

const RECORD: &str = "cutover-database";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_member_the_target_or_the_record_the_application_gets_its_source_back() {
    let environment = Environment::ready().await;
    waits_for_a_member_that_does_not_answer(&environment).await;
    rolls_back_without_the_target(&environment).await;
    stops_without_its_record(&environment).await;
    finishes_without_the_source(&environment).await;
    environment.nothing_is_lost().await;
}

/// Before anything is changed: every member must say that its server is no primary.
async fn waits_for_a_member_that_does_not_answer(environment: &Environment) {
    let replica = environment.migration.source.replica().await.unwrap();
    replica.suspend_patroni();
    let launch = environment.cutover().env("CUTOVER_MAX_SECONDS", "5");
    let words = ["not ready", "no answer from", replica.name()];
    environment.run(launch, 1, &words).await;
    assert!(environment.fact("started").await.is_null());
    replica.resume_patroni();
}

/// A cutover was killed with its writes blocked, and the migration is given up: nothing that a
/// rollback does needs the Cluster. The record stays until then, although it was deleted, too.
async fn rolls_back_without_the_target(environment: &Environment) {
    let running = environment
        .until_failpoint(environment.cutover(), "before record Fenced")
        .await;
    running.kill();
    running.wait(SOON).await.unwrap();
    environment.remove(CONFIG_MAP, RECORD).await;
    let record = environment.object(CONFIG_MAP, RECORD).await;
    assert!(record["metadata"]["deletionTimestamp"].is_string());
    environment.remove(CNPG, CLUSTER).await;
    environment
        .migration
        .target
        .gone(CLUSTER, SOON)
        .await
        .unwrap();
    let words = ["ROLLING BACK", "runs on the source as before"];
    environment.run(environment.rollback(), 0, &words).await;
    environment.runs_on_the_source().await;
    let record = environment
        .migration
        .objects()
        .find(CONFIG_MAP, RECORD)
        .await;
    assert_eq!(
        record.unwrap(),
        None,
        "it was deleted, and nothing holds it any more"
    );
    environment.migration.apply_rendered().await.unwrap();
    let validated = environment.migration.step("validate-replication");
    environment.run(validated, 0, &[]).await;
}

/// A program that has seen its record does not take its absence for a fresh start, and one that
/// meets the marks of a cutover without a record says so.
async fn stops_without_its_record(environment: &Environment) {
    let running = environment
        .until_failpoint(environment.cutover(), "before EndSessions")
        .await;
    let removed = json!({"metadata": {"finalizers": Value::Null}});
    environment.patch(CONFIG_MAP, RECORD, removed).await;
    environment.remove(CONFIG_MAP, RECORD).await;
    running.release_failpoint();
    let ended = running.wait(SOON).await.unwrap();
    assert_ended(
        &ended,
        4,
        &["the record was removed while the cutover was under way"],
    );
    let words = ["suspended by a cutover, and no cutover is on record"];
    environment.run(environment.rollback(), 4, &words).await;
    environment.run(environment.cutover(), 4, &words).await;

    // By hand, as docs/operations.md says.
    let source = &environment.migration.source;
    source
        .patch_configuration(&json!({
            "pause": null,
            "postgresql": {"parameters": {
                "default_transaction_read_only": null, "restart_after_crash": null,
            }},
        }))
        .await
        .unwrap();
    for pooler in &environment.migration.poolers {
        pooler.console("resume").await.unwrap();
    }
    let released = json!({"metadata": {"annotations": {"acid.zalan.do/controller": null}}});
    environment.patch(POSTGRESQL, SOURCE, released).await;
    environment.runs_on_the_source().await;
}

/// Past the point of no return every member of the source is gone, and the only server that answers
/// by the source's Service is the target, whose name nothing verifies: it is not taken for a source
/// that another actor has started.
async fn finishes_without_the_source(environment: &Environment) {
    let launch = environment.cutover().env("SOURCE_SSLMODE", "require");
    let running = environment.until_failpoint(launch, "after Promote").await;
    let source = &environment.migration.source;
    source.stop().await.unwrap();
    for member in source.members() {
        environment.remove(POD, member.name()).await;
    }
    running.release_failpoint();
    let ended = running.wait(SOON).await.unwrap();
    assert_ended(&ended, 0, &["DOWNTIME ENDS"]);
    let stops = ended.text().matches("stopping the source's server").count();
    assert_eq!(stops, 1, "{ended}");
}
