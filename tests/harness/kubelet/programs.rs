//! The programs under test, as built by cargo.

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

/// The directory of the programs, of the same profile as the running test. Under cargo they are
/// built first, so that no test runs outdated programs.
///
/// # Errors
/// The build fails.
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
/// As [`built`], or there is no such program.
pub async fn program(name: &str) -> Result<PathBuf> {
    let file = built().await?.join(name);
    if !file.is_file() {
        bail!("there is no program {}", file.display());
    }
    Ok(file)
}

/// The directory of the release build, built first if needed; that takes minutes.
///
/// # Errors
/// The build fails.
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

/// Cargo's output directory for the profile of the running test.
fn directory() -> Result<PathBuf> {
    let running = env::current_exe().context("asking for the own program")?;
    let directory = running.parent().context("a program without a directory")?;
    // Test executables are one directory below the others.
    let above = directory
        .parent()
        .filter(|_| directory.file_name() == Some(OsStr::new("deps")));
    Ok(above.unwrap_or(directory).to_owned())
}

/// Builds the programs; does nothing outside of cargo.
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
        bail!("cargo could not build the programs; see its output above");
    }
    Ok(())
}

/// The program for a container's `command`, at a path where the servers' user can run it.
pub(super) fn find(
    programs: &Path,
    command: &str,
    user: &ServerUser,
    reachable: &Path,
) -> Result<PathBuf> {
    let name = command
        .strip_prefix('/')
        .filter(|name| !name.contains('/'))
        .context("programs of the image must be in /")?;
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
    // Copied under another name first, because a running program cannot be overwritten.
    let unfinished = reachable.join(format!("{name}.unfinished"));
    fs::copy(&built, &unfinished).with_context(doing)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755)).with_context(doing)?;
    fs::rename(&unfinished, &copy).with_context(doing)?;
    Ok(copy)
}
