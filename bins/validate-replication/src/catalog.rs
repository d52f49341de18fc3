//! What is asked of the servers beyond what cutover asks, too: a named function per query.

use job::error::{Context as _, Result};
use platform::postgres::Session;
use protocol::wal::Lsn;

use tokio_postgres::types::ToSql;

use crate::{
    clone::BaseBackup,
    collations::{Collation, DEFAULT_OID, PROBES, Sorting, Touched},
    counts::{Candidate, Count},
    settings::TableName,
};

/// A query's parameter; named where several queries share theirs.
type Parameter<'a> = &'a (dyn ToSql + Sync);

/// The base backup that the source is giving; the youngest, because an older one was there before
/// the clone.
pub async fn base_backup(source: &Session) -> Result<Option<BaseBackup>> {
    let row = source
        .query_opt(
            "select p.phase, p.backup_total, coalesce(p.backup_streamed, 0)
               from pg_stat_progress_basebackup p left join pg_stat_activity a using (pid)
              order by a.backend_start desc nulls last limit 1",
            &[],
        )
        .await
        .context("reading the progress of the base backup at the source")?;
    Ok(row.map(|row| BaseBackup {
        phase: row.get(0),
        bytes_total: row.get::<_, Option<i64>>(1).map(i64::unsigned_abs),
        bytes_streamed: row.get::<_, i64>(2).unsigned_abs(),
    }))
}

/// Position up to which the source has flushed, and so sends, its WAL.
pub async fn flush_lsn(source: &Session) -> Result<Lsn> {
    let row = source
        .query_one("select pg_current_wal_flush_lsn()", &[])
        .await;
    Ok(platform::postgres::lsn(
        row.context("reading the flush lsn of the source")?.get(0),
    ))
}

/// default_transaction_read_only for sessions that do not say otherwise, as this one does.
pub async fn read_only_by_default(source: &Session) -> Result<String> {
    let row = source
        .query_one(
            "select reset_val from pg_settings where name = 'default_transaction_read_only'",
            &[],
        )
        .await;
    Ok(row
        .context("reading default_transaction_read_only of the source")?
        .get(0))
}

/// Whether the role of this session is a superuser.
pub async fn superuser(session: &Session) -> Result<bool> {
    let row = session
        .query_one(
            "select rolsuper from pg_roles where rolname = current_user",
            &[],
        )
        .await;
    Ok(row.context("reading the rights of this login")?.get(0))
}

/// recovery_min_apply_delay in force.
pub async fn apply_delay(target: &Session) -> Result<String> {
    let row = target
        .query_one("select current_setting('recovery_min_apply_delay')", &[])
        .await;
    Ok(row
        .context("reading recovery_min_apply_delay of the target")?
        .get(0))
}

/// State of the walsender that serves `standby` (its application_name, for CNPG the Cluster's
/// name); None without one.
pub async fn walsender(source: &Session, standby: &str) -> Result<Option<String>> {
    let row = source
        .query_opt(
            "select coalesce(state, 'starting') from pg_stat_replication where \
            application_name = $1 order by state = 'streaming' desc limit 1",
            &[&standby],
        )
        .await;
    Ok(row
        .context("looking for the target among the source's walsenders")?
        .map(|row| row.get(0)))
}

/// Error of the latest attempt to archive WAL at the source, if no later one succeeded: the WAL
/// file that waits.
pub async fn archiving_fails(source: &Session) -> Result<Option<String>> {
    let row = source
        .query_opt(
            "select last_failed_wal from pg_stat_archiver
              where last_failed_time > coalesce(last_archived_time, '-infinity') and \
             current_setting('archive_mode') <> 'off'",
            &[],
        )
        .await;
    Ok(row
        .context("reading the archiver of the source")?
        .and_then(|row| row.get(0)))
}

/// Roles of this list that the server does not have.
pub async fn roles_missing(session: &Session, wanted: &[&str]) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select w from unnest($1::text[]) w where not exists (select from pg_roles where \
             rolname = w)",
            &[&wanted],
        )
        .await;
    Ok(rows
        .context("looking for roles")?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// Versions of all collations in use, and the probes in the order of this session's database.
pub async fn sorting(session: &Session) -> Result<Sorting> {
    let databases = "select $1::oid, datname::text, datcollversion, \
        pg_database_collation_actual_version(oid) from pg_database where datallowconn order by 2";
    let named = "select c.oid, n.nspname || '.' || c.collname, c.collversion, \
        pg_collation_actual_version(c.oid)
                   from pg_collation c join pg_namespace n on n.oid = c.collnamespace
                  where c.oid <> $1::oid and c.collprovider <> 'd' and (c.oid in (select \
        attcollation from pg_attribute where attrelid >= 16384)
                     or c.oid in (select k from pg_index i, unnest(i.indcollation) k where \
        i.indexrelid >= 16384)) order by 2";
    let order = "select s from unnest($1::text[]) s order by s";
    let (probes, default) = (PROBES.as_slice(), DEFAULT_OID);
    let (of_default, of_probes): ([Parameter<'_>; 1], [Parameter<'_>; 1]) = ([&default], [&probes]);
    let (databases, named, order) = futures::try_join!(
        session.query(databases, &of_default),
        session.query(named, &of_default),
        session.query(order, &of_probes)
    )
    .context("reading the collations")?;
    let collations = |rows: Vec<tokio_postgres::Row>| rows.iter().map(collation).collect();
    Ok(Sorting {
        databases: collations(databases),
        named: collations(named),
        order: order.iter().map(|row| row.get(0)).collect(),
    })
}

fn collation(row: &tokio_postgres::Row) -> Collation {
    Collation {
        oid: row.get(0),
        name: row.get(1),
        recorded: row.get(2),
        provided: row.get(3),
    }
}

/// What depends on the order of these collations in this session's database. A hash index keeps no
/// order.
pub async fn touched(session: &Session, collations: &[u32]) -> Result<Touched> {
    const NAMED_MAX: i64 = 8;
    let indexes = "select i.indexrelid, i.indisunique, pg_relation_size(i.indexrelid) as bytes, \
        format('%I.%I', n.nspname, c.relname) as name
                     from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n \
        on n.oid = c.relnamespace join pg_am a on a.oid = c.relam
                    where i.indcollation::oid[] && $1::oid[] and c.relkind = 'i' and a.amname <> \
        'hash' and n.nspname not in ('pg_catalog', 'pg_toast')";
    let totals = format!(
        "select count(*), count(*) filter (where indisunique), coalesce(sum(bytes), 0)::bigint \
         from ({indexes}) x"
    );
    let largest =
        format!("select name from ({indexes}) x order by bytes desc, name limit {NAMED_MAX}");
    let ranges = "select p.partrelid::regclass::text from pg_partitioned_table p where p.partstrat \
        = 'r' and p.partcollation::oid[] && $1::oid[] order by 1";
    let parameters: [Parameter<'_>; 1] = [&collations];
    let (totals, largest, ranges) = futures::try_join!(
        session.query_one(&totals, &parameters),
        session.query(&largest, &parameters),
        session.query(ranges, &parameters)
    )
    .context("reading the indexes that depend on collations")?;
    let number = |column: usize| totals.get::<_, i64>(column).unsigned_abs();
    let names = |rows: &[tokio_postgres::Row]| rows.iter().map(|row| row.get(0)).collect();
    Ok(Touched {
        indexes: number(0),
        unique: number(1),
        bytes: number(2),
        names: names(&largest),
        range_partitioned: names(&ranges),
    })
}

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
