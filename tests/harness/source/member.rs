//! One member: Patroni with its PostgreSQL, in the place of a pod.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{FIRST_HOST, options::SourceOptions, patroni::REST_PORT};
use crate::{
    instance::Instance,
    process::{Process, is_alive},
    setup::Setup,
};

/// Where a member's files are, and at which addresses it is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of pod and member.
    pub name: String,
    /// Where its servers listen.
    pub address: Ipv4Addr,
    /// What stands for [`Place::address`] in Kubernetes objects.
    pub paper_address: Ipv4Addr,
    /// The pod's file system: Patroni's files, and below it volumes.
    pub home: PathBuf,
    /// PGDATA.
    pub data: PathBuf,
    /// unix_socket_directories.
    pub socket: PathBuf,
    /// Certificate, key and CA.
    pub tls: PathBuf,
    /// `ssl_ca_file` is set.
    pub has_ca: bool,
}

impl Place {
    pub(super) fn new(
        name: &str,
        address: Ipv4Addr,
        paper_address: Ipv4Addr,
        home: &Path,
        has_ca: bool,
    ) -> Self {
        let (data, socket, tls) = (
            home.join("pgdata/pgroot/data"),
            home.join("socket"),
            home.join("tls"),
        );
        Self {
            name: name.to_owned(),
            address,
            paper_address,
            home: home.to_owned(),
            data,
            socket,
            tls,
            has_ca,
        }
    }
}

/// The places of all members, their directories made.
pub(super) fn places(
    setup: &Setup,
    instance: &Instance,
    options: &SourceOptions,
    has_ca: bool,
) -> Result<Vec<Place>> {
    (0..options.members)
        .map(|number| {
            let base = format!("source/{number}");
            let home = instance.subdirectory(setup, &base)?;
            for directory in ["pgdata/pgroot/pg_log", "socket", "tls"] {
                instance.subdirectory(setup, &format!("{base}/{directory}"))?;
            }
            let (name, host) = (format!("{}-{number}", options.cluster), FIRST_HOST + number);
            Ok(Place::new(
                &name,
                instance.address(host),
                instance.paper_address(host),
                &home,
                has_ca,
            ))
        })
        .collect()
}

/// A member, running or not.
#[derive(Debug)]
pub struct Member {
    place: Place,
    setup: &'static Setup,
    patroni: Mutex<Option<Process>>,
}

impl Member {
    pub(super) fn new(place: Place, setup: &'static Setup) -> Self {
        Self {
            place,
            setup,
            patroni: Mutex::new(None),
        }
    }

    /// Name of pod and member.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Where its servers listen.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address
    }

    /// Its files.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// `http://address:port` of Patroni's REST API.
    pub fn rest_url(&self) -> String {
        format!("http://{}:{REST_PORT}", self.place.address)
    }

    /// Patroni's log.
    pub fn log(&self) -> PathBuf {
        self.place.home.join("patroni.log")
    }

    /// Starts Patroni, which starts PostgreSQL.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self) -> Result<()> {
        let mut command = self.setup.server(&self.setup.python);
        command
            .args(["-m", "patroni"])
            .arg(self.place.home.join("postgres.yml"))
            .current_dir(&self.place.home);
        command
            .env("HOME", &self.place.home)
            .env("KUBECONFIG", self.place.home.join("kubeconfig"))
            .env("PYTHONUNBUFFERED", "1");
        command.env("TMPDIR", &self.place.home);
        *self.patroni() = Some(Process::start(&self.place.name, command, &self.log())?);
        Ok(())
    }

    /// Stops Patroni as the deletion of its pod does (SIGTERM): it stops PostgreSQL and gives the
    /// lock up.
    ///
    /// # Errors
    /// It is still there after a minute.
    pub async fn stop(&self) -> Result<()> {
        let patroni = self.patroni().take();
        let Some(patroni) = patroni else {
            return Ok(());
        };
        patroni
            .terminate(Duration::from_secs(60))
            .await
            .map_err(|error| patroni.complain(&error.to_string()))?;
        Ok(())
    }

    /// Kills PostgreSQL at once (SIGKILL of the postmaster; its children follow by themselves).
    /// Patroni stays.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_postgres(&self) -> Result<()> {
        Ok(kill_process(self.postmaster()?, Signal::KILL)?)
    }

    /// Kills Patroni alone: PostgreSQL goes on without it, as when the container's first process is
    /// lost.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_patroni(&self) -> Result<()> {
        let pid = self.patroni().as_ref().map(Process::pid);
        let Some(pid) = pid else {
            bail!("Patroni of {} does not run", self.name())
        };
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, Signal::KILL)?;
        Ok(())
    }

    /// Stops everything of the member where it is (SIGSTOP), as when its node hangs: its
    /// connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.patroni()
            .as_ref()
            .inspect(|patroni| patroni.signal_family(Signal::STOP));
    }

    /// Lets it go on after [`Member::freeze`].
    pub fn thaw(&self) {
        self.patroni()
            .as_ref()
            .inspect(|patroni| patroni.signal_family(Signal::CONT));
    }

    /// Stops Patroni alone where it is: its REST API takes connections and says nothing, and
    /// PostgreSQL goes on.
    pub fn freeze_patroni(&self) {
        self.patroni().as_ref().inspect(|patroni| patroni.freeze());
    }

    /// Lets it go on after [`Member::freeze_patroni`].
    pub fn thaw_patroni(&self) {
        self.patroni().as_ref().inspect(|patroni| patroni.thaw());
    }

    /// True while the postmaster runs.
    pub fn postgres_runs(&self) -> bool {
        self.postmaster()
            .is_ok_and(|pid| is_alive(pid.as_raw_nonzero().get().unsigned_abs()))
    }

    /// An error with the end of Patroni's log.
    pub fn complain(&self, what: &str) -> anyhow::Error {
        match self.patroni().as_ref() {
            Some(patroni) => patroni.complain(what),
            None => anyhow::anyhow!("{}: {what}; Patroni does not run", self.name()),
        }
    }

    fn postmaster(&self) -> Result<Pid> {
        let file = self.place.data.join("postmaster.pid");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("PostgreSQL of {} does not run", self.name()))?;
        let pid = text
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        pid.and_then(Pid::from_raw)
            .with_context(|| format!("no process id in {}", file.display()))
    }

    fn patroni(&self) -> MutexGuard<'_, Option<Process>> {
        self.patroni.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
