//! The queries that show how both sides sort text, and what depends on it.

use job::error::{Context as _, Result};
use platform::postgres::Session;
use protocol::snapshot::data::{Collation, DEFAULT_COLLATION_OID, DependentObjects, Sorting};
use tokio_postgres::types::ToSql;

/// A query's parameter; named where several queries share theirs.
type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Strings whose order has changed between versions of the C library or ICU, or differs between
/// languages.
const PROBES: [&str; 44] = [
    "a", "A", "b", "B", "aa", "a a", "a-a", "a+a", "a_a", "a.a", "aA", "ab", "1", "11", "1-1",
    "1 1", "2", "10", "_x", "x", "#1", "@a", "$a", "co-op", "coop", "CO-OP", "e", "é", "E", "É",
    "z", "Z", "ss", "ß", "ä", "ae", "az", "ø", "o", "ł", "l", "½", "日", "🙂",
];

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
    let (probes, default) = (PROBES.as_slice(), DEFAULT_COLLATION_OID);
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
pub async fn dependent(session: &Session, collations: &[u32]) -> Result<DependentObjects> {
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
    Ok(DependentObjects {
        indexes: number(0),
        unique: number(1),
        bytes: number(2),
        names: names(&largest),
        range_partitioned: names(&ranges),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_are_all_different() {
        let mut probes = PROBES.to_vec();
        probes.sort_unstable();
        probes.dedup();
        assert_eq!(probes.len(), PROBES.len());
    }
}
