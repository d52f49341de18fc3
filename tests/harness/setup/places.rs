//! Where finished parts and the files of a run are kept: places that the servers' user can reach.

use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::ServerUser;

/// A socket's path has at most 107 bytes (unix(7)); `/127.123.123.0/source/0/socket/.s.PGSQL.5432`
/// has to fit behind this.
const RUNS_PATH_BYTES_MAX: usize = 60;

/// The two directories of the harness.
#[derive(Debug)]
pub struct Places {
    /// Finished parts, each in its own directory `<name>-<version>`; survives `cargo clean`.
    pub cache: PathBuf,
    /// A directory per running instance.
    pub runs: PathBuf,
}

impl Places {
    /// The user's cache and the build directory; when the servers' user cannot reach them (they lie
    /// below root's home), a directory of our own below /var/tmp, which outlives a reboot.
    pub(super) fn choose(user: &ServerUser) -> Result<Self> {
        let own = PathBuf::from(format!(
            "/var/tmp/replica-migration-{}",
            rustix::process::geteuid().as_raw()
        ));
        let cache = usual_cache()
            .filter(|place| usable(place, user))
            .map_or_else(|| private(&own, "cache"), Ok)?;
        let short = |place: &PathBuf| place.as_os_str().len() <= RUNS_PATH_BYTES_MAX;
        let runs = Some(usual_runs())
            .filter(|place| short(place) && usable(place, user))
            .map_or_else(|| private(&own, "runs"), Ok)?;
        Ok(Self { cache, runs })
    }

    /// Held while parts are made, so that two test programs started together build once.
    pub(super) fn lock(&self) -> Result<File> {
        let file =
            File::create(self.cache.join("lock")).context("creating the lock file of the cache")?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("waiting for another run that makes the parts of the harness");
            flock(&file, FlockOperation::LockExclusive)
                .context("waiting for another run that makes the parts")?;
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

/// Cargo's.
pub fn target_directory() -> PathBuf {
    let root = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    env::var_os("CARGO_TARGET_DIR").map_or_else(root, PathBuf::from)
}

fn usual_runs() -> PathBuf {
    target_directory().join("harness")
}

/// True when the directory can be made and the servers' user can enter it. What exists of its path
/// is looked at first, so that nothing is made where it would not be used.
fn usable(place: &Path, user: &ServerUser) -> bool {
    let existing = place.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|ancestor| user.reaches(ancestor))
        && fs::create_dir_all(place).is_ok()
        && open(place).is_ok()
        && user.reaches(place)
}

fn open(place: &Path) -> std::io::Result<()> {
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
}

/// A directory below /var/tmp, where anybody may have been first: it must be ours and nobody else's
/// to write.
fn private(own: &Path, name: &str) -> Result<PathBuf> {
    if let Err(error) = DirBuilder::new().mode(0o755).create(own)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("creating {}", own.display()));
    }
    let found =
        fs::symlink_metadata(own).with_context(|| format!("looking at {}", own.display()))?;
    if !found.is_dir()
        || found.uid() != rustix::process::geteuid().as_raw()
        || found.mode() & 0o022 != 0
    {
        bail!(
            "{} belongs to somebody else or others may write to it; remove it",
            own.display()
        );
    }
    let place = own.join(name);
    fs::create_dir_all(&place)
        .and_then(|()| open(own))
        .and_then(|()| open(&place))
        .with_context(|| format!("creating {}", place.display()))?;
    Ok(place)
}

/// Lets everybody read, and enter or run what its owner may: the umask of the one who built it may
/// have closed it.
pub(super) fn readable(file: &Path) -> Result<()> {
    let mode = fs::metadata(file)
        .with_context(|| format!("looking at {}", file.display()))?
        .mode();
    let open = mode | 0o444 | if mode & 0o100 != 0 { 0o111 } else { 0 };
    fs::set_permissions(file, fs::Permissions::from_mode(open))
        .with_context(|| format!("opening {}", file.display()))
}
