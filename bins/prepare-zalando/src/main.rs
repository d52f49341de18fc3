//! `prepare-zalando`: makes the source ready to be followed, and writes the manifest of the Cluster
//! that will follow it.
//!
//! **Promise when it exits 0:** the role that the target replicates as can log in, what
//! CloudNativePG will need of roles is there, the Secrets that the manifest refers to exist, and
//! the ConfigMap `<TARGET_CLUSTER>-cluster-replica` holds a manifest made for *this* source. Every
//! blocker and warning has been listed. No pod of the source was restarted unless that was asked
//! for. A second run changes nothing.
//!
//! Its steps:
//! 1. look at both sides;
//! 2. list what was found, and refuse before the first effect when something stands in the way;
//! 3. change the `postgresql` resource, only when that was asked for;
//! 4. the Secret that the target logs in with, and the roles of CloudNativePG, in one transaction;
//! 5. prove the login, over the replication protocol;
//! 6. the Secrets of owner and superuser, and the manifest;
//! 7. say what comes next.
//!
//! | variable | meaning |
//! |---|---|
//! | SOURCE_CLUSTER, TARGET_CLUSTER, DATABASE | the `postgresql` resource, the Cluster to be, the application's database |
//! | SOURCE_HOST, SOURCE_PORT, SOURCE_USER, SOURCE_SSLMODE, SOURCE_HOSTADDR | the leader, as a superuser |
//! | SOURCE_PASSWORD_FILE | the superuser's password, mounted |
//! | SOURCE_AUTH | `standby` (default) or `streaming_replica` |
//! | ALLOW_SOURCE_ROLLING_UPDATE | `true`: pg_hba may be changed, which restarts the source's pods |
//! | WAL_KEEP_MB | raise wal_keep_size of the source to this |
//! | TARGET_IMAGE, TARGET_STORAGE, TARGET_STORAGE_CLASS, ADOPT_IMAGE | go into the manifest |
//! | DRY_RUN | `true`: say what would be done, print the manifest, change nothing |

mod cnpg_roles;
#[cfg(test)]
mod example;
mod facts;
mod findings;
mod hba;
mod hidden;
mod image;
mod inspect;
mod login;
mod manifest;
mod publish;
mod queries;
mod roles;
mod scram;
mod secrets;
mod settings;
mod source_change;
mod source_update;
mod tell;
mod tuning;
mod yaml;

use std::process::ExitCode;

use job::{
    config::{self, Connection},
    context::{self, Run},
    error::{Error, Result},
    record_store,
};

use crate::{image::Image, inspect::Seen, settings::Settings};

fn main() -> ExitCode {
    context::main("prepare-zalando", async |settings: Settings, run: Run| {
        run.until_stopped(prepare(&settings, &run)).await
    })
}

async fn prepare(settings: &Settings, run: &Run) -> Result<()> {
    let connection: Connection = config::prefixed("SOURCE_")?;
    let image = Image::parse(&settings.target_image).map_err(|why| {
        Error::config(format!("TARGET_IMAGE: {why}"))
            .hint("set it in the ConfigMap replica-migration")
    })?;
    tell::refuse(&run.report, &findings::target::name(settings))?;
    record_store::refuse_after_cut(&run.client, &run.namespace, &run.target).await?;

    let mut seen = inspect::everything(run, settings, &connection).await?;
    tell::what_was_seen(&run.report, &seen.facts);
    let found = findings::all(&seen.facts, settings, &image);
    tell::warnings(&run.report, settings, &found);
    tell::refuse(&run.report, &found)?;

    let needed = source_change::needed(&seen.facts, settings);
    if settings.dry_run {
        return tell::plan(run, settings, &seen, &needed, &image).await;
    }
    if !needed.is_empty() {
        source_update::carry_out(run, settings, &seen.reach, &needed).await?;
        seen = inspect::everything(run, settings, &connection).await?;
        tell::refuse(&run.report, &findings::all(&seen.facts, settings, &image))?;
    }
    effects(run, settings, &seen, &image).await
}

async fn effects(run: &Run, settings: &Settings, seen: &Seen, image: &Image) -> Result<()> {
    let report = &run.report;
    let source = login::alone(&seen.reach).await?;
    let password = login::password(run, settings).await?;
    let replication = login::secret(settings, &password);
    let written = secrets::write(run, &replication).await?;
    report.step(
        "PasswordStored",
        format!(
            "password stored in secret {}: {}",
            replication.name,
            written.word()
        ),
    );

    login::make_roles(run, settings, &source, &password).await?;
    login::prove(run, settings, &seen.reach, &source, &password).await?;

    for (reason, credentials) in login::promoted(settings, seen) {
        let written = secrets::write(run, &credentials).await?;
        report.step(
            reason,
            format!(
                "secret {} {} ({})",
                credentials.name,
                written.word(),
                credentials.username
            ),
        );
    }
    let manifest = manifest::render(&seen.facts, settings, image);
    let written = publish::write(run, settings, &manifest).await?;
    report.step(
        "ManifestWritten",
        format!(
            "manifest in configmap {}: {}",
            settings.manifest_map(),
            written.word()
        ),
    );
    tell::ready(run, settings, seen);
    Ok(())
}
