//! The SQL of the questions that checks ask a server: each returns one column of text.

use job::error::{Context as _, Result};
use protocol::{
    checks::questions::{
        APPLY_DELAY, ARCHIVE_BACKLOG, ARCHIVING, BASE_BACKUPS, LOGICAL_READERS, LOGICAL_SLOTS,
        MISSING_ROLES, PREPARED_TRANSACTIONS, SOURCE_HOT_STANDBY, SOURCE_SUPERUSER,
        STALLED_WALSENDERS, TABLESPACES, TARGET_HOT_STANDBY, TARGET_SUPERUSER, UNLOGGED_TABLES,
        WALSENDERS,
    },
    snapshot::prechecks::{Answers, Question, Side},
};

use crate::postgres::Session;

const SUPERUSER: &str = "select rolsuper::text from pg_roles where rolname = current_user";

/// PostgreSQL documentation, *Hot Standby, Administrator's Overview*.
const HOT_STANDBY: &str = "select name || ' ' || setting from pg_settings
      where name in ('max_connections', 'max_worker_processes', 'max_wal_senders', \
    'max_prepared_transactions', 'max_locks_per_transaction') order by name";

/// A question and its SQL.
const QUERIES: &[(Question, &str)] = &[
    (SOURCE_SUPERUSER, SUPERUSER),
    (TARGET_SUPERUSER, SUPERUSER),
    (SOURCE_HOT_STANDBY, HOT_STANDBY),
    (TARGET_HOT_STANDBY, HOT_STANDBY),
    (
        PREPARED_TRANSACTIONS,
        "select gid from pg_prepared_xacts order by prepared",
    ),
    (
        BASE_BACKUPS,
        "select coalesce(nullif(a.application_name, ''), a.usename::text, 'pid ' || p.pid) || ': ' \
         || p.phase
           from pg_stat_progress_basebackup p left join pg_stat_activity a using (pid)",
    ),
    (
        TABLESPACES,
        "select spcname::text from pg_tablespace where spcname not in ('pg_default', 'pg_global') \
         order by 1",
    ),
    (
        LOGICAL_SLOTS,
        "select slot_name::text from pg_replication_slots where slot_type = 'logical' order by 1",
    ),
    (
        LOGICAL_READERS,
        "select slot_name::text from pg_replication_slots
          where slot_type = 'logical' and active_pid is not null order by 1",
    ),
    (
        UNLOGGED_TABLES,
        "select c.oid::regclass::text from pg_class c
          where c.relpersistence = 'u' and c.relkind = 'r' and pg_relation_size(c.oid) > 0
          order by 1",
    ),
    (
        ARCHIVE_BACKLOG,
        "with waiting as (
             select count(*) as files,
                    coalesce(extract(epoch from clock_timestamp() - min(modification)), 0)::bigint
                        as seconds
               from pg_ls_archive_statusdir() where name like '%.ready'
         ) select unnest(array[files, seconds])::text from waiting",
    ),
    (
        STALLED_WALSENDERS,
        "select coalesce(nullif(application_name, ''), 'pid ' || pid) from pg_stat_replication
          where reply_time < clock_timestamp() - interval '15 s' order by 1",
    ),
    (
        ARCHIVING,
        "select last_failed_wal from pg_stat_archiver
          where last_failed_time > coalesce(last_archived_time, '-infinity')
            and last_failed_wal is not null and current_setting('archive_mode') <> 'off'",
    ),
    (
        MISSING_ROLES,
        "select w from unnest(array['streaming_replica', 'cnpg_pooler_pgbouncer', \
         'cnpg_metrics_exporter']) w
          where not exists (select from pg_roles where rolname = w)",
    ),
    (
        WALSENDERS,
        "select application_name || ' ' || coalesce(state, 'starting') from pg_stat_replication",
    ),
    (
        APPLY_DELAY,
        "select current_setting('recovery_min_apply_delay')",
    ),
];

/// The answers of one server to all questions for it, asked at the same time.
pub async fn answers(session: &Session, side: Side) -> Result<Answers> {
    let asked = QUERIES
        .iter()
        .filter(|(question, _)| question.side == side)
        .map(|(question, sql)| async move {
            let rows = session.query(*sql, &[]).await;
            let rows = rows.context(format!("asking for the {}", question.name))?;
            let texts = rows.iter().map(|row| row.get(0)).collect();
            Ok::<_, job::error::Error>((*question, texts))
        });
    Ok(futures::future::try_join_all(asked)
        .await?
        .into_iter()
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::checks::{CNPG_ROLES, registered};

    use super::*;
    use crate::postgres::source::STALLED_SECONDS;

    #[test]
    fn each_question_of_a_check_has_one_query_and_each_query_a_check() {
        let asked: BTreeSet<Question> = registered()
            .flat_map(|check| check.questions.iter().copied())
            .collect();
        let known: BTreeSet<Question> = QUERIES.iter().map(|(question, _)| *question).collect();
        assert_eq!(asked, known);
        assert_eq!(known.len(), QUERIES.len());
    }

    #[test]
    fn a_standby_hangs_after_the_same_time_for_the_check_and_for_the_stop() {
        let limit = format!("interval '{STALLED_SECONDS} s'");
        let sql = QUERIES
            .iter()
            .find(|(question, _)| *question == STALLED_WALSENDERS);
        assert!(sql.is_some_and(|(_, sql)| sql.contains(&limit)));
    }

    #[test]
    fn the_roles_of_cloudnative_pg_are_those_of_the_check() {
        let sql = QUERIES
            .iter()
            .find(|(question, _)| *question == MISSING_ROLES);
        for role in CNPG_ROLES {
            assert!(sql.is_some_and(|(_, sql)| sql.contains(role)), "{role}");
        }
    }
}
