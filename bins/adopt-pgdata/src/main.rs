//! `adopt-pgdata`: makes a data directory that was copied from Patroni one that CNPG's instance
//! manager can start.
//!
//! **Promise when it exits 0:** the copy no longer carries Patroni's file locations and standby
//! settings, nor what would fight the Cluster manifest after promotion; a second run changes
//! nothing.
//!
//! It also sees to it that the promotion takes no restart, when it is told to: see `archive`.
//!
//! It runs as an init container of every instance pod (annotation `cnpg.io/podPatch`), so at every
//! start, long after the migration, too. It therefore touches only a standby that still has such
//! settings:
//! 1. no data directory, or none with a postgresql.conf: nothing to do;
//! 2. no `standby.signal`: a primary, promoted or not, is not a fresh copy: nothing to do. CNPG's
//!    clone Job creates the file (pkg/management/postgres/configuration.go,
//!    UpdateReplicaConfiguration), and a copy of the source without it would come up as a second
//!    writable source: better that its start fails;
//! 3. nothing unwanted in postgresql.conf: adopted already, nothing to do;
//! 4. otherwise the unwanted settings become comments, in postgresql.conf last of all: its state
//!    tells a later run, also one after a crash in between, whether the other files are done.
//!
//! And any instance whose archive_mode has become what it is told here loses that line of ours
//! again.
//!
//! | variable | meaning |
//! |---|---|
//! | PGDATA | the data directory; default `/var/lib/postgresql/data/pgdata`, CNPG's |
//! | ARCHIVE_RESTART | `never`: the promotion shall take no restart; default `before-traffic`: CNPG restarts the target |

mod archive;
mod conf;
mod replace;
mod unwanted;

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

/// Read last by the server, so stronger than everything that CNPG includes; written by ALTER SYSTEM
/// on the source.
const AUTO_CONF: &str = "postgresql.auto.conf";
/// The original file, which Patroni's includes first: a line taken out of Patroni's file uncovers
/// the one in here.
const BASE_CONF: &str = "postgresql.base.conf";
/// Patroni's own; CNPG appends its includes to it.
const MAIN_CONF: &str = "postgresql.conf";
/// CNPG's, written anew at each change of the Cluster.
const CUSTOM_CONF: &str = "custom.conf";

#[derive(Deserialize)]
struct Config {
    #[serde(default = "pgdata")]
    pgdata: PathBuf,
    #[serde(default = "before_traffic")]
    archive_restart: ArchiveRestart,
}

fn before_traffic() -> ArchiveRestart {
    ArchiveRestart::BeforeTraffic
}

fn pgdata() -> PathBuf {
    "/var/lib/postgresql/data/pgdata".into()
}

fn main() -> ExitCode {
    context::local("adopt-pgdata", |config: Config, report| {
        retire(&config.pgdata, report)?;
        adopt(&config.pgdata, config.archive_restart, report)
    })
}

/// The line about archive_mode has done its work when CNPG itself wants something else than for a
/// replica cluster.
fn retire(pgdata: &Path, report: &Reporter) -> Result<()> {
    if let (Some(auto), Some(custom)) = (read(pgdata, AUTO_CONF)?, read(pgdata, CUSTOM_CONF)?)
        && let Some(text) = archive::retired(&auto, &custom)
    {
        overwrite(pgdata, AUTO_CONF, &text)?;
        report.info(format!(
            "{AUTO_CONF}: archive_mode is {CUSTOM_CONF}'s to set again"
        ));
    }
    Ok(())
}

fn adopt(pgdata: &Path, archive_restart: ArchiveRestart, report: &Reporter) -> Result<()> {
    let nothing_to_do = |why: &str| {
        report.info(format!("{}: {why}: nothing to do", pgdata.display()));
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
    let main = conf::without(&main, unwanted::in_any_file);
    if main.taken_out.is_empty() {
        return nothing_to_do("carries nothing of Patroni's any more");
    }
    if let Some(auto) = read(pgdata, AUTO_CONF)? {
        let auto = conf::without(&auto, unwanted::in_auto_conf);
        if !auto.kept.is_empty() {
            let kept = auto.kept.join(", ");
            report.warning(
                "Kept",
                format!(
                    "{AUTO_CONF} keeps {kept}: set on the source by ALTER SYSTEM and stronger \
                    than the Cluster manifest"
                ),
            );
        }
        write(pgdata, AUTO_CONF, &auto, report)?;
    }
    if archive_restart == ArchiveRestart::Never {
        let auto = read(pgdata, AUTO_CONF)?.unwrap_or_default();
        if let Some(text) = archive::told(&auto) {
            overwrite(pgdata, AUTO_CONF, &text)?;
            report.info(format!(
                "{AUTO_CONF}: archive_mode = on, as after the promotion, which then takes no \
                 restart"
            ));
        }
    }
    if let Some(base) = read(pgdata, BASE_CONF)? {
        write(
            pgdata,
            BASE_CONF,
            &conf::without(&base, unwanted::in_any_file),
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
    if adopted.taken_out.is_empty() {
        return Ok(());
    }
    overwrite(pgdata, name, &adopted.text)?;
    let file = pgdata.join(name);
    for (name, reason) in &adopted.taken_out {
        report.info(format!(
            "taken out of {}: {name}: {}",
            file.display(),
            reason.words()
        ));
    }
    Ok(())
}

fn overwrite(pgdata: &Path, name: &str, text: &[u8]) -> Result<()> {
    let file = pgdata.join(name);
    replace::replace(&file, text)
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
