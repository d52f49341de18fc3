//! A cut whose pod is lost at every step: the next pod goes on, or goes back, and nothing acknowledged is lost.

use harness::kubelet::Running;

use super::stage::{SOON, Stage, ends};

/// What it says just before or after each of its effects, in their order.
const MOMENTS: [&str; 13] = [
    "freezing the Zalando operator",
    "checkpoint on the source",
    "DOWNTIME BEGINS",
    "ending the client sessions",
    "writes are blocked",
    "stopping the source's server",
    "POINT OF NO RETURN",
    "promoting database",
    "proving a write",
    "pointing the application to the target",
    "scaling the application to its recorded replicas",
    "DOWNTIME ENDS",
    "writing the receipt",
];
/// Each pod waits until its predecessor's Lease has run out.
const CUTOVER_SECONDS_MAX: &str = "600";

/// One pod after the other, each killed at the moment that comes next. A pod may have done more than it lived to say: then its
/// successor does not say it again, and the moment after it is the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_step_the_next_pod_goes_on_to_the_end() {
    let stage = Stage::ready().await;
    let (mut killed, mut after) = (Vec::new(), 0);
    loop {
        let running = stage
            .cutover()
            .env("CUTOVER_MAX_SECONDS", CUTOVER_SECONDS_MAX)
            .start()
            .await
            .unwrap();
        let Some(moment) = next_moment(&running, after).await else {
            ends(&running.wait(SOON).await.unwrap(), 0, &[]);
            break;
        };
        running.kill();
        let ended = running.wait(SOON).await.unwrap();
        assert!(ended.exit_code == 137 || ended.exit_code == 0, "{ended}");
        killed.push(MOMENTS[moment]);
        after = moment + 1;
    }
    println!("killed at: {killed:?}");
    assert!(
        killed.contains(&"DOWNTIME BEGINS") && killed.contains(&"POINT OF NO RETURN"),
        "{killed:?}"
    );
    assert!(killed.len() >= MOMENTS.len() - 4, "{killed:?}");
    stage.nothing_is_lost().await;
}

/// The first of the moments from `after` on that the pod announces; None when it ends without any of them.
async fn next_moment(running: &Running, after: usize) -> Option<usize> {
    // Its words come in the order of the moments, so the first line that holds one of them is found by asking for all at once.
    let waits = MOMENTS
        .iter()
        .enumerate()
        .skip(after)
        .map(|(index, words)| Box::pin(async move { running.says(words, SOON).await.map(|_| index) }));
    let waits: Vec<_> = waits.collect();
    if waits.is_empty() {
        return None;
    }
    futures::future::select_ok(waits).await.ok().map(|(index, _)| index)
}

/// Past the point of no return clients wait, and a successor only starts when the Job's back-off is over: it lets them through before it
/// ends, and the next pod does what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_sigterm_past_the_point_of_no_return_it_lets_clients_through_and_a_rerun_goes_on() {
    let stage = Stage::ready().await;
    let running = stage.cutover().start().await.unwrap();
    running.says("POINT OF NO RETURN", SOON).await.unwrap();
    running.terminate();
    ends(
        &running.wait(SOON).await.unwrap(),
        1,
        &["past the point of no return", "start the cutover again"],
    );
    assert!(!stage.fact("serving").await.is_null());
    assert!(stage.fact("finished").await.is_null());
    stage.cut(stage.cutover(), 0, &["the receipt"]).await;
    stage.nothing_is_lost().await;
}
