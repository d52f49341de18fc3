//! The clone Job (pkg/management/postgres/join.go,
//! internal/cmd/manager/instance/pgbasebackup/cmd.go): probes until the source answers, then runs
//! pg_basebackup. Every failure is retried without end and reported only in the log.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{sync::watch, time::sleep};

use super::{
    cluster::Cluster, configuration::override_conf, connection, log::Log, manager::Shared,
    server::PGDATA, volume::Volume,
};
use crate::process::Process;

/// Pause between two probes of a source that does not answer
/// (pkg/management/postgres/instance.go:1155).
const AGAIN: Duration = Duration::from_secs(5);
/// The home directory in Spilo's pods; Patroni's configuration has absolute paths below it.
const SPILO_HOME: &str = "/home/postgres";

/// One clone Job.
pub(super) struct CloneJob<'a> {
    /// What all managers share.
    pub shared: &'a Shared,
    /// The instance's files; the clone is written to [`PGDATA`].
    pub volume: &'a Volume,
    /// The Cluster. As in CNPG it is read when a Job's pod starts: a wrong host or password is used
    /// without end, even after it was corrected.
    pub cluster: &'a watch::Receiver<Arc<Cluster>>,
    /// Receives the log of the Job's pod.
    pub log: &'a Log,
}

impl CloneJob<'_> {
    /// Clones the source, writes standby.signal and override.conf, and keeps everything else.
    /// Returns only once there is a clone.
    pub(super) async fn run(&self) {
        // CNPG's Job stops after its backoffLimit; only the interval is imitated.
        while let Err(error) = self.attempt().await {
            self.log.write(&format!("{error:#}"));
            sleep(AGAIN).await;
        }
    }

    async fn attempt(&self) -> Result<()> {
        let conninfo = self.conninfo().await?;
        while let Err(error) = self.probe_source(&conninfo).await {
            self.log
                .write(&format!("DB not available, will retry: {error:#}"));
            sleep(AGAIN).await;
        }
        self.move_aside()?;
        self.volume.directory("data")?;
        let conninfo = format!("{conninfo} options='-c wal_sender_timeout=0s'");
        // Durability is not needed here.
        let mut command = self.shared.setup.postgres("pg_basebackup");
        command.arg("-D").arg(self.volume.path(PGDATA)).args([
            "-v",
            "-w",
            "--no-sync",
            "-d",
            &conninfo,
        ]);
        // A [`Process`] ends with the harness, and its output can be read while it runs.
        let backup = Process::start(
            "pg_basebackup",
            command,
            &self.volume.path("pg_basebackup.out"),
        )?;
        if !backup.wait().await.success() {
            return Err(backup.error_with_log("the copy failed"));
        }
        self.rewrite_local_paths()?;
        self.volume
            .write(&format!("{PGDATA}/.check-empty-wal-archive"), b"")?;
        self.volume.write(
            &format!("{PGDATA}/override.conf"),
            override_conf(&conninfo).as_bytes(),
        )?;
        self.volume
            .write(&format!("{PGDATA}/standby.signal"), b"")?;
        Ok(())
    }

    async fn conninfo(&self) -> Result<String> {
        let cluster = Arc::clone(&self.cluster.borrow());
        let source = cluster
            .spec
            .bootstrap
            .pg_basebackup
            .as_ref()
            .map(|backup| backup.source.as_str());
        let external = source
            .and_then(|source| cluster.external(source))
            .context("missing external cluster")?;
        let Shared {
            client,
            namespace,
            services,
            ..
        } = self.shared;
        connection::conninfo(client, namespace, external, self.volume, services).await
    }

    /// Runs IDENTIFY_SYSTEM over a replication connection. CNPG uses pgx, with other error texts.
    async fn probe_source(&self, conninfo: &str) -> Result<()> {
        if conninfo.contains(&format!(
            "hostaddr='{}'",
            self.shared.services.refusing_address()
        )) {
            bail!("failed to connect: hostname resolving error: no such host");
        }
        let mut command = self.shared.setup.postgres("psql");
        command.args([
            "-X",
            "-w",
            "-q",
            "-A",
            "-t",
            "-d",
            &connection::probe(conninfo),
            "-c",
            "IDENTIFY_SYSTEM",
        ]);
        command
            .env("PGCONNECT_TIMEOUT", "10")
            .current_dir("/")
            .stdin(Stdio::null());
        let output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .context("running psql")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Moves the result of an earlier attempt aside, as CNPG does: the volume needs twice the
    /// space.
    fn move_aside(&self) -> Result<()> {
        let pgdata = self.volume.path(PGDATA);
        if !pgdata.exists() {
            return Ok(());
        }
        let old = pgdata.with_file_name(format!(
            "pgdata_{}",
            jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S")
        ));
        fs::rename(&pgdata, &old).with_context(|| format!("moving {} aside", pgdata.display()))
    }

    /// A pod cannot see the source's file system, but its directories exist on this machine. Copied
    /// paths to them would work only here, so they are replaced by Spilo's paths.
    fn rewrite_local_paths(&self) -> Result<()> {
        for name in [
            "postgresql.conf",
            "postgresql.base.conf",
            "postgresql.auto.conf",
        ] {
            let file = self.volume.path(PGDATA).join(name);
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let hidden = rewrite_paths(&text, self.shared.hidden.iter().map(PathBuf::as_path));
            if hidden != text {
                self.volume
                    .write(&format!("{PGDATA}/{name}"), hidden.as_bytes())?;
            }
        }
        Ok(())
    }
}

fn rewrite_paths<'a>(text: &str, directories: impl Iterator<Item = &'a Path>) -> String {
    directories
        .map(Path::as_os_str)
        .filter_map(OsStr::to_str)
        .fold(text.to_owned(), |text, directory| {
            text.replace(directory, SPILO_HOME)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_sources_home_become_spilos() {
        let text =
            "hba_file = '/tmp/run/source/0/pgdata/pgroot/data/pg_hba.conf'\nwork_mem = '4MB'\n";
        let hidden = rewrite_paths(
            text,
            [
                Path::new("/tmp/run/source/1"),
                Path::new("/tmp/run/source/0"),
            ]
            .into_iter(),
        );
        assert_eq!(
            hidden,
            "hba_file = '/home/postgres/pgdata/pgroot/data/pg_hba.conf'\nwork_mem = '4MB'\n"
        );
    }
}
