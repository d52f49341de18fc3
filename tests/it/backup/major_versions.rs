//! PostgreSQL of other major versions than the usual one, from prepare-zalando to the final backup.

use harness::{ledger::Key, source::SourceOptions};

use super::after_cutover::Migrated;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_15_is_migrated_with_every_acknowledged_write() {
    migrates(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_16_is_migrated_with_every_acknowledged_write() {
    migrates(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_18_is_migrated_with_every_acknowledged_write() {
    migrates(18).await;
}

/// Migrates a source of this version, and reads every write that it has acknowledged in a backup of
/// the source and in one of the target.
async fn migrates(major: u32) {
    let options = SourceOptions {
        postgres: major,
        ..SourceOptions::default()
    };
    let migrated = Migrated::new(options).await;
    // These servers are built without zstd and lz4.
    let words = [
        "exactly the end of the source's WAL",
        "backup complete",
        "compressed by the server with gzip",
    ];
    let by_server = migrated.step().env("BACKUP_NAME", "by-the-server");
    migrated.run(by_server, 0, &words).await;
    let by_job = || migrated.step().env("COMPRESS_BY", "job");
    migrated.run(by_job(), 0, &words[..2]).await;
    let from_target = by_job()
        .env("FROM", "target")
        .env("BACKUP_NAME", "of-the-target");
    migrated.run(from_target, 0, &["backup complete"]).await;
    let acknowledged = migrated.acknowledged();
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    for backup in ["final", "of-the-target"] {
        let rows = migrated.ledger(backup).await;
        let lost: Vec<&Key> = acknowledged.difference(&rows).collect();
        assert!(lost.is_empty(), "{backup}: {lost:?}");
    }
}
