//! A target of two and of three instances: what is promoted is what was proved, or an instance that
//! has flushed as much, whichever of them dies on the way.

use std::time::Duration;

use harness::{
    kubelet::{Ended, RunningPod},
    migration::{CLUSTER, Migration, succeeded},
    target::InstanceHandle,
};
use serde_json::json;

use super::environment::{Environment, SOON, assert_ended, assert_same, set_up};

/// FENCE_MAX_SECONDS where a standby comes back meanwhile: its WAL receiver tries again every 5 s.
const PATIENT_SECONDS: &str = "60";
/// FENCE_MAX_SECONDS where the proof may be lost with an instance.
const BRIEF_SECONDS: &str = "10";
/// FENCE_MAX_SECONDS of a wait that must fail.
const SHORT_SECONDS: &str = "3";
/// Moments of a cutover, in their order.
const MOMENTS: [&str; 4] = [
    "before BlockWrites",
    "after Fence",
    "before Promote",
    "after Promote",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_the_target_that_lacks_writes_or_dies_loses_nothing() {
    let mut environment = with_instances(2).await;
    rolls_back_when_a_standby_lacks_the_end(&environment).await;
    let standby = |all: &[InstanceHandle], _| all[1].clone();
    let ended = disturbed(&environment, PATIENT_SECONDS, standby).await;
    assert_ended(&ended, 0, &["DOWNTIME ENDS"]);
    follows_the_promotion(&environment, 2).await;
    environment.target = primary(&environment);
    assert_eq!(environment.target.name(), "database-1");
    environment.nothing_is_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_designated_primary_that_dies_at_every_step_loses_nothing() {
    let mut environment = with_instances(3).await;
    let ended = disturbed(&environment, BRIEF_SECONDS, |_, primary| primary).await;
    assert_ended(&ended, 0, &["DOWNTIME ENDS"]);
    follows_the_promotion(&environment, 3).await;
    environment.target = primary(&environment);
    environment.nothing_is_lost().await;
}

/// Everything is done but the cutover. The further instances join while validate-replication waits:
/// without its checkpoints their copies would not begin for minutes.
async fn with_instances(count: u32) -> Environment {
    let (migration, epoch) = set_up().await;
    for step in ["prepare-zalando", "extract-certs"] {
        let launch = migration.step(step).env("ARCHIVE_RESTART", "never");
        succeeded(step, &launch.run(SOON).await.unwrap()).unwrap();
    }
    migration
        .apply_rendered_with(|object| {
            if object["kind"] == "Cluster" {
                object["spec"]["instances"] = json!(count);
            }
        })
        .await
        .unwrap();
    let validated = migration.step("validate-replication");
    let ended = validated.run(SOON).await.unwrap();
    let joined = format!("{count} of {count} ready");
    let words = ["a further instance waits", joined.as_str()];
    assert_ended(&ended, 0, &words);
    let target = migration.target.instance(CLUSTER, SOON).await.unwrap();
    Environment::new(migration, target, epoch)
}

/// A standby hangs after the source was found ready to be stopped: CloudNativePG could promote it
/// without the source's last records.
async fn rolls_back_when_a_standby_lacks_the_end(environment: &Environment) {
    let before = environment.snapshot().await;
    let launch = environment
        .cutover()
        .env("FENCE_MAX_SECONDS", SHORT_SECONDS);
    let running = environment.until_failpoint(launch, "before Fence").await;
    let standby = environment.migration.target.instances(CLUSTER).remove(1);
    standby.suspend();
    running.release_failpoint();
    let ended = running.wait(SOON).await.unwrap();
    standby.resume();
    let words = [
        "not flushed up to",
        "ROLLING BACK: not all ready instances of the target had everything",
        "the application runs on the source as before",
    ];
    assert_ended(&ended, 3, &words);
    environment.runs_on_the_source().await;
    assert_same(&before, &environment.snapshot().await);
}

/// Runs a cutover whose pods are killed at each moment, together with an instance that is chosen
/// from all and from the primary; returns the end of the last pod. Where the instance that died was
/// the only one with the source's last record, the cutover rolls back, and another one goes on with
/// the moments that are left.
async fn disturbed(
    environment: &Environment,
    fence_max_seconds: &str,
    victim: impl Fn(&[InstanceHandle], InstanceHandle) -> InstanceHandle,
) -> Ended {
    let Migration { target, .. } = &environment.migration;
    for moment in MOMENTS {
        let running = reached(environment, fence_max_seconds, moment).await;
        let victim = victim(&target.instances(CLUSTER), primary(environment));
        println!("{moment}: {} dies", victim.name());
        lose(environment, &victim).await;
        if moment == MOMENTS[MOMENTS.len() - 1] {
            running.release_failpoint();
            return running.wait(SOON).await.unwrap();
        }
        running.kill();
        running.wait(SOON).await.unwrap();
    }
    unreachable!("the last moment returns")
}

/// A pod that waits at the moment, after a rollback if that was due.
async fn reached(environment: &Environment, fence_max_seconds: &str, moment: &str) -> RunningPod {
    let line = format!("failpoint {moment}: waiting");
    for attempt in ["first", "second"] {
        let launch = environment
            .cutover()
            .env("FENCE_MAX_SECONDS", fence_max_seconds)
            .env("FAILPOINT", moment);
        let running = launch.start().await.unwrap();
        if running.wait_for_line(&line, SOON).await.is_ok() {
            return running;
        }
        let ended = running.wait(SOON).await.unwrap();
        println!("{attempt} way to {moment}: rolled back");
        let words = [
            "ROLLING BACK: ",
            "the application runs on the source as before",
        ];
        assert_ended(&ended, 3, &words);
        environment.runs_on_the_source().await;
        validated(environment).await;
    }
    panic!("{moment} is not reached\n{}", logs(environment));
}

/// All instances stream again.
async fn validated(environment: &Environment) {
    let step = environment.migration.step("validate-replication");
    environment.run(step, 0, &[]).await;
}

/// The instance's server is killed, and its pod is gone, as if its node were lost; it comes back
/// with its volume.
async fn lose(environment: &Environment, victim: &InstanceHandle) {
    victim.kill().await;
    let pods = ("", "v1", "Pod");
    environment.remove(pods, victim.name()).await;
}

fn primary(environment: &Environment) -> InstanceHandle {
    let target = &environment.migration.target;
    target.primary(CLUSTER).expect("the Cluster exists")
}

/// All other instances stream from the new primary.
async fn follows_the_promotion(environment: &Environment, count: usize) {
    let streaming = "select count(*) from pg_stat_replication where state = 'streaming'";
    let all = async {
        loop {
            if let Ok(session) = primary(environment).admin("postgres").await
                && let Ok(row) = session.query_one(streaming, &[]).await
                && row.get::<_, i64>(0) as usize == count - 1
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, all)
        .await
        .unwrap_or_else(|_| panic!("{}", logs(environment)));
}

fn logs(environment: &Environment) -> String {
    let all = environment.migration.target.instances(CLUSTER);
    let logs: Vec<String> = all.iter().map(InstanceHandle::logs).collect();
    logs.join("\n")
}
