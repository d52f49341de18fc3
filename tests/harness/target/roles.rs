//! What CNPG changes by SQL on a primary: passwords, extensions, the roles of its pooler, its
//! metrics and its replicas (internal/management/controller/instance_controller.go:1365 and
//! 663–897, lifecycle/run.go:124).

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use tokio_postgres::Client;

use super::{
    cluster::Cluster,
    configuration::{ManagedExtension, managed_extensions},
    objects::text,
    server::Server,
};
use crate::session::Session;

/// Whether the Cluster has Poolers, which need a role of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poolers {
    /// There are Poolers.
    Exist,
    /// There are no Poolers.
    None,
}

/// Sets or clears passwords, then reconciles extensions, then the roles of pooler and metrics, **in
/// this order; an error leaves everything after it undone**, also on every retry.
///
/// # Errors
/// As in CNPG: a missing role, a Secret for another user, an extension that other objects depend
/// on.
pub async fn reconcile(
    server: &Server,
    cluster: &Cluster,
    secrets: &Api<Secret>,
    poolers: Poolers,
) -> Result<()> {
    let mut session = server.connect("postgres").await?;
    passwords(&mut session, cluster, secrets)
        .await
        .context("while updating database owner password")?;
    extensions(server, &session, cluster)
        .await
        .context("cannot reconcile database configurations")?;
    if poolers == Poolers::Exist {
        pooler(&mut session)
            .await
            .context("cannot reconcile pgbouncer integration")?;
    }
    metrics(&mut session)
        .await
        .context("cannot reconcile metrics exporter integration")
}

async fn passwords(session: &mut Client, cluster: &Cluster, secrets: &Api<Secret>) -> Result<()> {
    match cluster.superuser_secret() {
        Some(secret) => password(session, "postgres", &secret, secrets).await?,
        None => {
            session
                .batch_execute("alter role postgres with password null")
                .await?
        }
    }
    let Some(backup) = &cluster.spec.bootstrap.pg_basebackup else {
        return Ok(());
    };
    if !backup.owner.is_empty() && !backup.database.is_empty() {
        password(session, &backup.owner, &cluster.owner_secret(), secrets).await?;
    }
    Ok(())
}

/// A Secret that does not exist is silently skipped, as CNPG does.
async fn password(
    session: &mut Client,
    user: &str,
    secret: &str,
    secrets: &Api<Secret>,
) -> Result<()> {
    let Some(object) = secrets
        .get_opt(secret)
        .await
        .with_context(|| format!("reading the Secret {secret}"))?
    else {
        return Ok(());
    };
    let (named, password) = (
        text(object.data.as_ref(), "username"),
        text(object.data.as_ref(), "password"),
    );
    let (Some(named), Some(password)) = (named, password) else {
        bail!("username or password key doesn't exist inside the secret {secret}")
    };
    if named != user {
        bail!("wrong username '{named}' in secret, expected '{user}'");
    }
    let passthrough = object
        .annotations()
        .get("cnpg.io/passwordPassthrough")
        .is_some_and(|value| value == "enabled");
    let stored = if passthrough {
        password
    } else {
        encrypted(&password)
    };
    let transaction = session.transaction().await?;
    transaction
        .batch_execute(
            "set local log_statement = 'none'; set local log_min_error_statement = 'panic'",
        )
        .await?;
    let row = transaction
        .query_one(
            "select format('alter role %I with password %L', $1::text, $2::text)",
            &[&user, &stored],
        )
        .await?;
    transaction.batch_execute(row.get(0)).await?;
    Ok(transaction.commit().await?)
}

/// A hash is kept verbatim; clear text becomes a SCRAM verifier, whatever password_encryption is.
fn encrypted(password: &str) -> String {
    if is_encrypted(password) {
        password.to_owned()
    } else {
        postgres_protocol::password::scram_sha_256(password.as_bytes())
    }
}

/// PostgreSQL's own test (src/backend/libpq/crypt.c, `get_password_type`).
fn is_encrypted(password: &str) -> bool {
    let md5 = password.strip_prefix("md5").is_some_and(|hash| {
        hash.len() == 32 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let scram = password
        .strip_prefix("SCRAM-SHA-256$")
        .and_then(|rest| rest.split_once('$'));
    let scram = scram.is_some_and(|(salt, keys)| {
        let decodes =
            |text: &str| openssl::base64::decode_block(text).is_ok_and(|bytes| !bytes.is_empty());
        let iterations = salt
            .split_once(':')
            .is_some_and(|(n, salt)| n.parse::<u32>().is_ok() && decodes(salt));
        iterations
            && keys
                .split_once(':')
                .is_some_and(|(stored, server)| decodes(stored) && decodes(server))
    });
    md5 || scram
}

async fn extensions(server: &Server, session: &Session, cluster: &Cluster) -> Result<()> {
    let databases = session
        .query("select datname from pg_database where datallowconn", &[])
        .await?;
    for row in databases {
        let database: String = row.get(0);
        let mut session = server
            .connect(&database)
            .await
            .with_context(|| format!("could not connect to database {database}"))?;
        for extension in managed_extensions(&cluster.spec.postgresql.parameters) {
            let done = reconcile_extension(&mut session, &extension).await;
            done.with_context(|| {
                format!("could not reconcile extensions for database {database}")
            })?;
        }
    }
    Ok(())
}

/// Creates the extension, or drops it **without cascade** if the spec has no GUC of it: dependent
/// objects make this fail.
async fn reconcile_extension(session: &mut Client, extension: &ManagedExtension) -> Result<()> {
    let name = extension.name;
    let installed: bool = session
        .query_one(
            "select exists (select from pg_extension where extname = $1)",
            &[&name],
        )
        .await?
        .get(0);
    let statement = match (extension.used, installed) {
        (true, false) if extension.created => {
            format!("set local search_path to \"$user\", public; create extension {name}")
        }
        (false, true) => format!("drop extension {name}"),
        _ => return Ok(()),
    };
    let transaction = session.transaction().await?;
    transaction.batch_execute(&statement).await?;
    Ok(transaction.commit().await?)
}

async fn pooler(session: &mut Client) -> Result<()> {
    const ROLE: &str = "cnpg_pooler_pgbouncer";
    const BODY: &str = "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=$1;";
    let transaction = session.transaction().await?;
    if !role_exists(&transaction, ROLE).await? {
        transaction
            .batch_execute(&format!(
                "create role {ROLE} with login; grant connect on database postgres to {ROLE}"
            ))
            .await?;
    }
    let function = "select exists (select from pg_proc where proname = 'user_search' and prosrc = \
        $1 and proconfig is not null)";
    let exists: bool = transaction.query_one(function, &[&BODY]).await?.get(0);
    if !exists {
        let create = format!(
            "create or replace function public.user_search(uname text) returns table (usename \
             name, passwd text)
                language sql security definer set search_path = pg_catalog, pg_temp as '{BODY}';
            revoke all on function public.user_search(text) from public;
            grant execute on function public.user_search(text) to {ROLE}"
        );
        transaction.batch_execute(&create).await?;
    }
    Ok(transaction.commit().await?)
}

async fn metrics(session: &mut Client) -> Result<()> {
    const ROLE: &str = "cnpg_metrics_exporter";
    let transaction = session.transaction().await?;
    if !role_exists(&transaction, ROLE).await? {
        transaction
            .batch_execute(&format!("create role {ROLE} with login password null"))
            .await?;
    }
    let repair = format!(
        "alter role {ROLE} with nosuperuser nocreatedb nocreaterole noreplication nobypassrls \
         inherit login password null;
        grant pg_monitor to {ROLE}"
    );
    transaction.batch_execute(&repair).await?;
    Ok(transaction.commit().await?)
}

/// What CNPG does at every **start** of a primary, but not at a promotion: the role of its replicas
/// with pg_rewind's permissions, then the metrics role.
///
/// # Errors
/// The server refuses.
pub async fn on_primary_start(session: &mut Client) -> Result<()> {
    const ROLE: &str = "streaming_replica";
    let transaction = session.transaction().await?;
    if !role_exists(&transaction, ROLE).await? {
        transaction
            .batch_execute(&format!("create user {ROLE} replication"))
            .await?;
    }
    let grants = format!(
        "alter user {ROLE} login replication;
        grant execute on function pg_ls_dir(text, boolean, boolean) to {ROLE};
        grant execute on function pg_stat_file(text, boolean) to {ROLE};
        grant execute on function pg_read_binary_file(text) to {ROLE};
        grant execute on function pg_read_binary_file(text, bigint, bigint, boolean) to {ROLE}"
    );
    transaction.batch_execute(&grants).await?;
    transaction.commit().await?;
    metrics(session).await
}

async fn role_exists(session: &impl tokio_postgres::GenericClient, role: &str) -> Result<bool> {
    Ok(session
        .query_one(
            "select exists (select from pg_roles where rolname = $1)",
            &[&role],
        )
        .await?
        .get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_kept_and_cleartext_is_hashed() {
        let md5 = "md5aabbccddeeff00112233445566778899";
        let scram = postgres_protocol::password::scram_sha_256(b"secret");
        assert_eq!(encrypted(md5), md5);
        assert_eq!(encrypted(&scram), scram);
        for cleartext in [
            "secret",
            "md5short",
            "SCRAM-SHA-256$nonsense",
            "md5AABBCCDDEEFF00112233445566778899",
        ] {
            assert!(
                encrypted(cleartext).starts_with("SCRAM-SHA-256$4096:"),
                "{cleartext}"
            );
        }
    }
}
