//! `prepare-zalando`: prepares the source for replication and renders the manifest of the target.
//!
//! **Promise when it exits 0:** the role that the target replicates as can log in, the roles that
//! CloudNativePG needs exist, the Secrets that the manifest refers to exist, and the ConfigMap
//! `<TARGET_CLUSTER>-cluster-replica` holds a manifest made for *this* source. Every finding has
//! been reported. No pod of the source was restarted unless a setting allows it. A second run
//! changes nothing.
//!
//! Its steps:
//! 1. observe the source and the target;
//! 2. report the findings, and refuse before the first effect if one of them is a blocker;
//! 3. ask the API server, by a dry run, whether it would accept the manifest;
//! 4. change the `postgresql` resource, only if a setting requests it;
//! 5. write the Secret that the target logs in with, and create CloudNativePG's roles in one
//!    transaction;
//! 6. log in over the replication protocol as the target will;
//! 7. write the Secrets of the owner and the superuser, and the manifest;
//! 8. print the next step.
//!
//! | variable | meaning |
//! |---|---|
//! | SOURCE_CLUSTER, TARGET_CLUSTER | the `postgresql` resource, and the Cluster to be created |
//! | DATABASE | the application's database |
//! | SOURCE_HOST, SOURCE_PORT, SOURCE_HOSTADDR, SOURCE_SSLMODE | how to reach the leader |
//! | SOURCE_USER, SOURCE_PASSWORD_FILE | the superuser, and its password in a mounted file |
//! | SOURCE_AUTH | the replication role: `standby` (default) or `streaming_replica` |
//! | ALLOW_SOURCE_ROLLING_UPDATE | `true`: allow changing pg_hba, which restarts pods |
//! | WAL_KEEP_MB | raise wal_keep_size of the source to this many MB |
//! | TARGET_IMAGE, TARGET_STORAGE, TARGET_STORAGE_CLASS, ADOPT_IMAGE | values of the manifest |
//! | TARGET_PATCH | the ConfigMap with what the user adds to the Cluster |
//! | ARCHIVE_RESTART | `never` (default): the promotion takes no restart |
//! | ACCEPT | findings that the user accepts, as `id` or `id:object` |
//! | DRY_RUN | `true`: report what would be done, print the manifest, change nothing |
//!
//! Unless a function says otherwise, its errors are those of the Kubernetes API or of the source's
//! server, with the kind that [`job::error`] gives them.

mod admission_check;
mod cluster_manifest;
mod cnpg_roles;
mod facts;
mod findings;
#[cfg(test)]
mod fixture;
mod hba;
mod image;
mod manifest_config_map;
mod memory;
mod observation;
mod output;
mod parameters;
mod queries;
mod replication_login;
mod secrets;
mod settings;
mod source_change;
mod stored_password;
mod target_patch;

use std::process::ExitCode;

use job::{
    config::{self, Connection},
    context::{self, JobContext},
    error::{Error, Result},
    record_store,
};

use crate::{image::Image, observation::Observation, settings::Settings};

fn main() -> ExitCode {
    context::main(
        "prepare-zalando",
        async |settings: Settings, run: JobContext| {
            run.until_stopped(prepare(&settings, &run)).await
        },
    )
}

async fn prepare(settings: &Settings, run: &JobContext) -> Result<()> {
    if settings.dry_run {
        run.report.events_off();
    }
    let connection: Connection = config::prefixed("SOURCE_")?;
    let image = Image::parse(&settings.target_image).map_err(|reason| {
        Error::config(format!("TARGET_IMAGE: {reason}"))
            .hint("set it in the ConfigMap replica-migration")
    })?;
    let mut found = findings::target::name(settings);
    let resource = observation::resource(run, settings).await?;
    found.extend(findings::target::wanted_version(
        &resource, &image, settings,
    ));
    found.extend(findings::source::follows_another(&resource));
    output::findings(&run.report, &found);
    findings::refuse(&found)?;
    record_store::refuse_after_cutover(&run.client, &run.namespace, &run.target).await?;

    let mut observed = observation::observe(run, settings, &connection, &resource).await?;
    output::observed(&run.report, &observed.facts);
    let found = findings::all(&observed.facts, settings, &image);
    output::findings(&run.report, &found);
    findings::refuse(&found)?;
    let manifest = cluster_manifest::render(&observed.facts, settings, &image)?;
    admission_check::admitted(run, &manifest).await?;

    let required = source_change::required(&observed.facts, settings);
    if settings.dry_run {
        return output::dry_run(run, settings, &observed, &required, &image).await;
    }
    if !required.is_empty() {
        source_change::apply::apply(run, settings, &observed.source, &required).await?;
        let resource = observation::resource(run, settings).await?;
        observed = observation::observe(run, settings, &connection, &resource).await?;
        let found = findings::all(&observed.facts, settings, &image);
        findings::refuse(&found)?;
    }
    carry_out(run, settings, &observed, &image).await
}

/// Steps 5 to 8: Secrets, roles, login and manifest.
async fn carry_out(
    run: &JobContext,
    settings: &Settings,
    observed: &Observation,
    image: &Image,
) -> Result<()> {
    let report = &run.report;
    let source = replication_login::lock(&observed.source).await?;
    let password = replication_login::password(run, settings).await?;
    let replication = replication_login::secret(settings, &password);
    let outcome = secrets::write(run, &replication).await?;
    report.step(
        "PasswordStored",
        format!(
            "password stored in secret {}: {}",
            replication.name,
            outcome.describe()
        ),
    );

    replication_login::create_roles(run, settings, &source, &password).await?;
    replication_login::verify(run, settings, &observed.source, &source, &password).await?;

    for (reason, credentials) in replication_login::promotion_credentials(settings, observed) {
        let outcome = secrets::write(run, &credentials).await?;
        report.step(
            reason,
            format!(
                "secret {} {} ({})",
                credentials.name,
                outcome.describe(),
                credentials.username
            ),
        );
    }
    // A cutover may have been started since this program began: its manifest is not overwritten.
    record_store::refuse_after_cutover(&run.client, &run.namespace, &run.target).await?;
    let manifest = cluster_manifest::render(&observed.facts, settings, image)?;
    let outcome = manifest_config_map::write(run, settings, &manifest).await?;
    report.step(
        "ManifestWritten",
        format!(
            "manifest in configmap {}: {}",
            settings.manifest_map(),
            outcome.describe()
        ),
    );
    output::ready(run, settings, observed, &manifest);
    Ok(())
}
