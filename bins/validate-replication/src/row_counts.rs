//! The three counts of each table, at positions where they are comparable
//! (`shared/protocol/src/checks/data/row_counts.rs` explains what they prove).

mod query;

use std::time::Duration;

use job::{
    error::{Error, ErrorKind, Result},
    wait::{ProbeResult, until},
};
use platform::postgres::Target;
use protocol::{
    snapshot::data::{Count, RowCounts, TableComparison, Uncounted},
    wal::Lsn,
};
use tokio::time::Instant;

use crate::{data_checks::Sessions, settings::TableName};

/// Longest count of one table on one side, in seconds.
const COUNT_SECONDS_MAX: u64 = 600;
/// Longest wait for the target to replay the position of a snapshot; its lag was small a moment
/// ago.
const REPLAY_SECONDS_MAX: u64 = 60;
/// Longest wait for the source to show a deletion that the target shows already, in seconds.
const ANOMALY_SECONDS_MAX: u64 = 10;
const POLL: Duration = Duration::from_millis(100);

/// Counts the rows of every table named in KEY_TABLES.
pub async fn compare(sessions: Sessions<'_>, tables: &[TableName]) -> Result<Vec<TableComparison>> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let longer = format!("set statement_timeout = '{COUNT_SECONDS_MAX}s'");
    futures::try_join!(
        sessions.source.batch_execute(&longer),
        sessions.target.batch_execute(&longer)
    )?;
    let mut compared = Vec::with_capacity(tables.len());
    for name in tables {
        let candidates = query::candidates(sessions.source, name).await?;
        let counts = match resolve(&candidates) {
            Ok(table) => match counted(sessions, table).await {
                Ok(counts) => Ok(counts),
                // A table that is locked or too large must not hide what the others show.
                Err(error) if error.kind() == ErrorKind::Transient => {
                    Err(Uncounted::Failed(error.into()))
                }
                Err(error) => return Err(error),
            },
            Err(reason) => Err(reason),
        };
        compared.push(TableComparison {
            table: name.to_string(),
            counts,
        });
    }
    Ok(compared)
}

/// The chain of three counts.
async fn counted(sessions: Sessions<'_>, table: &Candidate) -> Result<RowCounts> {
    let (xid, lsn) = query::begin_snapshot(sessions.source).await?;
    let first = query::count(sessions.source, &table.quoted, xid).await;
    // Ended at once: an old snapshot prevents vacuum from removing dead rows.
    sessions.source.batch_execute("rollback").await?;
    replayed(sessions.target, lsn).await?;
    let mut counted = RowCounts {
        first: first?,
        target: at_target(sessions.target, &table.quoted, xid).await?,
        again: Count::default(),
    };
    let deadline = Instant::now() + Duration::from_secs(ANOMALY_SECONDS_MAX);
    loop {
        counted.again = query::count(sessions.source, &table.quoted, xid).await?;
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
                Some(replayed) if replayed >= lsn => ProbeResult::Ready(()),
                Some(replayed) => ProbeResult::NotYet(format!(
                    "the target has replayed {replayed}, wanted is the source's {lsn}"
                )),
                None => ProbeResult::NotYet(format!(
                    "the target has replayed nothing, wanted is the source's {lsn}"
                )),
            })
        },
    )
    .await
}

/// Counts at the target. Replay may cancel a query on a standby that conflicts with it (SQLSTATE
/// 40001); the count is then repeated.
async fn at_target(target: &Target, quoted: &str, xid: i64) -> Result<Count> {
    const ATTEMPTS: u32 = 3;
    let mut last = Error::transient("not counted");
    for _ in 0..ATTEMPTS {
        match query::count(target, quoted, xid).await {
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

/// What a table's name leads to in the catalog of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its schema.
    pub schema: String,
    /// Schema and name, quoted for SQL.
    pub quoted: String,
    /// pg_class.relkind: r, p and m have rows of their own or of their partitions, all else does
    /// not.
    pub kind: char,
    /// pg_class.relpersistence: u is unlogged.
    pub persistence: char,
}

/// The one relation that a name of KEY_TABLES means, or why there is none to count.
fn resolve(candidates: &[Candidate]) -> std::result::Result<&Candidate, Uncounted> {
    let one = match candidates {
        [] => return Err(Uncounted::Missing),
        [one] => one,
        several => {
            let public = several.iter().find(|one| one.schema == "public");
            public.ok_or_else(|| Uncounted::Ambiguous {
                schemas: several.iter().map(|one| one.schema.clone()).collect(),
            })?
        }
    };
    match one {
        Candidate { kind, .. } if !matches!(kind, 'r' | 'p' | 'm') => Err(Uncounted::WithoutRows),
        Candidate {
            persistence: 'u', ..
        } => Err(Uncounted::Unlogged),
        _ => Ok(one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(schema: &str, kind: char, persistence: char) -> Candidate {
        Candidate {
            schema: schema.into(),
            quoted: format!("{schema}.t"),
            kind,
            persistence,
        }
    }

    #[test]
    fn a_name_resolves_to_one_table_or_a_reason() {
        let table = |schema| candidate(schema, 'r', 'p');
        let resolved = |candidates: &[Candidate]| resolve(candidates).map(|c| c.schema.clone());
        assert_eq!(resolved(&[table("app")]), Ok("app".into()));
        let public = [table("app"), table("public")];
        assert_eq!(resolved(&public), Ok("public".into()));
        assert_eq!(
            resolved(&[table("app"), table("old")]),
            Err(Uncounted::Ambiguous {
                schemas: vec!["app".into(), "old".into()]
            })
        );
        assert_eq!(resolved(&[]), Err(Uncounted::Missing));
        let view = candidate("app", 'v', 'p');
        assert_eq!(resolved(&[view]), Err(Uncounted::WithoutRows));
        let unlogged = candidate("app", 'r', 'u');
        assert_eq!(resolved(&[unlogged]), Err(Uncounted::Unlogged));
    }
}
