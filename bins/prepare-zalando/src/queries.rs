//! The queries to the source's leader, one function each.

use std::collections::BTreeMap;

use job::error::{Context as _, Result};
use platform::postgres::Session;
use secrecy::SecretString;
use tokio_postgres::Row;

use crate::{
    facts::{Database, Role, Server, Setting},
    hba::Rule,
    stored_password,
};

/// Transactions that have been open for longer than this are reported.
const LONG_MINUTES: i32 = 5;
/// Statistics younger than this give no reliable average rate of WAL.
const RATE_SECONDS_MIN: i32 = 600;

/// Whether this session has superuser privileges.
pub async fn is_superuser(session: &Session) -> Result<bool> {
    let row = session
        .query_one("select current_setting('is_superuser')::bool", &[])
        .await;
    Ok(row
        .context("reading the privileges of this session")?
        .get(0))
}

/// All parameters. Those that this session has overridden are read from the configuration files.
pub async fn settings(session: &Session) -> Result<BTreeMap<String, Setting>> {
    let rows = session
        .query(
            "select s.name, coalesce(f.setting, current_setting(s.name, true), ''), \
             coalesce(f.setting, s.setting, ''), coalesce(s.boot_val, ''),
                    case when f.setting is null then s.source else 'configuration file' end, \
             s.pending_restart
               from pg_settings s left join pg_file_settings f on s.source = 'client' and f.name = \
             s.name and f.applied",
            &[],
        )
        .await
        .context("reading the settings of the source")?;
    let setting = |row: &Row| Setting {
        value: row.get(1),
        raw: row.get(2),
        boot: row.get(3),
        source: row.get(4),
        pending_restart: row.get(5),
    };
    Ok(rows.iter().map(|row| (row.get(0), setting(row))).collect())
}

/// The parameters that ALTER SYSTEM has written.
pub async fn auto_conf(session: &Session) -> Result<BTreeMap<String, String>> {
    let rows = session
        .query(
            "select name, coalesce(setting, '') from pg_file_settings
              where sourcefile like '%/postgresql.auto.conf' and name is not null",
            &[],
        )
        .await
        .context("reading postgresql.auto.conf of the source")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The lines of pg_hba.conf as the server has parsed them.
pub async fn hba_rules(session: &Session) -> Result<Vec<Rule>> {
    let rows = session
        .query(
            "select coalesce(line_number, 0), coalesce(type, ''), coalesce(database, '{}'), \
             coalesce(user_name, '{}'), address,
                    coalesce(auth_method, ''), error, netmask, coalesce(options, '{}')
               from pg_hba_file_rules order by line_number",
            &[],
        )
        .await
        .context("reading pg_hba of the source")?;
    let rule = |row: &Row| Rule {
        line: row.get(0),
        kind: row.get(1),
        databases: row.get(2),
        roles: row.get(3),
        address: row.get(4),
        method: row.get(5),
        error: row.get(6),
        netmask: row.get(7),
        options: row.get(8),
    };
    Ok(rows.iter().map(rule).collect())
}

/// The text of pg_hba.conf.
pub async fn hba_file(session: &Session) -> Result<String> {
    let row = session
        .query_one("select pg_read_file(current_setting('hba_file'))", &[])
        .await;
    Ok(row.context("reading pg_hba.conf of the source")?.get(0))
}

/// Roles other than PostgreSQL's own.
pub async fn roles(session: &Session) -> Result<Vec<Role>> {
    let rows = session
        .query(
            "select rolname::text, rolcanlogin, rolsuper, rolreplication, coalesce(rolvaliduntil < \
             now(), false), rolpassword
               from pg_authid where rolname !~ '^pg_' order by rolname",
            &[],
        )
        .await
        .context("reading the roles of the source")?;
    let role = |row: &Row| Role {
        name: row.get(0),
        login: row.get(1),
        superuser: row.get(2),
        replication: row.get(3),
        expired: row.get(4),
        hash: row
            .get::<_, Option<&str>>(5)
            .and_then(stored_password::kind),
    };
    Ok(rows.iter().map(role).collect())
}

/// A role's stored hash; None when the role does not exist or has no password.
pub async fn stored_hash(session: &Session, role: &str) -> Result<Option<SecretString>> {
    let row = session
        .query_opt(
            "select rolpassword from pg_authid where rolname = $1",
            &[&role],
        )
        .await;
    let row = row.context(format!("reading how the password of {role} is stored"))?;
    Ok(row
        .and_then(|row| row.get::<_, Option<String>>(0))
        .map(SecretString::from))
}

/// The databases that accept connections, without what [`contents`] reads.
pub async fn databases(session: &Session) -> Result<Vec<Database>> {
    let rows = session
        .query(
            "select datname::text, pg_get_userbyid(datdba)::text, pg_database_size(oid), \
             datlocprovider::text, datcollate,
                    datcollversion, pg_database_collation_actual_version(oid)
               from pg_database where datallowconn order by datname",
            &[],
        )
        .await
        .context("reading the databases of the source")?;
    let database = |row: &Row| Database {
        name: row.get(0),
        owner: row.get(1),
        bytes: row.get::<_, i64>(2) as u64,
        provider: row.get::<_, &str>(3).chars().next().unwrap_or('c'),
        collate: row.get(4),
        recorded_version: row.get(5),
        actual_version: row.get(6),
        ..Database::default()
    };
    Ok(rows.iter().map(database).collect())
}

/// Reads the contents of the database that this session is connected to.
pub async fn contents(session: &Session, database: &mut Database) -> Result<()> {
    let doing = format!("reading the contents of database {}", database.name);
    let row = session
        .query_one(
            "with unlogged as (select oid::regclass::text as name from pg_class where \
             relpersistence = 'u' and relkind = 'r')
             select (select coalesce(array_agg(extname::text order by extname), '{}') from \
             pg_extension),
                    (select count(*) from unlogged),
                    (select coalesce((array_agg(name order by name))[1:5], '{}') from unlogged),
                    (select coalesce(array_agg(evtname::text order by evtname), '{}') from \
             pg_event_trigger where evtenabled <> 'D'),
                    to_regclass('cron.job') is not null",
            &[],
        )
        .await
        .context(&doing)?;
    database.extensions = row.get(0);
    database.unlogged = (row.get::<_, i64>(1) as u32, row.get(2));
    database.event_triggers = row.get(3);
    database.collated_indexes = collated_indexes(session).await.context(&doing)?;
    if row.get(4) {
        let jobs = session
            .query_one("select count(*) from cron.job where active", &[])
            .await;
        database.cron_jobs = jobs.context(&doing)?.get::<_, i64>(0) as u32;
    }
    Ok(())
}

/// The number of indexes whose order depends on libc or ICU: the collation of a column is not C,
/// not POSIX and not of the builtin provider. The provider `d` stands for the database's own
/// collation. PostgreSQL's own objects have OIDs below 16384 and use the collation C.
async fn collated_indexes(session: &Session) -> Result<u32> {
    let row = session
        .query_one(
            "select count(*) from pg_index i
              where i.indexrelid >= 16384 and exists (
                    select from unnest(i.indcollation) as used(oid)
                      join pg_collation c on c.oid = used.oid
                      join pg_database d on d.datname = current_database()
                     where case when c.collprovider = 'd'
                                then d.datlocprovider <> 'b' and (d.datlocprovider = 'i' or \
             d.datcollate not in ('C', 'POSIX'))
                                else c.collprovider <> 'b' and coalesce(c.collcollate, '') not in \
             ('C', 'POSIX') end)",
            &[],
        )
        .await
        .context("counting indexes that depend on collations")?;
    Ok(row.get::<_, i64>(0) as u32)
}

/// State of the server that is not a parameter; `target` is the target's application_name in
/// pg_stat_replication.
pub async fn server(session: &Session, target: &str) -> Result<Server> {
    let identity = platform::postgres::identity(session).await?;
    let row = session
        .query_one(
            "select (select coalesce(array_agg(spcname::text), '{}') from pg_tablespace where \
             spcname not in ('pg_default', 'pg_global')),
                    (select coalesce(array_agg(slot_name::text), '{}') from pg_replication_slots \
             where slot_type = 'logical'),
                    (select count(*) from pg_replication_slots),
                    (select count(*) from pg_stat_replication),
                    exists (select from pg_stat_replication where application_name = $1),
                    (select count(*) from pg_prepared_xacts),
                    (select case when extract(epoch from now() - stats_reset)::float8 >= $2
                                 then (wal_bytes / extract(epoch from now() - \
             stats_reset))::bigint end from pg_stat_wal)",
            &[&target, &f64::from(RATE_SECONDS_MIN)],
        )
        .await
        .context("reading the state of the source")?;
    Ok(Server {
        identity,
        tablespaces: row.get(0),
        logical_slots: row.get(1),
        slots: row.get::<_, i64>(2) as u32,
        senders: row.get::<_, i64>(3) as u32,
        target_streams: row.get(4),
        prepared_transactions: row.get::<_, i64>(5) as u32,
        long_transactions: long_transactions(session).await?,
        wal_bytes_per_second: row.get::<_, Option<i64>>(6).map(|rate| rate as u64),
        session_libraries: session_libraries(session).await?,
    })
}

async fn long_transactions(session: &Session) -> Result<Vec<(String, String, i64)>> {
    let rows = session
        .query(
            "select coalesce(usename::text, ''), coalesce(datname::text, ''), (extract(epoch from \
             now() - xact_start) / 60)::bigint
               from pg_stat_activity
              where backend_type = 'client backend' and xact_start < now() - make_interval(mins => \
             $1) order by xact_start",
            &[&LONG_MINUTES],
        )
        .await
        .context("reading long transactions")?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

/// Libraries that sessions load because of a setting of a role, a database or the configuration.
async fn session_libraries(session: &Session) -> Result<Vec<(String, String)>> {
    let rows = session
        .query(
            "select coalesce('role ' || r.rolname, '') || coalesce(' database ' || d.datname, ''), \
             split_part(c.entry, '=', 2)
               from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join \
             pg_database d on d.oid = s.setdatabase,
                    unnest(s.setconfig) as c(entry)
              where split_part(c.entry, '=', 1) in ('session_preload_libraries', \
             'local_preload_libraries')
              union all
             select 'the configuration', setting from pg_settings
              where name in ('session_preload_libraries', 'local_preload_libraries') and setting \
             <> ''",
            &[],
        )
        .await
        .context("reading the libraries that sessions load")?;
    Ok(rows
        .iter()
        .map(|row| (row.get::<_, String>(0).trim().to_owned(), row.get(1)))
        .collect())
}
