//! The directories of finished builds and of runs, both accessible to the servers' user.

use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::ServerUser;

/// Unix socket paths have at most 107 bytes (unix(7));
/// `/127.123.123.0/source/0/socket/.s.PGSQL.5432` must fit after this directory.
const RUNS_PATH_BYTES_MAX: usize = 60;

/// The two directories of the harness.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Finished builds, each in a directory `<name>-<version>`; survives `cargo clean`.
    pub cache: PathBuf,
    /// One directory per running instance.
    pub runs: PathBuf,
}

impl Directories {
    /// The user's cache and the build directory; if the servers' user has no access (below root's
    /// home), a private directory below /var/tmp, which survives a reboot.
    pub(super) fn choose(user: &ServerUser) -> Result<Self> {
        let own = PathBuf::from(format!(
            "/var/tmp/replica-migration-{}",
            rustix::process::geteuid().as_raw()
        ));
        let cache = usual_cache()
            .filter(|directory| usable(directory, user))
            .map_or_else(|| private(&own, "cache"), Ok)?;
        let short = |directory: &PathBuf| directory.as_os_str().len() <= RUNS_PATH_BYTES_MAX;
        let runs = Some(usual_runs())
            .filter(|directory| short(directory) && usable(directory, user))
            .map_or_else(|| private(&own, "runs"), Ok)?;
        Ok(Self { cache, runs })
    }

    /// Locks the cache, so that test programs started in parallel build once.
    pub(super) fn lock(&self) -> Result<File> {
        let file =
            File::create(self.cache.join("lock")).context("creating the lock file of the cache")?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("waiting for another run that makes the parts of the harness");
            flock(&file, FlockOperation::LockExclusive)
                .context("waiting for another run that builds the programs")?;
        }
        Ok(file)
    }
}

fn usual_cache() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    Some(
        set("XDG_CACHE_HOME")
            .or_else(|| Some(set("HOME")?.join(".cache")))?
            .join("replica-migration"),
    )
}

/// Cargo's target directory.
pub fn target_directory() -> PathBuf {
    let root = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    env::var_os("CARGO_TARGET_DIR").map_or_else(root, PathBuf::from)
}

fn usual_runs() -> PathBuf {
    target_directory().join("harness")
}

/// True if the directory can be created and the servers' user can enter it. The existing part of
/// the path is checked first, so that no directory is created in vain.
fn usable(directory: &Path, user: &ServerUser) -> bool {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|ancestor| user.reaches(ancestor))
        && fs::create_dir_all(directory).is_ok()
        && open(directory).is_ok()
        && user.reaches(directory)
}

fn open(directory: &Path) -> std::io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// A directory below /var/tmp, which is world-writable: it must belong to this user, and no other
/// user may write to it.
fn private(own: &Path, name: &str) -> Result<PathBuf> {
    if let Err(error) = DirBuilder::new().mode(0o755).create(own)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("creating {}", own.display()));
    }
    let found = fs::symlink_metadata(own)
        .with_context(|| format!("reading the metadata of {}", own.display()))?;
    if !found.is_dir()
        || found.uid() != rustix::process::geteuid().as_raw()
        || found.mode() & 0o022 != 0
    {
        bail!(
            "{} belongs to another user or is writable by others; remove it",
            own.display()
        );
    }
    let directory = own.join(name);
    fs::create_dir_all(&directory)
        .and_then(|()| open(own))
        .and_then(|()| open(&directory))
        .with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Makes a file readable, and enterable or executable if it is for its owner: the umask of the
/// build may have prevented that.
pub(super) fn readable(file: &Path) -> Result<()> {
    let mode = fs::metadata(file)
        .with_context(|| format!("reading the metadata of {}", file.display()))?
        .mode();
    let open = mode | 0o444 | if mode & 0o100 != 0 { 0o111 } else { 0 };
    fs::set_permissions(file, fs::Permissions::from_mode(open))
        .with_context(|| format!("opening {}", file.display()))
}
