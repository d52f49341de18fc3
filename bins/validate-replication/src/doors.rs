//! The ways to the source that a cut by the Services turns: poolers, Services, and the owner's
//! password. None of it matters to a cut by the application's ConfigMap.

use job::{
    context::Run,
    error::{ErrorKind, Result},
};
use platform::{
    kubernetes::{
        poolers::{self, PoolerPod},
        services,
    },
    pgbouncer::Console,
    postgres::{Source, application_name, read_secret},
};
use protocol::{
    checks::{
        Finding,
        route::{self as by_route, Pooler},
    },
    route::Route,
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{look::Objects, settings::Settings};

/// By which way the application would be brought to the target, and what stands against that way.
///
/// # Errors
/// The API's and the database's; Config for consoles that refuse the password.
pub async fn findings(
    run: &Run,
    settings: &Settings,
    source: &Source,
    objects: &Objects,
) -> Result<Option<Vec<Finding>>> {
    if settings.route == Some(Route::Config) {
        return Ok(None);
    }
    let pods = poolers::pods(&run.client, &run.namespace, &settings.source_cluster).await?;
    if Route::of(settings.route, !pods.is_empty()) == Route::Config {
        return Ok(None);
    }
    let names: Vec<String> = services::turned(&settings.source_cluster, &settings.target_cluster)
        .into_keys()
        .collect();
    let (poolers, services, stored) = futures::try_join!(
        futures::future::try_join_all(pods.iter().map(|pod| pooler(settings, pod))),
        services::read(&run.client, &run.namespace, &names, false),
        source.password_hash(&objects.owner)
    )?;
    let kept = settings
        .owner_hash_file
        .as_ref()
        .and_then(|file| read_secret(file).ok());
    let mode = objects.pool_mode.as_deref();
    Ok(Some(vec![
        by_route::poolers(&poolers),
        by_route::pool_mode(mode.filter(|_| !poolers.is_empty())),
        by_route::services(&names, &services),
        by_route::owner_hash(
            &objects.owner,
            stored.as_ref().map(SecretString::expose_secret),
            kept.as_ref().map(SecretString::expose_secret),
        ),
    ]))
}

/// A console that refuses the password is a wrong setting; one that does not answer is a finding.
async fn pooler(settings: &Settings, pod: &PoolerPod) -> Result<Pooler> {
    let mut login = poolers::login(
        &settings.source_cluster,
        &settings.pooler_user,
        &settings.pooler_password_file,
    );
    if let Some(address) = pod.address {
        (login.hostaddr, login.port) = (Some(address.ip()), address.port());
    }
    let password = read_secret(&login.password_file)?;
    let application = application_name("validate-replication");
    let asked = async {
        Console::open(&login, password, &application)
            .await?
            .state()
            .await
    };
    let paused = match asked.await {
        Ok(state) => Ok(state.paused),
        Err(error) if error.kind() == ErrorKind::Config => return Err(error),
        Err(error) => Err(error.to_string()),
    };
    Ok(Pooler {
        pod: pod.name.clone(),
        paused,
    })
}
