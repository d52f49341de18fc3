//! One member: Patroni and its PostgreSQL, as in a Spilo pod.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use super::{FIRST_HOST, options::SourceOptions, patroni::REST_PORT};
use crate::{
    instance::Instance,
    process::{Process, is_alive},
    setup::Setup,
};

const POLL: Duration = Duration::from_millis(20);

/// A member's name, addresses and directories.
#[derive(Clone, Debug)]
pub struct MemberLayout {
    /// Name of pod and member.
    pub name: String,
    /// Where its servers listen.
    pub address: Ipv4Addr,
    /// What represents [`MemberLayout::address`] in Kubernetes objects.
    pub kubernetes_address: Ipv4Addr,
    /// The pod's root directory: Patroni's files and the volumes.
    pub home: PathBuf,
    /// PGDATA.
    pub data: PathBuf,
    /// unix_socket_directories.
    pub socket: PathBuf,
    /// Certificate, key and CA.
    pub tls: PathBuf,
    /// Whether `ssl_ca_file` is set.
    pub has_ca: bool,
}

impl MemberLayout {
    pub(super) fn new(
        name: &str,
        address: Ipv4Addr,
        kubernetes_address: Ipv4Addr,
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
            kubernetes_address,
            home: home.to_owned(),
            data,
            socket,
            tls,
            has_ca,
        }
    }
}

/// The layouts of all members; creates their directories.
pub(super) fn layouts(
    setup: &Setup,
    instance: &Instance,
    options: &SourceOptions,
    has_ca: bool,
) -> Result<Vec<MemberLayout>> {
    (0..options.members)
        .map(|number| {
            let base = format!("source/{number}");
            let home = instance.subdirectory(setup, &base)?;
            for directory in ["pgdata/pgroot/pg_log", "socket", "tls"] {
                instance.subdirectory(setup, &format!("{base}/{directory}"))?;
            }
            let (name, host) = (format!("{}-{number}", options.cluster), FIRST_HOST + number);
            Ok(MemberLayout::new(
                &name,
                instance.address(host),
                instance.kubernetes_address(host),
                &home,
                has_ca,
            ))
        })
        .collect()
}

/// A member, whether it runs or not.
#[derive(Debug)]
pub struct Member {
    layout: MemberLayout,
    setup: &'static Setup,
    patroni: Mutex<Option<Process>>,
}

impl Member {
    pub(super) fn new(layout: MemberLayout, setup: &'static Setup) -> Self {
        Self {
            layout,
            setup,
            patroni: Mutex::new(None),
        }
    }

    /// Name of pod and member.
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Where its servers listen.
    pub fn address(&self) -> Ipv4Addr {
        self.layout.address
    }

    /// The member's layout.
    pub fn layout(&self) -> &MemberLayout {
        &self.layout
    }

    /// `http://address:port` of Patroni's REST API.
    pub fn rest_url(&self) -> String {
        format!("http://{}:{REST_PORT}", self.layout.address)
    }

    /// Patroni's log.
    pub fn log(&self) -> PathBuf {
        self.layout.home.join("patroni.log")
    }

    /// Starts Patroni, which starts PostgreSQL.
    ///
    /// # Errors
    /// Patroni cannot be started.
    pub fn start(&self) -> Result<()> {
        let mut command = self.setup.server(&self.setup.python);
        command
            .args(["-m", "patroni"])
            .arg(self.layout.home.join("postgres.yml"))
            .current_dir(&self.layout.home);
        command
            .env("HOME", &self.layout.home)
            .env("KUBECONFIG", self.layout.home.join("kubeconfig"))
            .env("PYTHONUNBUFFERED", "1");
        command.env("TMPDIR", &self.layout.home);
        *self.patroni() = Some(Process::start(&self.layout.name, command, &self.log())?);
        Ok(())
    }

    /// Stops Patroni with SIGTERM, as the deletion of its pod does: it stops PostgreSQL and
    /// releases the leader lock.
    ///
    /// # Errors
    /// Patroni still runs after a minute.
    pub async fn stop(&self) -> Result<()> {
        let patroni = self.patroni().take();
        let Some(patroni) = patroni else {
            return Ok(());
        };
        patroni
            .terminate(Duration::from_secs(60))
            .await
            .map_err(|error| patroni.error_with_log(&error.to_string()))?;
        Ok(())
    }

    /// Kills the postmaster (SIGKILL); its children exit on their own, Patroni keeps running.
    ///
    /// # Errors
    /// The process does not run.
    pub fn kill_postgres(&self) -> Result<()> {
        Ok(kill_process(self.postmaster()?, Signal::KILL)?)
    }

    /// Kills Patroni only: PostgreSQL keeps running, as when the container's first process is lost.
    ///
    /// # Errors
    /// The process does not run.
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

    /// Suspends all processes of the member (SIGSTOP), as if its node hung: connections stay open,
    /// nothing answers.
    pub fn suspend(&self) {
        self.patroni()
            .as_ref()
            .inspect(|patroni| patroni.signal_family(Signal::STOP));
    }

    /// Resumes the member after [`Member::suspend`].
    pub fn resume(&self) {
        self.patroni()
            .as_ref()
            .inspect(|patroni| patroni.signal_family(Signal::CONT));
    }

    /// Suspends Patroni only: its REST API accepts connections and does not answer, PostgreSQL
    /// keeps running.
    pub fn suspend_patroni(&self) {
        self.patroni().as_ref().inspect(|patroni| patroni.suspend());
    }

    /// Resumes Patroni after [`Member::suspend_patroni`].
    pub fn resume_patroni(&self) {
        self.patroni().as_ref().inspect(|patroni| patroni.resume());
    }

    /// Suspends the checkpointer (SIGSTOP), as a volume that hangs does: a stop of the server then
    /// never writes its shutdown checkpoint.
    ///
    /// # Errors
    /// The server does not run.
    pub async fn suspend_checkpointer(&self, session: &tokio_postgres::Client) -> Result<()> {
        let sql = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
        let pid: i32 = session.query_one(sql, &[]).await?.get(0);
        let pid = Pid::from_raw(pid).context("a process id")?;
        Ok(kill_process(pid, Signal::STOP)?)
    }

    /// Kills a session (SIGKILL), as the kernel does when memory runs out: the server must discard
    /// its shared memory, and so ends all sessions.
    ///
    /// # Errors
    /// The session has ended already.
    pub async fn crash_session(&self, session: &tokio_postgres::Client) -> Result<()> {
        let pid: i32 = session
            .query_one("select pg_backend_pid()", &[])
            .await?
            .get(0);
        let pid = Pid::from_raw(pid).context("a process id")?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// True while the postmaster runs.
    pub fn postgres_runs(&self) -> bool {
        self.postmaster()
            .is_ok_and(|pid| is_alive(pid.as_raw_nonzero().get().unsigned_abs()))
    }

    /// Waits until the postmaster has ended.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub async fn until_postgres_ends(&self, limit: Duration) -> Result<()> {
        let ended = async {
            while self.postgres_runs() {
                sleep(POLL).await;
            }
        };
        timeout(limit, ended)
            .await
            .with_context(|| format!("PostgreSQL of {} still runs", self.name()))
    }

    /// An error with the end of Patroni's log.
    pub fn error_with_log(&self, what: &str) -> anyhow::Error {
        match self.patroni().as_ref() {
            Some(patroni) => patroni.error_with_log(what),
            None => anyhow::anyhow!("{}: {what}; Patroni does not run", self.name()),
        }
    }

    fn postmaster(&self) -> Result<Pid> {
        let file = self.layout.data.join("postmaster.pid");
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
