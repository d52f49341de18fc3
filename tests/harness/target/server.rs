//! The instance's PostgreSQL, controlled with the commands that CNPG's instance manager uses, and
//! the manager's session over the Unix socket.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Config, NoTls};

use super::volume::Volume;
use crate::{
    process::{Process, Signal},
    session::Session,
    setup::Setup,
};

/// Path of PGDATA in the instance's directory; its parent is the pod's data volume.
pub const PGDATA: &str = "data/pgdata";
const POLL: Duration = Duration::from_millis(10);
const APPLICATION: &str = "cnpg-instance-manager";
const STATEMENT_LIMIT_MS: u32 = 120_000;

/// How a server is stopped.
#[derive(Clone, Copy, Debug)]
pub enum StopMode {
    /// Refuses new sessions and waits this many seconds for existing ones to end; then fast.
    SmartThenFast(u32),
    /// Ends the sessions, writes a checkpoint.
    Fast,
    /// No checkpoint: the next start does crash recovery.
    Immediate,
}

/// One instance's server and its files; a clone is another handle.
#[derive(Clone)]
pub struct Server {
    setup: &'static Setup,
    volume: Volume,
    name: String,
    address: Ipv4Addr,
    /// The running postmaster, if any.
    process: Arc<std::sync::Mutex<Option<Arc<Process>>>>,
}

impl Server {
    /// The server of the instance `name`, which will listen on `address`.
    pub fn new(setup: &'static Setup, volume: Volume, name: &str, address: Ipv4Addr) -> Self {
        Self {
            setup,
            volume,
            name: name.to_owned(),
            address,
            process: Arc::default(),
        }
    }

    /// The instance's files.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens on port 5432.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.volume.path(PGDATA)
    }

    /// True if the server starts as a standby: CNPG's own test of the role, which also works while
    /// the server is down.
    pub fn is_standby(&self) -> bool {
        self.pgdata().join("standby.signal").exists()
    }

    /// Starts the postmaster. Output before its log files are open goes to `postgres.out`.
    ///
    /// # Errors
    /// The program cannot be run; a server that ends at once is reported by [`Server::ended`].
    pub fn start(&self) -> Result<()> {
        self.volume.directory("run")?;
        self.volume.directory("log")?;
        let mut command = self.setup.postgres("postgres");
        command.arg("-D").arg(self.pgdata());
        let process = Process::start(&self.name, command, &self.volume.path("postgres.out"))?;
        *self.process() = Some(Arc::new(process));
        Ok(())
    }

    /// Waits until the postmaster has ended; returns at once if none was started.
    pub async fn ended(&self) -> Option<ExitStatus> {
        let process = self.process().clone()?;
        Some(process.wait().await)
    }

    /// True while there is a postmaster.
    pub fn runs(&self) -> bool {
        self.process()
            .as_ref()
            .is_some_and(|process| process.exit_status().is_none())
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    /// The server has ended, or does not answer within `limit`; the error holds the end of its log.
    pub async fn answers(&self, limit: Duration) -> Result<Session> {
        let deadline = Instant::now() + limit;
        loop {
            match self.connect("postgres").await {
                Ok(session) => return Ok(session),
                Err(error) if !self.runs() => {
                    return Err(error.context(format!(
                        "{} has ended; {}",
                        self.name,
                        self.log_tail()
                    )));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("{}: {}", self.name, self.log_tail())));
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// The manager's session: the superuser over the Unix socket, with peer authentication.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self, database: &str) -> Result<Session> {
        let mut config = Config::new();
        config
            .host_path(self.volume.path("run"))
            .user("postgres")
            .dbname(database)
            .application_name(APPLICATION);
        config.options(format!(
            "-c statement_timeout={STATEMENT_LIMIT_MS} -c search_path=pg_catalog"
        ));
        let connected = config.connect(NoTls).await;
        Ok(Session::begin(
            connected.with_context(|| format!("connecting to {}", self.name))?,
        ))
    }

    /// The connection string of such a session, for psql.
    pub fn connection_string(&self, database: &str) -> String {
        format!(
            "host={} user=postgres dbname={database}",
            self.volume.path("run").display()
        )
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// pg_ctl fails.
    pub async fn stop(&self, how: StopMode) -> Result<()> {
        match how {
            StopMode::SmartThenFast(0) | StopMode::Fast => {
                self.pg_ctl(&["stop", "-m", "fast", "-w"]).await?
            }
            StopMode::SmartThenFast(seconds) => {
                let smart = self
                    .pg_ctl(&["stop", "-m", "smart", "-w", "-t", &seconds.to_string()])
                    .await;
                if smart.is_err() {
                    self.pg_ctl(&["stop", "-m", "fast", "-w"]).await?;
                }
            }
            StopMode::Immediate => self.pg_ctl(&["stop", "-m", "immediate", "-w"]).await?,
        }
        self.ended().await;
        Ok(())
    }

    /// Kills only the postmaster (SIGKILL), as the OOM killer would.
    pub async fn kill(&self) {
        let process = self.process().clone();
        if let Some(process) = process {
            process.kill().await;
        }
    }

    /// Suspends all processes of the server.
    pub fn suspend(&self) {
        self.process()
            .as_ref()
            .inspect(|process| process.signal_family(Signal::STOP));
    }

    /// Resumes the server.
    pub fn resume(&self) {
        self.process()
            .as_ref()
            .inspect(|process| process.signal_family(Signal::CONT));
    }

    /// Reloads the configuration.
    ///
    /// # Errors
    /// pg_ctl fails.
    pub async fn reload(&self) -> Result<()> {
        self.pg_ctl(&["reload"]).await
    }

    /// `pg_ctl promote` as CNPG calls it; returns when recovery has ended.
    ///
    /// # Errors
    /// pg_ctl fails, or standby.signal still exists a minute later.
    pub async fn promote(&self) -> Result<()> {
        self.pg_ctl(&["promote", "-w", "-t", "40000000"]).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.is_standby() {
            if Instant::now() > deadline {
                bail!("standby.signal still existent");
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The last log lines: of its log file, or of standard error before that is open.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 8;
        let files = ["postgres.out", "log/postgres.log", "log/postgres.csv"];
        files
            .map(|file| crate::process::tail(&self.volume.path(file), LINES))
            .join("\n")
    }

    async fn pg_ctl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.setup.postgres("pg_ctl");
        command
            .arg("-D")
            .arg(self.pgdata())
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null());
        let output = tokio::process::Command::from(command)
            .output()
            .await
            .context("running pg_ctl")?;
        if !output.status.success() {
            bail!(
                "pg_ctl {}: {}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Arc<Process>>> {
        self.process
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
