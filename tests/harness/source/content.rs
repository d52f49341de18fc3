//! The databases' content: roles and schemas as the operator creates them, tables and rows as the
//! application has them.

use anyhow::{Context, Result};
use postgres_protocol::password::{md5, scram_sha_256};

use super::{
    Credentials, Source,
    options::{Hashes, SourceOptions},
};

/// Creates roles, databases, the pooler's schema and the application's rows on the leader.
pub(super) async fn create(source: &Source) -> Result<()> {
    let options = source.options();
    let (database, credentials) = (&options.database, source.credentials());
    let client = source
        .connect_to(source.leader().await?, "postgres")
        .await?;
    client
        .batch_execute(&roles(options, credentials))
        .await
        .context("creating roles")?;
    client
        .batch_execute(&format!(
            "create database \"{database}\" owner \"{database}\""
        ))
        .await
        .context("creating the database")?;
    if let Some(version) = &options.collation_version {
        client
            .execute("update pg_database set datcollversion = $1", &[version])
            .await
            .context("dating the collations back")?;
    }
    for database in ["postgres", database] {
        let client = source.connect_to(source.leader().await?, database).await?;
        client
            .batch_execute(POOLER)
            .await
            .context("creating the pooler's schema")?;
        if database == options.database {
            client
                .batch_execute(&application(options))
                .await
                .context("filling the application's tables")?;
        }
    }
    Ok(())
}

/// The operator hashes passwords itself: a clear-text password would appear in the server's log
/// (log_statement = ddl).
fn roles(options: &SourceOptions, credentials: &Credentials) -> String {
    let hash = |role: &str, password: &str| match options.hashes {
        Hashes::Md5 => md5(password.as_bytes(), role),
        Hashes::Scram => scram_sha_256(password.as_bytes()),
    };
    let role = |role: &str, password: &str, more: &str| {
        format!(
            "create role \"{role}\" login {more} encrypted password '{}';",
            hash(role, password)
        )
    };
    let application = role(
        &options.database,
        &credentials.application,
        "admin \"admin\"",
    );
    // `admin "admin"` comes from enable_admin_role_for_users, the operator's default.
    application + &role("pooler", &credentials.pooler, "")
}

/// The operator's lookup function for pgbouncer's auth_query (its pkg/cluster/database.go).
const POOLER: &str = "
    create schema pooler;
    create function pooler.user_lookup(in i_username text, out uname text, out phash text) returns \
    record as $$
    begin
        select usename, passwd from pg_catalog.pg_shadow where usename = i_username into uname, \
    phash;
        return;
    end;
    $$ language plpgsql security definer;
    revoke all on function pooler.user_lookup(text) from public, pooler;
    grant execute on function pooler.user_lookup(text) to pooler;
    grant usage on schema pooler to pooler;";

/// Mastodon's three main tables, reduced: names that sort differently by code point and by
/// language, text indexes, foreign keys, sequences.
fn application(options: &SourceOptions) -> String {
    let SourceOptions {
        database: owner,
        rows,
        ..
    } = options;
    let (accounts, users) = (rows / 4, rows / 8);
    format!(
        "set role \"{owner}\";
        create table accounts (id bigserial primary key, username text not null, domain text, \
         created_at timestamptz not null default now());
        create unique index index_accounts_on_username_and_domain_lower on accounts \
         (lower(username), coalesce(lower(domain), ''));
        create table users (id bigserial primary key, email text not null, account_id bigint not \
         null references accounts);
        create unique index index_users_on_email on users (email);
        create table statuses (id bigserial primary key, account_id bigint not null references \
         accounts, text text not null default '',
            created_at timestamptz not null default now());
        create index index_statuses_on_account_id on statuses (account_id, id desc);
        create index index_statuses_on_text on statuses (left(text, 40));
        insert into accounts (username, domain)
            select (array['Zoë', 'zoe', 'Ångström', 'ähnlich', 'azimut', 'co-op', 'coop', '_x'])[1 \
         + n % 8] || n, case when n % 3 = 0 then 'example.org' end
            from generate_series(1, {accounts}) n;
        insert into users (email, account_id) select 'user' || n || '@example.org', n from \
         generate_series(1, {users}) n;
        insert into statuses (account_id, text) select 1 + n % {accounts}, md5(n::text) || ' éàü ' \
         || n from generate_series(1, {rows}) n;
        reset role;
        analyze;"
    )
}
