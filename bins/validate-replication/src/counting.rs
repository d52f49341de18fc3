//! The three counts of `counts.rs`, taken.

use std::time::Duration;

use job::{
    error::{Error, ErrorKind, Result},
    wait::{Seen, until},
};
use platform::postgres::Target;
use protocol::{checks::Finding, wal::Lsn};
use tokio::time::Instant;

use crate::{
    catalog,
    counts::{self, Candidate, Count, Counted},
    sessions::Sides,
    settings::TableName,
};

/// Longest count of one table on one side.
const COUNT_SECONDS_MAX: u64 = 600;
/// Longest wait for the target to replay the position of a snapshot; its lag was small a moment
/// ago.
const REPLAY_SECONDS_MAX: u64 = 60;
/// Longest wait for the source to show a deletion that the target shows already.
const ANOMALY_SECONDS_MAX: u64 = 10;
const POLL: Duration = Duration::from_millis(100);

/// Compares the rows of every table named in KEY_TABLES.
pub async fn compare(sides: &Sides, tables: &[TableName]) -> Result<Vec<Finding>> {
    if tables.is_empty() {
        return Ok(vec![counts::nothing_named()]);
    }
    let longer = format!("set statement_timeout = '{COUNT_SECONDS_MAX}s'");
    futures::try_join!(
        sides.source.batch_execute(&longer),
        sides.target.batch_execute(&longer)
    )?;
    let mut findings = Vec::with_capacity(tables.len());
    for name in tables {
        let candidates = catalog::candidates(&sides.source, name).await?;
        findings.push(match counts::resolve(name, &candidates) {
            Ok(table) => match counted(sides, name, table).await {
                Ok(counted) => counts::compare(&counted),
                // A table that is locked or too large must not hide what the others show.
                Err(error) if error.kind() == ErrorKind::Transient => {
                    counts::not_counted(name, &error)
                }
                Err(error) => return Err(error),
            },
            Err(finding) => *finding,
        });
    }
    Ok(findings)
}

/// The chain of three counts.
async fn counted(sides: &Sides, name: &TableName, table: &Candidate) -> Result<Counted> {
    let (xid, lsn) = catalog::begin_snapshot(&sides.source).await?;
    let first = catalog::count(&sides.source, &table.quoted, xid).await;
    // Ended at once: an old snapshot keeps vacuum from its work.
    sides.source.batch_execute("rollback").await?;
    replayed(&sides.target, lsn).await?;
    let mut counted = Counted {
        table: name.to_string(),
        first: first?,
        target: at_target(&sides.target, &table.quoted, xid).await?,
        again: Count::default(),
    };
    let deadline = Instant::now() + Duration::from_secs(ANOMALY_SECONDS_MAX);
    loop {
        counted.again = catalog::count(&sides.source, &table.quoted, xid).await?;
        if !counted.target_is_ahead() || Instant::now() >= deadline {
            return Ok(counted);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the target has replayed `lsn`.
pub async fn replayed(target: &Target, lsn: Lsn) -> Result<()> {
    until(
        Instant::now() + Duration::from_secs(REPLAY_SECONDS_MAX),
        POLL,
        async || {
            let replay = target.replay().await?.replay;
            Ok(match replay {
                Some(replayed) if replayed >= lsn => Seen::Ready(()),
                Some(replayed) => Seen::NotYet(format!(
                    "the target has replayed {replayed}, wanted is the source's {lsn}"
                )),
                None => Seen::NotYet(format!(
                    "the target has replayed nothing, wanted is the source's {lsn}"
                )),
            })
        },
    )
    .await
}

/// A count on a standby may be ended by the replay that it stands in the way of (SQLSTATE 40001);
/// then it is asked again.
async fn at_target(target: &Target, quoted: &str, xid: i64) -> Result<Count> {
    const ATTEMPTS: u32 = 3;
    let mut last = Error::transient("not counted");
    for _ in 0..ATTEMPTS {
        match catalog::count(target, quoted, xid).await {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::Transient => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last.hint(
        "replay on the target ends long queries (max_standby_streaming_delay); run this \
        step again when the source is quieter",
    ))
}
