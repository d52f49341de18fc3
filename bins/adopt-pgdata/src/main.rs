//! `adopt-pgdata`: makes a data directory that was copied from Patroni startable for
//! CloudNativePG's instance manager.
//!
//! **Promise when it exits 0:** the copy no longer contains Patroni's file locations and standby
//! settings, nor settings that would override the Cluster manifest after the promotion. A second
//! run changes nothing.
//!
//! If ARCHIVE_RESTART requests it, the promotion takes no restart: see `archive_mode`.
//!
//! It runs as an init container of every instance pod (annotation `cnpg.io/podPatch`), so at every
//! start, even long after the migration. It therefore only changes a standby that still has such
//! settings:
//! 1. without a data directory, or without postgresql.conf in it, it changes nothing;
//! 2. without `standby.signal` it changes nothing: the directory is that of a primary, not a new
//!    copy. CloudNativePG's clone Job creates the file (its
//!    pkg/management/postgres/configuration.go, UpdateReplicaConfiguration). A copy without it
//!    would start as a second writable source, so it is better that its start fails;
//! 3. if postgresql.conf has none of these settings, the copy was adopted before, and it changes
//!    nothing;
//! 4. otherwise it turns the settings into comments, and makes postgresql.conf include
//!    CloudNativePG's custom.conf. postgresql.conf is changed last, so its state tells a later run
//!    whether the other files are done, even after a crash in between.
//!
//! At any instance it also removes the line of `archive_mode` again once CloudNativePG's own value
//! is no longer that of a replica cluster.
//!
//! | variable | meaning |
//! |---|---|
//! | PGDATA | the data directory; default `/var/lib/postgresql/data/pgdata`, CloudNativePG's |
//! | ARCHIVE_RESTART | `never`: the promotion takes no restart; default `before-traffic` |

mod archive_mode;
mod atomic_write;
mod conf;
mod removed_settings;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
};

use job::{
    config::ArchiveRestart,
    context,
    error::{Context as _, Error, Result},
    report::Reporter,
};
use serde::Deserialize;

/// Written by ALTER SYSTEM at the source. The server reads it last, so it overrides every file of
/// CloudNativePG.
const AUTO_CONF: &str = "postgresql.auto.conf";
/// The original file, which Patroni's postgresql.conf includes first. A line removed from Patroni's
/// file makes the one in this file effective.
const BASE_CONF: &str = "postgresql.base.conf";
/// Written by Patroni; CloudNativePG appends its includes.
const MAIN_CONF: &str = "postgresql.conf";
/// Written by CloudNativePG at each change of the Cluster.
const CUSTOM_CONF: &str = "custom.conf";

#[derive(Deserialize)]
struct Config {
    #[serde(default = "pgdata")]
    pgdata: PathBuf,
    #[serde(default = "default_archive_restart")]
    archive_restart: ArchiveRestart,
}

fn default_archive_restart() -> ArchiveRestart {
    ArchiveRestart::BeforeTraffic
}

fn pgdata() -> PathBuf {
    "/var/lib/postgresql/data/pgdata".into()
}

fn main() -> ExitCode {
    context::local("adopt-pgdata", |config: Config, report| {
        remove_archive_mode(&config.pgdata, report)?;
        adopt(&config.pgdata, config.archive_restart, report)
    })
}

/// Removes the line of `archive_mode` once CloudNativePG's own value is no longer that of a replica
/// cluster.
fn remove_archive_mode(pgdata: &Path, report: &Reporter) -> Result<()> {
    if let (Some(auto), Some(custom)) = (read(pgdata, AUTO_CONF)?, read(pgdata, CUSTOM_CONF)?)
        && let Some(text) = archive_mode::without_line(&auto, &custom)
    {
        overwrite(pgdata, AUTO_CONF, &text)?;
        report.info(format!(
            "{AUTO_CONF}: line removed, archive_mode is set by {CUSTOM_CONF} again"
        ));
    }
    Ok(())
}

fn adopt(pgdata: &Path, archive_restart: ArchiveRestart, report: &Reporter) -> Result<()> {
    let nothing_to_do = |reason: &str| {
        report.info(format!("{}: {reason}: nothing to do", pgdata.display()));
        Ok(())
    };
    let Some(main) = read(pgdata, MAIN_CONF)? else {
        return nothing_to_do("no postgresql.conf yet");
    };
    if !pgdata
        .join("standby.signal")
        .try_exists()
        .map_err(unusable)?
    {
        return nothing_to_do("not a standby (no standby.signal)");
    }
    let mut main = conf::without(&main, removed_settings::in_any_file);
    if main.removed.is_empty() {
        return nothing_to_do("no settings of Patroni left");
    }
    // CloudNativePG includes it only from 1.29 on in a copy that it has not initialized
    // (EnsureIncludes in its pkg/management/postgres/instance_replica.go), and adds no second line.
    if conf::add_include(&mut main.text, CUSTOM_CONF) {
        report.info(format!("{MAIN_CONF}: includes {CUSTOM_CONF}"));
    }
    if let Some(auto) = read(pgdata, AUTO_CONF)? {
        let auto = conf::without(&auto, removed_settings::in_auto_conf);
        if !auto.kept.is_empty() {
            let kept = auto.kept.join(", ");
            report.warning(
                "Kept",
                format!(
                    "{AUTO_CONF} keeps {kept}: set by ALTER SYSTEM at the source, and overriding \
                     the Cluster manifest"
                ),
            );
        }
        write(pgdata, AUTO_CONF, &auto, report)?;
    }
    if archive_restart == ArchiveRestart::Never {
        let auto = read(pgdata, AUTO_CONF)?.unwrap_or_default();
        if let Some(text) = archive_mode::with_line(&auto) {
            overwrite(pgdata, AUTO_CONF, &text)?;
            report.info(format!(
                "{AUTO_CONF}: archive_mode = on, as after the promotion, so that it takes no \
                 restart"
            ));
        }
    }
    if let Some(base) = read(pgdata, BASE_CONF)? {
        write(
            pgdata,
            BASE_CONF,
            &conf::without(&base, removed_settings::in_any_file),
            report,
        )?;
    }
    write(pgdata, MAIN_CONF, &main, report)
}

fn read(pgdata: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let file = pgdata.join(name);
    match std::fs::read(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(error)).context(format!("reading {}", file.display())),
    }
}

fn write(pgdata: &Path, name: &str, adopted: &conf::Adopted, report: &Reporter) -> Result<()> {
    if adopted.removed.is_empty() {
        return Ok(());
    }
    overwrite(pgdata, name, &adopted.text)?;
    let file = pgdata.join(name);
    for (name, reason) in &adopted.removed {
        report.info(format!(
            "removed from {}: {name}: {}",
            file.display(),
            reason.describe()
        ));
    }
    Ok(())
}

fn overwrite(pgdata: &Path, name: &str, text: &[u8]) -> Result<()> {
    let file = pgdata.join(name);
    atomic_write::replace(&file, text)
        .map_err(unusable)
        .context(format!("writing {}", file.display()))
}

fn unusable(error: std::io::Error) -> Error {
    Error::config("the data directory cannot be used")
        .caused_by(error)
        .hint(
            "the init container must run as the owner of PGDATA (uid and gid 26) with the volume \
             pgdata mounted writable; compare the annotation cnpg.io/podPatch with the rendered \
             Cluster manifest",
        )
}
