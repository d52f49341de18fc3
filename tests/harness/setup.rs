//! Finds or builds the real programs: kube-apiserver, etcd, kustomize and kubectl, PostgreSQL,
//! Patroni and PgBouncer, a locale, and a user to run them.
//!
//! What has to be built is built once and kept in the user's cache; parts that do not depend on
//! each other are built side by side, and report to standard error. A second call finds everything
//! in its place and only looks at a few files.

mod directories;
mod go;
mod locale;
mod postgres;
mod progress;
mod python;
mod tools;
mod user;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Context, Result, anyhow};
pub use directories::{Directories, target_directory};
pub use user::ServerUser;

/// The usual major version of PostgreSQL.
pub const POSTGRES_MAJOR: u32 = 17;

/// Paths of the programs, and the user that runs them.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The user that the servers run as.
    pub user: ServerUser,
    /// Directories of finished builds and of runs.
    pub directories: Directories,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// etcd, the API server's store.
    pub etcd: PathBuf,
    /// Renders the manifests.
    pub kustomize: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// The Python interpreter with Patroni.
    pub python: PathBuf,
    /// The directory of PostgreSQL's programs.
    pub postgres_bin: PathBuf,
    /// The directory of PostgreSQL 16.2's programs, for a target of the wrong version.
    pub postgres_16_bin: PathBuf,
    /// The directories of the programs of other major versions.
    pub other_postgres: Vec<(u32, PathBuf)>,
    /// PgBouncer.
    pub pgbouncer: PathBuf,
    /// LOCPATH for the source's locale, if the machine does not have it.
    pub locale_path: Option<PathBuf>,
}

impl Setup {
    /// The setup, made on the first call of a process.
    ///
    /// # Errors
    /// A tool or library is missing (the text names the command that checks all of them), or a
    /// build or download failed.
    pub async fn ready() -> Result<&'static Self> {
        tokio::task::spawn_blocking(Self::ready_blocking).await?
    }

    /// Like [`Setup::ready`], for callers without a runtime.
    ///
    /// # Errors
    /// As [`Setup::ready`].
    pub fn ready_blocking() -> Result<&'static Self> {
        Self::made(false)
    }

    /// As [`Setup::ready_blocking`], with the S3 server: everything that any test needs.
    ///
    /// # Errors
    /// As [`Setup::ready`].
    pub fn complete_blocking() -> Result<&'static Self> {
        Self::made(true)
    }

    fn made(with_s3_server: bool) -> Result<&'static Self> {
        static READY: OnceLock<Result<Setup, String>> = OnceLock::new();
        READY
            .get_or_init(|| Self::make(with_s3_server).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    /// Two long builds side by side are enough for two cores; the packages of Python come over the
    /// network meanwhile.
    fn make(with_s3_server: bool) -> Result<Self> {
        let user = ServerUser::choose()?;
        let directories = Directories::choose(&user)?;
        let _alone = directories.lock()?;
        let pgbouncer = tools::need("pgbouncer")?;
        let locale_path =
            locale::en_us(&directories).context("finding the locale of the source")?;
        let sources = go::sources(&directories, &user)?;
        let (python, postgres_16_bin, other_postgres) = thread::scope(|scope| {
            let kubernetes = scope.spawn(|| go::kubernetes(&sources, &directories));
            let other_servers = scope.spawn(|| {
                go::etcd(&sources, &directories)?;
                if with_s3_server {
                    go::s3_server(&directories)?;
                }
                Ok(())
            });
            let databases = scope.spawn(|| {
                let python = python::patroni_and_postgres(&directories, &user)
                    .context("making the source's servers")?;
                let postgres_16 = python::postgres_16(&directories, &python.interpreter)
                    .context("fetching another PostgreSQL")?;
                let others =
                    postgres::others(&directories, &python.interpreter, &python.postgres_bin)
                        .context("fetching PostgreSQL of other major versions")?;
                Ok((python, postgres_16, others))
            });
            finished(kubernetes)?;
            finished(other_servers)?;
            finished(databases)
        })?;
        let control_plane = go::control_plane(sources, &directories);
        Ok(Self {
            kube_apiserver: control_plane.kube_apiserver,
            etcd: control_plane.etcd,
            kustomize: control_plane.kustomize,
            kubectl: control_plane.kubectl,
            python: python.interpreter,
            postgres_bin: python.postgres_bin,
            postgres_16_bin,
            other_postgres,
            pgbouncer,
            locale_path,
            directories,
            user,
        })
    }

    /// The same setup with PostgreSQL of this major version.
    ///
    /// # Errors
    /// There are no programs of it.
    pub fn with_postgres(&'static self, major: u32) -> Result<&'static Self> {
        if major == POSTGRES_MAJOR {
            return Ok(self);
        }
        static MADE: Mutex<BTreeMap<u32, &'static Setup>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(setup) = made.get(&major) {
            return Ok(setup);
        }
        let (_, bin) = self
            .other_postgres
            .iter()
            .find(|(other, _)| *other == major)
            .with_context(|| format!("there are no programs of PostgreSQL {major}"))?;
        let setup: &'static Self = Box::leak(Box::new(Self {
            postgres_bin: bin.clone(),
            ..self.clone()
        }));
        made.insert(major, setup);
        Ok(setup)
    }

    /// The S3 server, built on the first call.
    ///
    /// # Errors
    /// As [`Setup::ready`].
    pub async fn s3_server(&'static self) -> Result<PathBuf> {
        tokio::task::spawn_blocking(|| self.s3_server_blocking()).await?
    }

    /// Like [`Setup::s3_server`], for callers without a runtime.
    ///
    /// # Errors
    /// As [`Setup::ready`].
    pub fn s3_server_blocking(&self) -> Result<PathBuf> {
        let _alone = self.directories.lock()?;
        go::s3_server(&self.directories)
    }

    /// A command that runs as [`Setup::user`] with a clean environment (PATH, HOME, locale).
    pub fn server(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.user.command(program.as_ref());
        let path = format!(
            "{}:/usr/local/bin:/usr/bin:/bin",
            self.postgres_bin.display()
        );
        // Spilo's spelling: initdb copies LC_ALL verbatim into datcollate.
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/")
            .env("LC_ALL", "en_US.utf-8");
        if let Some(directory) = &self.locale_path {
            command.env("LOCPATH", directory);
        }
        command
    }

    /// A command for one of PostgreSQL's programs (`pg_basebackup`, `postgres`, …), like
    /// [`Setup::server`].
    pub fn postgres(&self, program: &str) -> Command {
        self.server(self.postgres_bin.join(program))
    }
}

/// What a thread came to.
fn finished<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread that makes a part panicked"))?
}
