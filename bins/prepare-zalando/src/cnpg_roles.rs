//! Reads what is there of CloudNativePG's roles, and carries out a plan of [`crate::roles`] in one
//! transaction.

use job::error::{Context as _, Error, Result};
use platform::postgres::Session;

use crate::roles::{
    Change, EXPORTER, LOOKUP_BODY, LookupSeen, MARK, POOLER, REPLICA, REWIND_FUNCTIONS, RoleSeen,
    Seen,
};

/// What is there; `session` must be connected to database postgres.
pub async fn seen(session: &Session) -> Result<Seen> {
    let (replica, exporter, pooler) = (
        role(session, REPLICA).await?,
        role(session, EXPORTER).await?,
        role(session, POOLER).await?,
    );
    Ok(Seen {
        rewind_missing: if replica.is_some() {
            rewind_missing(session).await?
        } else {
            vec![]
        },
        monitors: exporter.is_some() && monitors(session).await?,
        pooler_enters: pooler.is_some() && pooler_enters(session).await?,
        lookup: lookup(session).await?,
        replica,
        exporter,
        pooler,
    })
}

async fn role(session: &Session, name: &str) -> Result<Option<RoleSeen>> {
    let row = session
        .query_opt(
            "select coalesce(shobj_description(oid, 'pg_authid') = $2, false), rolcanlogin, \
             rolreplication, rolsuper
               from pg_authid where rolname = $1",
            &[&name, &MARK],
        )
        .await
        .context(format!("reading role {name}"))?;
    Ok(row.map(|row| RoleSeen {
        ours: row.get(0),
        login: row.get(1),
        replication: row.get(2),
        superuser: row.get(3),
    }))
}

async fn rewind_missing(session: &Session) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select name from unnest($2::text[]) with ordinality as f(name, place)
              where not has_function_privilege($1, name, 'execute') order by place",
            &[&REPLICA, &REWIND_FUNCTIONS.as_slice()],
        )
        .await
        .context(format!("reading what {REPLICA} may call"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn monitors(session: &Session) -> Result<bool> {
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

async fn pooler_enters(session: &Session) -> Result<bool> {
    let row = session
        .query_one(
            "select has_database_privilege($1, 'postgres', 'connect') and has_schema_privilege($1, \
             'public', 'usage')",
            &[&POOLER],
        )
        .await;
    Ok(row
        .context(format!("reading the rights of {POOLER}"))?
        .get(0))
}

async fn lookup(session: &Session) -> Result<Option<LookupSeen>> {
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
    Ok(row.map(|row| LookupSeen {
        owned_by_superuser: row.get(0),
        right: row.get::<_, Option<bool>>(1).unwrap_or(false),
        open: row.get(2),
        callable: row.get(3),
    }))
}

/// Carries out a plan, all of it or nothing.
///
/// The statements hold no password, but a verifier is not for everybody either: for this
/// transaction the server writes none of them into its log or its statistics, also when one fails.
pub async fn apply(session: &Session, plan: &[Change]) -> Result<()> {
    // A message of its own: the server decides before the first statement of a message whether to
    // log the whole of it.
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
        if let Err(error) = session.batch_execute(change.sql.reveal()).await {
            let error = Error::from(error);
            // The first error is the one to report; the server rolls back when the session ends,
            // too.
            let _ = session.batch_execute("rollback").await;
            return Err(error).context(&change.what);
        }
    }
    session
        .batch_execute("commit")
        .await
        .context("committing the roles")
}
