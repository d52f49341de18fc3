//! The queries of the row counts.

use job::error::{Context as _, Result};
use platform::postgres::Session;
use protocol::{snapshot::data::Count, wal::Lsn};

use super::Candidate;
use crate::settings::TableName;

/// The relations that a name of KEY_TABLES may mean.
pub async fn candidates(source: &Session, name: &TableName) -> Result<Vec<Candidate>> {
    let rows = source
        .query(
            "select n.nspname::text, format('%I.%I', n.nspname, c.relname), c.relkind::text, \
             c.relpersistence::text
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where c.relname = $1 and ($2::text is null or n.nspname = $2) and c.relkind in ('r', \
             'p', 'm', 'v', 'f')
                and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%' order by 1",
            &[&name.table, &name.schema],
        )
        .await
        .context(format!("looking for the table {name}"))?;
    let letter = |row: &tokio_postgres::Row, column: usize| {
        row.get::<_, String>(column).chars().next().unwrap_or(' ')
    };
    let candidate = |row| Candidate {
        schema: row_text(row, 0),
        quoted: row_text(row, 1),
        kind: letter(row, 2),
        persistence: letter(row, 3),
    };
    Ok(rows.iter().map(candidate).collect())
}

fn row_text(row: &tokio_postgres::Row, column: usize) -> String {
    row.get(column)
}

/// Begins a snapshot at the source; returns its oldest running transaction X, and a position behind
/// every commit that it shows.
pub async fn begin_snapshot(source: &Session) -> Result<(i64, Lsn)> {
    source
        .batch_execute("begin isolation level repeatable read read only")
        .await
        .context("beginning a snapshot at the source")?;
    let row = source
        .query_one(
            "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint & 4294967295, \
             pg_current_wal_insert_lsn()",
            &[],
        )
        .await
        .context("reading the snapshot of the source")?;
    Ok((
        row.get(0),
        platform::postgres::lsn(row.get(1)).last_record_end(),
    ))
}

/// Counts a table: all rows, and those not written by one of the 2^24 transactions from `xid` on.
/// That is far more than begin while a table is counted; a row whose number comes round again after
/// 2^32 transactions is left out of all three counts alike.
pub async fn count(session: &Session, quoted: &str, xid: i64) -> Result<Count> {
    let sql = format!(
        "select count(*), count(*) filter (where ((xmin::text::bigint - $1::bigint) & 4294967295) \
         >= 16777216) from {quoted}"
    );
    let row = session
        .query_one(&sql, &[&xid])
        .await
        .context(format!("counting the rows of {quoted}"))?;
    Ok(Count {
        rows: row.get::<_, i64>(0).unsigned_abs(),
        kept: row.get::<_, i64>(1).unsigned_abs(),
    })
}
