//! The logins of the target: the contents of their Secrets, the roles behind them, and a trial
//! login over the replication protocol.

use job::{
    config::Connection,
    context::JobContext,
    error::{Context as _, Error, Result},
};
use platform::postgres::{self, Source, replication};
use secrecy::SecretString;

use crate::{
    cnpg_roles::{self, Change, ExistingRoles, database},
    facts::Password,
    observation::{self, APPLICATION, Observation, SourceAccess},
    queries,
    secrets::Credentials,
    settings::{REPLICATION_SECRET, Settings, SourceAuth},
    stored_password,
};

/// Key of the advisory lock that keeps other runs of this program from creating roles and passwords
/// at the same time. The number is arbitrary but must not change.
const LOCK: i64 = 0x7265_706c_6963_6100;

/// Opens a session that holds the lock until it ends.
///
/// # Errors
/// Transient when another run holds the lock.
pub async fn lock(access: &SourceAccess) -> Result<Source> {
    let source = access.open("postgres").await?;
    let row = source
        .query_one("select pg_try_advisory_lock($1)", &[&LOCK])
        .await;
    if row
        .context("locking out other runs of prepare-zalando")?
        .get(0)
    {
        Ok(source)
    } else {
        Err(
            Error::transient("another run of prepare-zalando is in progress")
                .hint("wait until it has ended, then read its log"),
        )
    }
}

/// The password that the target will use: the one in the Secret, or a new one for
/// streaming_replica.
///
/// # Errors
/// Refused when the Secret of standby has disappeared; Transient when a password cannot be
/// generated.
pub async fn password(run: &JobContext, settings: &Settings) -> Result<SecretString> {
    match (
        observation::replication_password(run, settings).await?,
        settings.source_auth,
    ) {
        (Some(password), _) => Ok(password),
        (None, SourceAuth::StreamingReplica) => stored_password::new_password()
            .map_err(|e| Error::transient("generating a password").caused_by(e)),
        // The findings refuse this, so the Secret has disappeared since then.
        (None, SourceAuth::Standby) => {
            Err(Error::refused("the secret of role standby has disappeared")
                .hint("let the operator create it again"))
        }
    }
}

/// The Secret of the replication role.
pub fn secret(settings: &Settings, password: &SecretString) -> Credentials {
    Credentials {
        name: REPLICATION_SECRET.into(),
        username: settings.source_auth.role().into(),
        password: password.clone(),
    }
}

/// The Secrets from which CloudNativePG sets passwords at the promotion, each with the reason of
/// its Event.
pub fn promotion_credentials(
    settings: &Settings,
    observed: &Observation,
) -> Vec<(&'static str, Credentials)> {
    let superuser = Credentials {
        name: settings.superuser_secret(),
        username: observed.source.connection.user.to_string(),
        password: observed.secrets.superuser.clone(),
    };
    let owner = observed
        .facts
        .database(&settings.database)
        .zip(observed.secrets.owner_hash.as_ref())
        .map(|(database, hash)| Credentials {
            name: settings.owner_secret(),
            username: database.owner.clone(),
            password: hash.clone(),
        });
    owner
        .map(|owner| ("OwnerSecret", owner))
        .into_iter()
        .chain([("SuperuserSecret", superuser)])
        .collect()
}

/// The changes that complete CloudNativePG's roles.
pub fn plan(
    settings: &Settings,
    existing: &ExistingRoles,
    state: Password,
    password: &SecretString,
) -> Vec<Change> {
    let unset = settings.source_auth == SourceAuth::StreamingReplica && state != Password::Matches;
    let verifier = unset.then(|| stored_password::verifier(password));
    cnpg_roles::plan(existing, verifier.as_ref())
}

/// Completes CloudNativePG's roles, and checks the result.
///
/// # Errors
/// Unsafe when something is missing afterwards.
pub async fn create_roles(
    run: &JobContext,
    settings: &Settings,
    source: &Source,
    password: &SecretString,
) -> Result<()> {
    let plan = missing(settings, source, password).await?;
    if plan.is_empty() {
        run.report.step(
            "RolesCreated",
            "the roles that CloudNativePG needs are up to date",
        );
        return Ok(());
    }
    database::apply(source, &plan).await?;
    let left = missing(settings, source, password).await?;
    if !left.is_empty() {
        return Err(Error::manual_intervention(format!(
            "after the roles were created, this is still missing: {left:?}"
        ))
        .hint("find out which client changes these roles, stop it, and run this step again"));
    }
    for change in &plan {
        run.report.info(&change.description);
    }
    run.report.step(
        "RolesCreated",
        "the roles that CloudNativePG needs are complete",
    );
    Ok(())
}

/// The changes that are required now.
async fn missing(
    settings: &Settings,
    source: &Source,
    password: &SecretString,
) -> Result<Vec<Change>> {
    let role = settings.source_auth.role();
    let stored = queries::stored_hash(source, role).await?;
    let state = observation::compare(stored.as_ref(), Some(password), role);
    Ok(plan(
        settings,
        &database::existing(source).await?,
        state,
        password,
    ))
}

/// Logs in as the target will: the same host, role, password, sslmode and CA, over the replication
/// protocol. CloudNativePG's clone would repeat a failing login without limit, and not report it.
///
/// # Errors
/// Those of the login; Unsafe when another server answers.
pub async fn verify(
    run: &JobContext,
    settings: &Settings,
    access: &SourceAccess,
    source: &Source,
    password: &SecretString,
) -> Result<()> {
    let role = settings.source_auth.role();
    let connection = Connection {
        user: role.parse().map_err(Error::config)?,
        ..access.connection.clone()
    };
    let answer =
        replication::identify_system(&connection, &access.credentials(password), APPLICATION)
            .await?;
    let identity = source.identity().await?;
    if answer.system_identifier != identity.system_identifier {
        return Err(Error::manual_intervention(format!(
            "{} answers with two system identifiers",
            postgres::endpoint(&connection)
        ))
        .hint("SOURCE_HOST leads to more than one cluster: check its Service and endpoints"));
    }
    run.report.step(
        "LoginVerified",
        format!(
            "role {role} has replication and login: the source answered it over tls ({}, timeline \
             {})",
            connection.sslmode.as_str(),
            answer.timeline
        ),
    );
    Ok(())
}
