//! A source that does not end when it is stopped: readers of logical slots that never confirm, a
//! WAL archiver that hangs, a checkpointer that hangs; and one that crashes before it is stopped.

use std::time::Duration;

use harness::{
    application::Epoch,
    kubelet::Launch,
    migration::Migration,
    source::{Member, SourceOptions},
};
use serde_json::json;
use tokio_postgres::Client;

use super::environment::{Environment, SOON, assert_ended, assert_same};

const SLOTS: [&str; 2] = ["cdc", "warehouse"];
/// What the readers would cost without their end: wal_sender_timeout, 60 s, or all of
/// CUTOVER_MAX_SECONDS.
const DOWNTIME_MAX: Duration = Duration::from_secs(30);
/// FENCE_MAX_SECONDS of a stop that must fail.
const FENCE_MAX_SECONDS: &str = "3";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_does_not_end_is_rolled_back_and_readers_do_not_hold_it_up() {
    let environment = with_logical_readers().await;
    let accepted = SLOTS
        .map(|slot| format!("logical-readers:{slot}"))
        .join(",");
    let source = &environment.migration.source;
    let mut readers = Vec::new();
    for slot in SLOTS {
        readers.push(source.start_logical_reader(slot, SOON).await.unwrap());
    }
    environment
        .run(
            environment.cutover(),
            3,
            &["logical-readers:cdc", "ACCEPT=logical-readers:cdc"],
        )
        .await;

    rolls_back_while_the_old_postmaster_lives(&environment, &accepted).await;
    rolls_back_after_a_crash_before_the_stop(&environment, &accepted).await;

    // One reader never confirms, and connects again at once; the other one hangs.
    readers[1].suspend();
    source
        .patch_configuration(&json!({"postgresql": {"parameters": {
            "archive_command": "sleep 3600"
        }}}))
        .await
        .unwrap();
    let ended = environment
        .run(
            environment.cutover().env("ACCEPT", &accepted),
            0,
            &["DOWNTIME ENDS", "walsenders"],
        )
        .await;
    let downtime_ms = ended.termination_json()["downtime_ms"].as_u64().unwrap();
    println!("downtime with two readers and an archiver that hangs: {downtime_ms} ms");
    assert!(
        Duration::from_millis(downtime_ms) < DOWNTIME_MAX,
        "{downtime_ms} ms: {ended}"
    );
    for reader in readers {
        reader.end().await;
    }
    environment.nothing_is_lost().await;
}

async fn with_logical_readers() -> Environment {
    let epoch = Epoch::now();
    let options = SourceOptions {
        wal_level: "logical",
        ..SourceOptions::default()
    };
    let migration = Migration::set_up(options, epoch, |_| {}).await.unwrap();
    let target = migration.until_ready().await.unwrap();
    Environment::new(migration, target, epoch)
}

/// The checkpointer hangs, so that the source never writes its shutdown checkpoint: its server is
/// stopped at once after FENCE_MAX_SECONDS, and Patroni starts it again.
async fn rolls_back_while_the_old_postmaster_lives(environment: &Environment, accepted: &str) {
    let launch = environment
        .cutover()
        .env("ACCEPT", accepted)
        .env("FENCE_MAX_SECONDS", FENCE_MAX_SECONDS);
    rolls_back(environment, launch, async |leader, session| {
        leader.suspend_checkpointer(session).await.unwrap();
    })
    .await;
}

/// PostgreSQL would recover by itself, with a checkpoint like that of a clean stop and the same
/// postmaster, and take writes again. It stays stopped, and Patroni starts it.
async fn rolls_back_after_a_crash_before_the_stop(environment: &Environment, accepted: &str) {
    let launch = environment.cutover().env("ACCEPT", accepted);
    rolls_back(environment, launch, async |leader, session| {
        leader.crash_session(session).await.unwrap();
        leader.until_postgres_ends(SOON).await.unwrap();
    })
    .await;
}

/// Disturbs the leader, in a session to it, after the fence is recorded and before its server is
/// stopped.
async fn rolls_back(
    environment: &Environment,
    launch: Launch<'_>,
    disturb: impl AsyncFnOnce(&Member, &Client),
) {
    let before = environment.snapshot().await;
    let running = environment.until_failpoint(launch, "before Fence").await;
    let source = &environment.migration.source;
    let leader = source.leader().await.unwrap();
    let session = source.connect_to(leader, "postgres").await.unwrap();
    disturb(leader, &session).await;
    drop(session);
    running.release_failpoint();
    let ended = running.wait(SOON).await.unwrap();
    assert_ended(
        &ended,
        3,
        &[
            "ROLLING BACK: the clean stop of the source was not proved within",
            "the application runs on the source as before",
        ],
    );
    environment.runs_on_the_source().await;
    assert_same(&before, &environment.snapshot().await);
}
