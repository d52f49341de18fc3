//! A backup as a user would restore it: unpacked, verified by PostgreSQL's own pg_verifybackup, and
//! started.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{instance::Instance, process::Process, setup::Setup};
use tokio::time::{sleep, timeout};

/// A restored data directory.
pub struct Restored {
    setup: &'static Setup,
    data: PathBuf,
    socket: PathBuf,
}

impl Restored {
    /// Unpacks the files of a folder.
    pub fn unpack(setup: &'static Setup, instance: &Instance, folder: &Path, name: &str) -> Self {
        let data = instance.subdirectory(setup, name).unwrap();
        let socket = instance
            .subdirectory(setup, &format!("{name}-socket"))
            .unwrap();
        tar::Archive::new(archive(folder)).unpack(&data).unwrap();
        let wal = File::open(folder.join("pg_wal.tar")).unwrap();
        tar::Archive::new(wal).unpack(data.join("pg_wal")).unwrap();
        fs::copy(folder.join("backup_manifest"), data.join("backup_manifest")).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        own(setup, &data);
        Self {
            setup,
            data,
            socket,
        }
    }

    /// Runs pg_verifybackup. It also checks the WAL, where the tools are of the server's version:
    /// the format of WAL differs between major versions.
    pub fn verify(&self) {
        let mut command = self.setup.postgres("pg_verifybackup");
        let version = self.setup.postgres("pg_waldump").arg("--version").output();
        let tools = String::from_utf8(version.unwrap().stdout).unwrap();
        let server = fs::read_to_string(self.data.join("PG_VERSION")).unwrap();
        if !tools.contains(&format!(" {}.", server.trim())) {
            command.arg("--no-parse-wal");
        }
        command.arg(&self.data);
        demand(&mut command);
    }

    pub fn has(&self, file: &str) -> bool {
        self.data.join(file).exists()
    }

    /// Starts it as a primary of its own, also if it was copied from a standby, and without the
    /// files that Patroni's configuration refers to.
    pub async fn start(self) -> RunningPod {
        let _ = fs::remove_file(self.data.join("standby.signal"));
        let hba = self.data.join("own_hba.conf");
        self.setup
            .user
            .write_private(&hba, "local all all trust\n")
            .unwrap();
        let mut command = self.setup.postgres("postgres");
        command.arg("-D").arg(&self.data);
        for (key, value) in [
            ("hba_file", hba.display().to_string()),
            ("ident_file", hba.display().to_string()),
            ("unix_socket_directories", self.socket.display().to_string()),
            ("listen_addresses", String::new()),
            ("archive_mode", "off".into()),
            ("ssl", "off".into()),
            ("logging_collector", "off".into()),
            ("log_destination", "stderr".into()),
            ("primary_conninfo", String::new()),
            ("restore_command", String::new()),
            ("max_connections", "136".into()),
        ] {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        let process = Process::start("restored", command, &self.socket.join("log")).unwrap();
        RunningPod {
            process,
            socket: self.socket,
        }
    }
}

/// A restored server.
pub struct RunningPod {
    process: Process,
    socket: PathBuf,
}

impl RunningPod {
    /// Waits until it is out of recovery, and connects.
    pub async fn connect(&self, database: &str) -> tokio_postgres::Client {
        let text = format!(
            "host={} user=postgres dbname={database}",
            self.socket.display()
        );
        let opening = async {
            loop {
                if let Ok((client, connection)) =
                    tokio_postgres::connect(&text, tokio_postgres::NoTls).await
                {
                    tokio::spawn(connection);
                    let row = client.query_one("select pg_is_in_recovery()", &[]).await;
                    if row.is_ok_and(|row| !row.get::<_, bool>(0)) {
                        return client;
                    }
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let opened = timeout(Duration::from_secs(60), opening).await;
        opened.unwrap_or_else(|_| {
            panic!(
                "{}",
                self.process
                    .error_with_log("the restored server does not open")
            )
        })
    }
}

fn archive(folder: &Path) -> Box<dyn Read> {
    let file = File::open(folder.join("base.tar.zst")).unwrap();
    Box::new(zstd::stream::read::Decoder::new(file).unwrap())
}

fn own(setup: &Setup, path: &Path) {
    setup.user.own(path).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            own(setup, &entry.unwrap().path());
        }
    }
}

/// Runs a command that must succeed.
pub fn demand(command: &mut Command) {
    let output = command.output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}: {out}{err}");
}
