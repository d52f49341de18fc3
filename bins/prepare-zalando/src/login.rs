//! The logins of the target: what the Secrets will hold, the roles behind them, and the proof that
//! the source lets it in.

use job::{
    config::Connection,
    context::Run,
    error::{Context as _, Error, Result},
};
use platform::postgres::{self, Source, replication};

use crate::{
    cnpg_roles,
    facts::Password,
    hidden::Hidden,
    inspect::{self, APPLICATION, Reach, Seen},
    queries, roles, scram,
    secrets::Credentials,
    settings::{REPLICATION_SECRET, Settings, SourceAuth},
};

/// So that no other run of this step makes roles and passwords at the same time. Any number will
/// do, if it is always the same.
const LOCK: i64 = 0x7265_706c_6963_6100;

/// A session that shuts out other runs of this step until it ends.
///
/// # Errors
/// Transient when there is another run.
pub async fn alone(reach: &Reach) -> Result<Source> {
    let source = reach.open("postgres").await?;
    let row = source
        .query_one("select pg_try_advisory_lock($1)", &[&LOCK])
        .await;
    match row.context("shutting out other runs of this step")?.get(0) {
        true => Ok(source),
        false => Err(Error::transient("another run of this step is at work")
            .hint("wait for its end, then look at its log")),
    }
}

/// The password that the target will use: the one in the Secret, or a new one.
///
/// # Errors
/// The API's; Transient when there is no entropy.
pub async fn password(run: &Run, settings: &Settings) -> Result<Hidden> {
    match (
        inspect::replication_password(run, settings).await?,
        settings.source_auth,
    ) {
        (Some(password), _) => Ok(password),
        (None, SourceAuth::StreamingReplica) => {
            scram::new_password().map_err(|e| Error::transient("making a password").caused_by(e))
        }
        // The findings have refused this a moment ago.
        (None, SourceAuth::Standby) => Err(Error::refused("the secret of role standby is gone")
            .hint("let the operator make it again")),
    }
}

/// The Secret of the role that replicates.
pub fn secret(settings: &Settings, password: &Hidden) -> Credentials {
    Credentials {
        name: REPLICATION_SECRET.into(),
        username: settings.source_auth.role().into(),
        password: password.clone(),
    }
}

/// The Secrets that CloudNativePG sets passwords from at the promotion, each with the reason of its
/// Event.
pub fn promoted(settings: &Settings, seen: &Seen) -> Vec<(&'static str, Credentials)> {
    let superuser = Credentials {
        name: settings.superuser_secret(),
        username: seen.reach.connection.user.to_string(),
        password: seen.secrets.superuser.clone(),
    };
    let owner = seen
        .facts
        .database(&settings.database)
        .zip(seen.secrets.owner_hash.as_ref())
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

/// What has to be done about roles.
pub fn plan(
    settings: &Settings,
    seen: &roles::Seen,
    state: Password,
    password: &Hidden,
) -> Vec<roles::Change> {
    let unset = settings.source_auth == SourceAuth::StreamingReplica && state != Password::Matches;
    let verifier = unset.then(|| scram::verifier(password));
    roles::plan(seen, verifier.as_ref())
}

/// Makes the roles, and looks again.
///
/// # Errors
/// The database's; Unsafe when something is missing afterwards.
pub async fn make_roles(
    run: &Run,
    settings: &Settings,
    source: &Source,
    password: &Hidden,
) -> Result<()> {
    let plan = missing(settings, source, password).await?;
    if plan.is_empty() {
        run.report.step(
            "RolesMade",
            "the roles that CloudNativePG needs are right already",
        );
        return Ok(());
    }
    cnpg_roles::apply(source, &plan).await?;
    let left = missing(settings, source, password).await?;
    if !left.is_empty() {
        return Err(Error::contradiction(format!(
            "after the roles were made, this is still missing: {left:?}"
        ))
        .hint("something else changes these roles: find out what, then run this step again"));
    }
    for change in &plan {
        run.report.info(&change.what);
    }
    run.report.step(
        "RolesMade",
        "the roles that CloudNativePG needs are complete",
    );
    Ok(())
}

/// What has to be done about roles now.
async fn missing(
    settings: &Settings,
    source: &Source,
    password: &Hidden,
) -> Result<Vec<roles::Change>> {
    let role = settings.source_auth.role();
    let stored = queries::stored_hash(source, role).await?;
    let state = inspect::compare(stored.as_ref(), Some(password), role);
    Ok(plan(
        settings,
        &cnpg_roles::seen(source).await?,
        state,
        password,
    ))
}

/// Logs in as the target will: the same host, role, password, sslmode and CA, over the replication
/// protocol. The clone that CloudNativePG starts would try the same for ever, and say so nowhere.
///
/// # Errors
/// What the server says; Unsafe when another server answers.
pub async fn prove(
    run: &Run,
    settings: &Settings,
    reach: &Reach,
    source: &Source,
    password: &Hidden,
) -> Result<()> {
    let role = settings.source_auth.role();
    let connection = Connection {
        user: role.parse().map_err(Error::config)?,
        ..reach.connection.clone()
    };
    let answer =
        replication::identify_system(&connection, &reach.credentials(password), APPLICATION)
            .await?;
    let identity = source.identity().await?;
    if answer.system_identifier != identity.system_identifier {
        return Err(Error::contradiction(format!(
            "{} answers with two system identifiers",
            postgres::endpoint(&connection)
        ))
        .hint("SOURCE_HOST leads to more than one cluster: look at its Service and Endpoints"));
    }
    run.report.step(
        "LoginProved",
        format!(
            "role {role} has replication and login: the source answered it over tls ({}, timeline \
             {})",
            connection.sslmode.as_str(),
            answer.timeline
        ),
    );
    Ok(())
}
