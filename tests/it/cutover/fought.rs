//! Everything that goes wrong beside it: it goes back by itself or goes on, and the ledger holds.

use std::time::Duration;

use super::stage::{SOON, Stage, ends, same};

/// How long the API server is away; longer than the Lease lasts and than Patroni's own retry.
const API_AWAY: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_back_or_goes_on_whatever_fails_beside_it() {
    let stage = Stage::ready().await;
    catch_up_is_impossible(&stage).await;
    the_source_crashes(&stage).await;
    a_second_one_and_no_api_server(&stage).await;
    stage.nothing_is_lost().await;
}

/// At its deadline it goes back by itself; everything is as it was.
async fn catch_up_is_impossible(stage: &Stage) {
    let before = stage.standing().await;
    let running = stage.stuck(stage.cutover().env("CUTOVER_MAX_SECONDS", "5")).await;
    let ended = running.wait(SOON).await.unwrap();
    ends(
        &ended,
        3,
        &[
            "the target has replayed",
            "GOING BACK: the cut was not through 5 s after the block (CUTOVER_MAX_SECONDS)",
            "the application runs on the source as before",
        ],
    );
    assert_eq!(ended.last_word()["verdict"], "refused", "{ended}");
    stage.at_target("select pg_wal_replay_resume()").await;
    same(&before, &stage.standing().await);
    stage.runs_on_the_source().await;
}

/// kill -9 of the leader's server. Patroni is paused, so nobody else is promoted; whether it went back or on, nothing is lost.
async fn the_source_crashes(stage: &Stage) {
    let before = stage.standing().await;
    let running = stage.stuck(stage.cutover().env("CUTOVER_MAX_SECONDS", "10")).await;
    running.says("the target has replayed", SOON).await.unwrap();
    stage.migration.source.kill_leader_postgres().await.unwrap();
    let ended = running.wait(SOON).await.unwrap();
    ends(&ended, 3, &["GOING BACK", "the application runs on the source as before"]);
    stage.at_target("select pg_wal_replay_resume()").await;
    stage.runs_on_the_source().await;
    same(&before, &stage.standing().await);
    stage.migration.source.healthy().await.unwrap();
}

/// The second one is told so and touches nothing; the first lives through 20 s without an API server.
async fn a_second_one_and_no_api_server(stage: &Stage) {
    let first = stage.stuck(stage.cutover()).await;
    first.says("the target has replayed", SOON).await.unwrap();
    let journal = stage.fact("marker").await;
    let second = stage
        .cut(stage.cutover(), 3, &["another cutover is running", "this one has changed nothing"])
        .await;
    assert!(!second.text().contains("DOWNTIME"), "{second}");
    assert_eq!(stage.fact("marker").await, journal);

    stage.migration.plane.stop_api_server().await;
    first.says("kubernetes api", SOON).await.unwrap();
    tokio::time::sleep(API_AWAY).await;
    stage.migration.plane.start_api_server().await.unwrap();
    stage.at_target("select pg_wal_replay_resume()").await;
    ends(&first.wait(SOON).await.unwrap(), 0, &["POINT OF NO RETURN", "DOWNTIME ENDS"]);
}
