//! The data itself: the replay's movement, the order of text, the rows.

use std::time::Duration;

use job::error::{ErrorKind, Result};
use platform::postgres::Session;
use protocol::checks::Finding;
use tokio::time::{Instant, sleep};

use crate::{
    catalog,
    collations::{self, Touched},
    counting,
    movement::{self, Moved},
    sessions::Sides,
    settings::Settings,
    settle::Settled,
};

/// Long enough to see a busy source write.
const WATCHED: Duration = Duration::from_secs(1);

/// Compares what both sides hold.
pub async fn check(settings: &Settings, settled: &Settled) -> Result<Vec<Finding>> {
    let sides = &settled.sides;
    let mut findings = vec![
        movement(sides).await?,
        sorting(&settings.database, sides).await?,
    ];
    findings.extend(counting::compare(sides, &settings.key_tables.0).await?);
    Ok(findings)
}

async fn movement(sides: &Sides) -> Result<Finding> {
    let begun = Instant::now();
    let before = catalog::flush_lsn(&sides.source).await?;
    // A rate needs a while to be seen in; this waits for nothing.
    sleep(WATCHED).await;
    let after = catalog::flush_lsn(&sides.source).await?;
    let within = begun.elapsed();
    match counting::replayed(&sides.target, before).await {
        // A replay that stands still is a finding, and no end before the others are told.
        Err(error) if error.kind() == ErrorKind::Transient => {}
        outcome => outcome?,
    }
    let replayed = sides.target.replay().await?.replay;
    Ok(movement::progress(&Moved {
        source: before,
        bytes: after.bytes_since(before),
        replayed,
        within,
    }))
}

async fn sorting(database: &str, sides: &Sides) -> Result<Finding> {
    let (source, target): (&Session, &Session) = (&sides.source, &sides.target);
    let (source, at_target) =
        futures::try_join!(catalog::sorting(source), catalog::sorting(target))?;
    let differing = collations::in_question(database, &source, &at_target);
    let touched = if differing.is_empty() {
        Touched::default()
    } else {
        let oids: Vec<u32> = differing.iter().map(|one| one.oid).collect();
        catalog::touched(target, &oids).await?
    };
    Ok(collations::finding(
        database, &source, &at_target, &differing, &touched,
    ))
}
