//! Compares the data of both sessions: the replay's movement, the order of text, the rows.

use std::time::Duration;

use job::error::{Context as _, ErrorKind, Result};
use platform::postgres::{Session, Source, Target, lsn};
use protocol::{
    snapshot::data::{
        CollationComparison, DataComparison, DependentObjects, ReplayProgress, differing,
    },
    wal::Lsn,
};
use tokio::time::{Instant, sleep};

use crate::{collations, row_counts, settings::Settings};

/// How long the source's writes are measured.
const WATCHED: Duration = Duration::from_secs(1);

/// The sessions to both sessions.
#[derive(Clone, Copy)]
pub struct Sessions<'a> {
    /// The source's leader.
    pub source: &'a Source,
    /// The target's designated primary.
    pub target: &'a Target,
}

/// Compares what both sessions hold.
pub async fn compare(settings: &Settings, sessions: Sessions<'_>) -> Result<DataComparison> {
    Ok(DataComparison {
        replay: replay(sessions).await?,
        collations: sorting(&settings.database, sessions).await?,
        tables: row_counts::compare(sessions, &settings.key_tables.0).await?,
    })
}

async fn replay(sessions: Sessions<'_>) -> Result<ReplayProgress> {
    let begun = Instant::now();
    let before = flush_lsn(sessions.source).await?;
    // The rate is measured over this time; the sleep waits for no event.
    sleep(WATCHED).await;
    let after = flush_lsn(sessions.source).await?;
    let within = begun.elapsed();
    match row_counts::replayed(sessions.target, before).await {
        // A replay that stands still is a finding; the others are still reported.
        Err(error) if error.kind() == ErrorKind::Transient => {}
        outcome => outcome?,
    }
    Ok(ReplayProgress {
        source: before,
        bytes: after.bytes_since(before),
        replayed: sessions.target.replay().await?.replay,
        within,
    })
}

async fn sorting(database: &str, sessions: Sessions<'_>) -> Result<CollationComparison> {
    let (source, target): (&Session, &Session) = (sessions.source, sessions.target);
    let (of_source, of_target) =
        futures::try_join!(collations::sorting(source), collations::sorting(target))?;
    let differing = differing(database, &of_source, &of_target);
    let dependent = if differing.is_empty() {
        DependentObjects::default()
    } else {
        let oids: Vec<u32> = differing.iter().map(|one| one.oid).collect();
        collations::dependent(target, &oids).await?
    };
    Ok(CollationComparison {
        database: database.to_owned(),
        source: of_source,
        target: of_target,
        dependent,
    })
}

/// Position up to which the source has flushed, and so sends, its WAL.
pub async fn flush_lsn(source: &Session) -> Result<Lsn> {
    let row = source
        .query_one("select pg_current_wal_flush_lsn()", &[])
        .await;
    Ok(lsn(row
        .context("reading the flush lsn of the source")?
        .get(0)))
}
