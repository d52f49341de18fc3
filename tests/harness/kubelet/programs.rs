//! The programs under test: what cargo has built.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::setup::ServerUser;

/// The directory of the programs, of the same profile as the running one. Under cargo they are
/// built first, so that nobody judges yesterday's programs; a build that has nothing to do takes a
/// moment.
///
/// # Errors
/// They cannot be built.
pub async fn built() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = tokio::task::spawn_blocking(|| {
        BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")))
    });
    made.await?.clone().map_err(|error| anyhow!(error))
}

/// One of the programs, for example `adopt-pgdata`.
///
/// # Errors
/// As [`built`], or there is none of this name.
pub async fn program(name: &str) -> Result<PathBuf> {
    let file = built().await?.join(name);
    if !file.is_file() {
        bail!("there is no program {}", file.display());
    }
    Ok(file)
}

/// The directory of the programs as they are released, built when they are not there; that takes
/// minutes.
///
/// # Errors
/// They cannot be built.
pub async fn released() -> Result<PathBuf> {
    tokio::task::spawn_blocking(|| {
        cargo_build(true)?;
        let profile = directory()?;
        Ok(profile
            .parent()
            .context("a build directory without a parent")?
            .join("release"))
    })
    .await?
}

fn build() -> Result<PathBuf> {
    let directory = directory()?;
    cargo_build(directory.file_name() == Some(OsStr::new("release")))?;
    Ok(directory)
}

/// Where cargo puts the programs of the profile of the running one.
fn directory() -> Result<PathBuf> {
    let running = env::current_exe().context("asking for the own program")?;
    let directory = running.parent().context("a program without a directory")?;
    // Test programs lie one directory below the others.
    let above = directory
        .parent()
        .filter(|_| directory.file_name() == Some(OsStr::new("deps")));
    Ok(above.unwrap_or(directory).to_owned())
}

/// Does nothing outside of cargo, where the programs are as somebody left them.
fn cargo_build(release: bool) -> Result<()> {
    let Some(cargo) = env::var_os("CARGO") else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
        "--exclude",
        "tests",
    ]);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if release {
        command.arg("--release");
    }
    if !command.status().context("starting cargo")?.success() {
        bail!("cargo could not build the programs; its own words stand above");
    }
    Ok(())
}

/// The program that `command` of a container names, in a place that the servers' user can run it
/// from.
pub(super) fn find(
    programs: &Path,
    command: &str,
    user: &ServerUser,
    reachable: &Path,
) -> Result<PathBuf> {
    let name = command
        .strip_prefix('/')
        .filter(|name| !name.contains('/'))
        .context("a program of the image lies in /")?;
    let built = programs.join(name);
    if !built.is_file() {
        bail!(
            "RunContainerError: exec: {command:?}: stat {command}: no such file or directory (no \
             program {})",
            built.display()
        );
    }
    if user.reaches(&built) {
        return Ok(built);
    }
    let copy = reachable.join(name);
    let doing = || format!("copying {} to {}", built.display(), copy.display());
    // Under another name first: a program that runs cannot be written to.
    let unfinished = reachable.join(format!("{name}.unfinished"));
    fs::copy(&built, &unfinished).with_context(doing)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755)).with_context(doing)?;
    fs::rename(&unfinished, &copy).with_context(doing)?;
    Ok(copy)
}
