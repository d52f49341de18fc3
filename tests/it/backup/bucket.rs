//! Backups in a bucket.

use std::time::Duration;

use super::{
    environment::{
        BUCKET, Environment, MEMORY_BYTES_MAX, NAMESPACE, SOON, WHOLE, ends, names_in, until,
    },
    restored::Restored,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_in_a_bucket_is_whole_and_can_be_started() {
    let environment = Environment::filled().await;
    environment.add(80).await;
    let mut s3 = environment.bucket().await;
    let folder = s3.directory(BUCKET).join("zalando/mastodon/final");
    // A run is killed in the middle of an upload. The next run aborts the upload and starts again.
    let running = environment.step_to(&s3).start().await.unwrap();
    until("an upload", || s3.unfinished_uploads(BUCKET).unwrap() > 0).await;
    running.kill();
    ends(&running.wait(SOON).await.unwrap(), 137, &[]);
    assert!(!folder.join("complete.json").exists());
    assert!(s3.unfinished_uploads(BUCKET).unwrap() > 0);

    // The store is unavailable for a moment, and a second run is refused in the meantime.
    let running = environment.step_to(&s3).start().await.unwrap();
    running
        .wait_for_line("base backup begun", SOON)
        .await
        .unwrap();
    until("an upload", || s3.unfinished_uploads(BUCKET).unwrap() > 0).await;
    s3.suspend();
    let words = [
        "another final-backup is running",
        "this run has changed nothing",
    ];
    environment
        .run(environment.step().env("BACKUP_NAME", "second"), 3, &words)
        .await;
    s3.resume();
    s3.restart(environment.plane.setup(), Duration::from_secs(2))
        .await
        .unwrap();
    let ended = running.wait(SOON).await.unwrap();
    ends(
        &ended,
        0,
        &[
            "unpacked, every file on disk compared",
            "backup complete: s3://",
        ],
    );
    assert!(
        ended.cost.memory_peak_bytes < MEMORY_BYTES_MAX,
        "{} bytes resident",
        ended.cost.memory_peak_bytes
    );
    assert_eq!(names_in(&folder), WHOLE);
    assert_eq!(s3.unfinished_uploads(BUCKET).unwrap(), 0);

    let restored = Restored::unpack(
        environment.plane.setup(),
        environment.plane.instance(),
        &folder,
        "restored",
    );
    restored.verify();
    let session = restored.start().await;
    let session = session.connect(NAMESPACE).await;
    let rows: i64 = session
        .query_one("select count(*) from statuses", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 40_000);

    // With compression by the Job, SIGTERM in the middle leaves no file and no upload.
    let step = || {
        environment
            .step_to(&s3)
            .env("BACKUP_NAME", "by-job")
            .env("COMPRESS_BY", "job")
            .env("VERIFY", "stream")
    };
    let other = s3.directory(BUCKET).join("zalando/mastodon/by-job");
    let running = step().start().await.unwrap();
    until("an upload", || s3.unfinished_uploads(BUCKET).unwrap() > 0).await;
    ends(
        &running.delete().await.unwrap(),
        1,
        &["asked to end (SIGTERM)", "is removed"],
    );
    assert_eq!(names_in(&other), Vec::<String>::new());
    assert_eq!(s3.unfinished_uploads(BUCKET).unwrap(), 0);
    let ended = environment
        .run(step(), 0, &["compressed here with zstd", "backup complete"])
        .await;
    assert!(
        ended.cost.memory_peak_bytes < MEMORY_BYTES_MAX,
        "{} bytes resident",
        ended.cost.memory_peak_bytes
    );
    Restored::unpack(
        environment.plane.setup(),
        environment.plane.instance(),
        &other,
        "by-job",
    )
    .verify();
}
