//! Reads the existing roles, and carries out a plan, in the source's database.

use job::error::{Context as _, Error, Result};
use platform::postgres::Session;
use secrecy::ExposeSecret as _;

use super::{
    Change, EXPORTER, ExistingLookup, ExistingRole, ExistingRoles, LOOKUP_BODY, MARK, POOLER,
    REPLICA, REWIND_FUNCTIONS,
};

/// Reads the existing roles; `session` must be connected to the database postgres.
pub async fn existing(session: &Session) -> Result<ExistingRoles> {
    let (replica, exporter, pooler) = (
        role(session, REPLICA).await?,
        role(session, EXPORTER).await?,
        role(session, POOLER).await?,
    );
    Ok(ExistingRoles {
        rewind_missing: if replica.is_some() {
            rewind_missing(session).await?
        } else {
            vec![]
        },
        exporter_monitors: exporter.is_some() && exporter_monitors(session).await?,
        pooler_connects: pooler.is_some() && pooler_connects(session).await?,
        lookup: lookup(session).await?,
        replica,
        exporter,
        pooler,
    })
}

async fn role(session: &Session, name: &str) -> Result<Option<ExistingRole>> {
    let row = session
        .query_opt(
            "select coalesce(shobj_description(oid, 'pg_authid') = $2, false), rolcanlogin, \
             rolreplication, rolsuper
               from pg_authid where rolname = $1",
            &[&name, &MARK],
        )
        .await
        .context(format!("reading role {name}"))?;
    Ok(row.map(|row| ExistingRole {
        marked: row.get(0),
        login: row.get(1),
        replication: row.get(2),
        superuser: row.get(3),
    }))
}

async fn rewind_missing(session: &Session) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select name from unnest($2::text[]) with ordinality as f(name, position)
              where not has_function_privilege($1, name, 'execute') order by position",
            &[&REPLICA, &REWIND_FUNCTIONS.as_slice()],
        )
        .await
        .context(format!("reading the grants of {REPLICA}"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn exporter_monitors(session: &Session) -> Result<bool> {
    let row = session
        .query_one(
            "select pg_has_role($1, 'pg_monitor', 'usage')",
            &[&EXPORTER],
        )
        .await;
    Ok(row
        .context(format!("reading the memberships of {EXPORTER}"))?
        .get(0))
}

async fn pooler_connects(session: &Session) -> Result<bool> {
    let row = session
        .query_one(
            "select has_database_privilege($1, 'postgres', 'connect') and has_schema_privilege($1, \
             'public', 'usage')",
            &[&POOLER],
        )
        .await;
    Ok(row
        .context(format!("reading the privileges of {POOLER}"))?
        .get(0))
}

async fn lookup(session: &Session) -> Result<Option<ExistingLookup>> {
    let row = session
        .query_opt(
            "select o.rolsuper, p.prosrc = $1 and p.prosecdef and p.proconfig = \
             array['search_path=pg_catalog, pg_temp'],
                    exists (select from aclexplode(coalesce(p.proacl, acldefault('f', \
             p.proowner))) where grantee = 0),
                    coalesce(has_function_privilege((select oid from pg_roles where rolname = $2), \
             p.oid, 'execute'), false)
               from pg_proc p join pg_roles o on o.oid = p.proowner
              where p.oid = to_regprocedure('public.user_search(text)')",
            &[&LOOKUP_BODY, &POOLER],
        )
        .await
        .context("reading function public.user_search")?;
    Ok(row.map(|row| ExistingLookup {
        owned_by_superuser: row.get(0),
        up_to_date: row.get::<_, Option<bool>>(1).unwrap_or(false),
        public_executes: row.get(2),
        pooler_executes: row.get(3),
    }))
}

/// Carries out a plan in one transaction.
///
/// The statements contain no password, but may contain a verifier, which should not be widely
/// readable either. For this transaction the server writes no statement into its log or statistics,
/// even if one fails.
pub async fn apply(session: &Session, plan: &[Change]) -> Result<()> {
    // A message of its own: the server decides before the first statement of a message whether to
    // log the whole message.
    session
        .batch_execute(
            "begin; set local log_statement = 'none'; set local log_min_duration_statement = -1; \
             set local log_min_error_statement = 'panic';
             set local log_transaction_sample_rate = 0; set local log_min_duration_sample = -1;
             set local pg_stat_statements.track = 'none'; set local pgaudit.log = 'none'",
        )
        .await
        .context("beginning the transaction for the roles")?;
    for change in plan {
        if let Err(error) = session
            .batch_execute(change.statement.expose_secret())
            .await
        {
            let error = Error::from(error);
            // The first error is the one to report. The server also rolls back at the session's
            // end.
            let _ = session.batch_execute("rollback").await;
            return Err(error).context(&change.description);
        }
    }
    session
        .batch_execute("commit")
        .await
        .context("committing the roles")
}
