//! Everything that goes wrong beside it: it goes back by itself or goes on, and the ledger holds.

use std::time::Duration;

use harness::kubelet::Running;

use super::stage::{DEPLOYMENT, SOON, Stage, ends, same};

/// How long the API server is away; longer than the Lease lasts and than Patroni's own retry.
const API_AWAY: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_back_or_goes_on_whatever_fails_beside_it() {
    let stage = Stage::ready().await;
    catch_up_is_impossible(&stage).await;
    the_source_crashes(&stage).await;
    asked_to_end_when_the_source_is_stopped(&stage).await;
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

/// The way back begins with the stopped server: the same one comes up, on the same timeline.
async fn asked_to_end_when_the_source_is_stopped(stage: &Stage) {
    let before = stage.standing().await;
    let running = stage.cutover().start().await.unwrap();
    running.says("from here the source is stopped", SOON).await.unwrap();
    running.terminate();
    let words = [
        "stopping the source's server",
        "GOING BACK: asked to end (SIGTERM)",
        "going back: starting the source's server",
    ];
    ends(&running.wait(SOON).await.unwrap(), 3, &words);
    same(&before, &stage.standing().await);
    stage.runs_on_the_source().await;
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

/// A pod whose node hangs in the middle of an effect is overtaken; when it wakes up it finishes that effect, late and on old sight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_hangs_and_wakes_up_harms_neither_a_return_nor_a_finished_cut() {
    let stage = Stage::ready().await;
    let before = stage.standing().await;
    let late = hanging(&stage, "DOWNTIME BEGINS").await;
    let next = stage.cutover().start().await.unwrap();
    next.says("writes are blocked", SOON).await.unwrap();
    next.terminate();
    ends(&next.wait(SOON).await.unwrap(), 3, &["GOING BACK: asked to end (SIGTERM)"]);
    late.thaw();
    ends(&late.wait(SOON).await.unwrap(), 3, &["went back"]);
    same(&before, &stage.standing().await);
    stage.runs_on_the_source().await;

    let late = hanging(&stage, "stopping the source's server").await;
    stage.cut(stage.cutover(), 0, &["DOWNTIME ENDS"]).await;
    let after = stage.object(DEPLOYMENT, "mastodon-web").await["spec"].clone();
    late.thaw();
    ends(&late.wait(SOON).await.unwrap(), 0, &[]);
    assert_eq!(stage.object(DEPLOYMENT, "mastodon-web").await["spec"], after);
    stage.nothing_is_lost().await;
}

async fn hanging(stage: &Stage, moment: &str) -> Running {
    let running = stage.cutover().start().await.unwrap();
    running.says(moment, SOON).await.unwrap();
    running.freeze();
    running
}

/// Somebody moves the source's leadership in the middle. The record names another leader: it goes back, and a cut from the new one follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_of_the_source_in_the_middle_ends_in_a_return_and_the_next_cut_is_from_the_new_leader() {
    let stage = Stage::ready().await;
    let mut before = stage.standing().await;
    let running = stage.stuck(stage.cutover()).await;
    running.says("the target has replayed", SOON).await.unwrap();
    stage.migration.source.switchover().await.unwrap();
    stage.at_target("select pg_wal_replay_resume()").await;
    ends(
        &running.wait(SOON).await.unwrap(),
        3,
        &["GOING BACK: the source failed over", "the application runs on the source as before"],
    );
    stage.runs_on_the_source().await;
    let mut after = stage.standing().await;
    for moved in ["leader", "server"] {
        assert_ne!(before.remove(moved), after.remove(moved), "{moved}");
    }
    same(&before, &after);
    let ready = stage.migration.step("validate-replication").run(SOON).await.unwrap();
    ends(&ready, 0, &["timeline: 2 on both sides"]);
    let ended = stage.cut(stage.cutover(), 0, &["DOWNTIME ENDS"]).await;
    assert_eq!(ended.last_word()["timeline"], 3, "{ended}");
    stage.nothing_is_lost().await;
}
