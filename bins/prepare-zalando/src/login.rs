//! The logins of the target: what the Secrets will hold, the roles behind them, and the proof that the source lets it in.

use shared::{
    config::Connection,
    error::{Error, Result},
    job::Run,
    postgres::{self, replication},
};

use crate::{
    cnpg_roles,
    facts::Password,
    hidden::Hidden,
    inspect::{APPLICATION, Reach, Seen},
    roles, scram,
    secrets::Credentials,
    settings::{REPLICATION_SECRET, Settings, SourceAuth},
};

/// The password that the target will use: the one that is there, or a new one.
///
/// # Errors
/// Transient when there is no entropy.
pub fn password(seen: &Seen, settings: &Settings) -> Result<Hidden> {
    match (&seen.secrets.replication, settings.source_auth) {
        (Some(password), _) => Ok(password.clone()),
        (None, SourceAuth::StreamingReplica) => scram::new_password().map_err(|e| Error::transient("making a password").caused_by(e)),
        // The findings have refused this before.
        (None, SourceAuth::Standby) => Err(Error::refused("there is no secret of role standby")),
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

/// The Secrets that CloudNativePG sets passwords from at the promotion, each with the reason of its Event.
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

/// What has to be done about roles now.
pub fn plan(settings: &Settings, seen: &Seen, password: &Hidden) -> Vec<roles::Change> {
    let unset = settings.source_auth == SourceAuth::StreamingReplica && seen.facts.login.password != Password::Matches;
    let verifier = unset.then(|| scram::verifier(password));
    roles::plan(&seen.facts.cnpg_roles, verifier.as_ref())
}

/// Makes the roles, and looks again.
///
/// # Errors
/// The database's; Unsafe when something is missing afterwards.
pub async fn make_roles(run: &Run, settings: &Settings, seen: &Seen, password: &Hidden) -> Result<()> {
    let plan = plan(settings, seen, password);
    if plan.is_empty() {
        run.report
            .step("RolesRight", "the roles that CloudNativePG needs are right already");
        return Ok(());
    }
    let source = seen.reach.open("postgres").await?;
    cnpg_roles::apply(&source, &plan).await?;
    let left = roles::plan(&cnpg_roles::seen(&source).await?, None);
    if !left.is_empty() {
        return Err(
            Error::contradiction(format!("after the roles were made, this is still missing: {left:?}"))
                .hint("something else changes these roles: find out what, then run this step again"),
        );
    }
    for change in &plan {
        run.report.info(&change.what);
    }
    run.report.step("RolesMade", "the roles that CloudNativePG needs are complete");
    Ok(())
}

/// Logs in as the target will: the same host, role, password, sslmode and CA, over the replication protocol. The clone that
/// CloudNativePG starts would try the same for ever, and say so nowhere.
///
/// # Errors
/// What the server says; Unsafe when another server answers.
pub async fn prove(run: &Run, settings: &Settings, reach: &Reach, password: &Hidden) -> Result<()> {
    let role = settings.source_auth.role();
    let connection = Connection {
        user: role.parse().map_err(Error::config)?,
        ..reach.connection.clone()
    };
    let ca = reach.ca_pem.as_deref().map(str::as_bytes);
    let answer = replication::identify_system(&connection, password.reveal(), ca, APPLICATION).await?;
    let identity = reach.open("postgres").await?.identity().await?;
    if answer.system_identifier != identity.system_identifier {
        return Err(
            Error::contradiction(format!("{} answers with two system identifiers", postgres::endpoint(&connection)))
                .hint("SOURCE_HOST leads to more than one cluster: look at its Service and Endpoints"),
        );
    }
    run.report.step(
        "LoginProved",
        format!(
            "role {role} has replication and login: the source answered it over tls ({}, timeline {})",
            connection.sslmode.as_str(),
            answer.timeline
        ),
    );
    Ok(())
}
