//! The baseline of a cutover: a bare script in the same environment, with SQL only. It blocks
//! writes, ends the sessions, waits for the replay, stops the source, promotes and writes. It keeps
//! no record, verifies nothing and cannot roll back: a lower bound for the time.

use std::time::{Duration, Instant};

use anyhow::Result;
use harness::{application::Epoch, migration::Migration, source::SourceOptions};
use tokio::time::sleep;

use crate::STEP;

const POLL: Duration = Duration::from_millis(2);

/// The time from the block to the first write on the target, without `pg_promote` itself.
pub async fn cutover() -> Result<Duration> {
    let migration = Migration::set_up(SourceOptions::default(), Epoch::now(), |_| ()).await?;
    let target = migration.until_ready().await?;
    let leader = migration.source.leader().await?;
    let source = migration.source.connect_to(leader, "postgres").await?;
    let new = target.admin("mastodon").await?;
    migration
        .source
        .patch_configuration(&serde_json::json!({"pause": true}))
        .await?;
    source.batch_execute("checkpoint").await?;
    new.batch_execute("checkpoint").await?;
    let stop: String = source
        .query_one(
            "select format('copy (select 1) to program %L', format('%s/pg_ctl stop -D %s -m fast \
             -W',
                    (select setting from pg_config where name = 'BINDIR'), \
             current_setting('data_directory')))",
            &[],
        )
        .await?
        .get(0);

    let begun = Instant::now();
    source
        .batch_execute("alter system set default_transaction_read_only = on")
        .await?;
    source.batch_execute("select pg_reload_conf()").await?;
    let marker: String = source
        .query_one(
            "select pg_current_wal_flush_lsn()::text from (select count(pg_terminate_backend(pid)) \
             from pg_stat_activity
              where backend_type = 'client backend' and pid <> pg_backend_pid()) ended",
            &[],
        )
        .await?
        .get(0);
    until(
        &new,
        &format!("select pg_last_wal_replay_lsn() >= '{marker}'"),
    )
    .await?;
    // The statement ends its own server, so it always fails.
    let _ = source.batch_execute(&stop).await;
    until(
        &new,
        "select not exists (select from pg_stat_wal_receiver where status = 'streaming')",
    )
    .await?;
    let promoting = Instant::now();
    new.batch_execute("select pg_promote()").await?;
    let promoted = promoting.elapsed();
    new.batch_execute(
        "insert into public.ledger (client, sequence, payload) values ('script', 1, '')",
    )
    .await?;
    let whole = begun.elapsed();
    Ok(whole.saturating_sub(promoted))
}

async fn until(session: &tokio_postgres::Client, holds: &str) -> Result<()> {
    let begun = Instant::now();
    while !session.query_one(holds, &[]).await?.get::<_, bool>(0) {
        anyhow::ensure!(begun.elapsed() < STEP, "timed out: {holds}");
        sleep(POLL).await;
    }
    Ok(())
}
