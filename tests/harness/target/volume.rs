//! The directories of one instance that a pod would have as volumes; the files belong to the
//! servers' user.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::setup::Setup;

/// A directory of the instance and the owner of its files.
#[derive(Clone, Debug)]
pub struct Volume {
    setup: &'static Setup,
    root: PathBuf,
}

impl Volume {
    /// The volume at an existing directory.
    pub fn new(setup: &'static Setup, root: PathBuf) -> Self {
        Self { setup, root }
    }

    /// The volume's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the volume.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Creates a directory that only the servers' user can enter; existing ones are kept.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let mut directory = self.root.clone();
        for part in Path::new(name) {
            directory.push(part);
            if !directory.exists() {
                let made = fs::DirBuilder::new().mode(0o700).create(&directory);
                made.with_context(|| format!("creating {}", directory.display()))?;
                self.setup.user.own(&directory)?;
            }
        }
        Ok(directory)
    }

    /// Replaces a file atomically; only the servers' user can read it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        if let Some(parent) = Path::new(name).parent().and_then(Path::to_str) {
            self.directory(parent)?;
        }
        let file = self.path(name);
        let fresh = file.with_extension("fresh");
        let doing = || format!("writing {}", file.display());
        let mut options = fs::File::options();
        let open = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh);
        open.and_then(|mut open| open.write_all(content))
            .with_context(doing)?;
        self.setup.user.own(&fresh)?;
        fs::rename(&fresh, &file).with_context(doing)?;
        Ok(file)
    }

    /// Like [`Volume::write`], but only if the content differs; returns whether it did.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn update(&self, name: &str, content: &str) -> Result<Changed> {
        if fs::read(self.path(name)).is_ok_and(|now| now == content.as_bytes()) {
            return Ok(Changed::No);
        }
        self.write(name, content.as_bytes())?;
        Ok(Changed::Yes)
    }

    /// Copies a program into the volume, so that the servers' user can run it.
    ///
    /// # Errors
    /// The program is missing or cannot be copied.
    pub fn program(&self, from: &Path, name: &str) -> Result<PathBuf> {
        self.directory("programs")?;
        let to = self.path("programs").join(name);
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("opening {}", to.display()))?;
        self.setup.user.own(&to)?;
        Ok(to)
    }
}

/// Whether a file was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The file was rewritten.
    Yes,
    /// The file already had the content.
    No,
}

impl std::ops::BitOr for Changed {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        if self == Self::Yes { self } else { other }
    }
}
