//! An S3 server for backups: versitygw over a directory, with TLS.

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::{BuildHasher, Hasher},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{authority::Authority, instance::Instance, process::Process, setup::Setup};

/// The server's host number in the instance's network.
const HOST: u8 = 60;
const PORT: u16 = 7070;
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A running server; ends on drop.
pub struct S3 {
    config: ServerConfig,
    ca: String,
    process: Process,
}

/// Address, directory and access key of the server.
struct ServerConfig {
    address: Ipv4Addr,
    home: PathBuf,
    access_key: String,
    secret_key: String,
}

impl ServerConfig {
    async fn run(&self, setup: &'static Setup) -> Result<Process> {
        let mut command = setup.server(setup.s3_server().await?);
        command
            .args(["--port", &format!("{}:{PORT}", self.address), "--cert"])
            .arg(self.home.join("tls.crt"))
            .arg("--key")
            .arg(self.home.join("tls.key"))
            .args(["--keep-alive", "posix", "--sidecar"])
            .arg(self.home.join("meta"))
            .arg(self.home.join("buckets"));
        command
            .env("ROOT_ACCESS_KEY", &self.access_key)
            .env("ROOT_SECRET_KEY", &self.secret_key);
        Process::start("versitygw", command, &self.home.join("log"))
    }
}

impl S3 {
    /// Starts the server with one bucket.
    ///
    /// # Errors
    /// The server cannot be built, or does not answer.
    pub async fn start(setup: &'static Setup, instance: &Instance, bucket: &str) -> Result<Self> {
        let address = instance.address(HOST);
        let home = instance.subdirectory(setup, "s3")?;
        instance.subdirectory(setup, "s3/meta")?;
        instance.subdirectory(setup, &format!("s3/buckets/{bucket}"))?;
        let authority = Authority::root("a bucket")?;
        let pair = authority.server("s3", &[], &[address.into()])?;
        setup
            .user
            .write_private(&home.join("tls.crt"), &pair.certificate)?;
        setup.user.write_private(&home.join("tls.key"), &pair.key)?;
        let chance = || format!("{:016x}", RandomState::new().build_hasher().finish());
        let (access_key, secret_key) = (chance(), chance() + &chance());
        let config = ServerConfig {
            address,
            home,
            access_key,
            secret_key,
        };
        let server = Self {
            process: config.run(setup).await?,
            config,
            ca: authority.certificate().to_owned(),
        };
        server.answers().await?;
        Ok(server)
    }

    async fn answers(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect((self.config.address, PORT))
            .await
            .is_err()
        {
            if Instant::now() > deadline || self.process.exit_status().is_some() {
                return Err(self.process.error_with_log("does not answer"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The endpoint's URL.
    pub fn endpoint(&self) -> String {
        format!("https://{}:{PORT}", self.config.address)
    }

    /// The CA of the server's certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Id and secret of the access key.
    pub fn keys(&self) -> (&str, &str) {
        (&self.config.access_key, &self.config.secret_key)
    }

    /// The directory of a bucket.
    pub fn directory(&self, bucket: &str) -> PathBuf {
        self.config.home.join("buckets").join(bucket)
    }

    /// Stops the server and starts it again after `pause`; connections are refused in between.
    ///
    /// # Errors
    /// The server does not stop or does not start again.
    pub async fn restart(&mut self, setup: &'static Setup, pause: Duration) -> Result<()> {
        self.process.terminate(START).await?;
        sleep(pause).await;
        self.process = self.config.run(setup).await?;
        self.answers().await
    }

    /// Suspends the server: it accepts connections and answers nothing.
    pub fn suspend(&self) {
        self.process.suspend();
    }

    /// Resumes the server.
    pub fn resume(&self) {
        self.process.resume();
    }

    /// The number of uploads that were neither completed nor aborted.
    ///
    /// # Errors
    /// The server's directory cannot be read.
    pub fn unfinished_uploads(&self, bucket: &str) -> Result<usize> {
        uploads(&self.directory(bucket).join(".sgwtmp/multipart"))
    }
}

/// versitygw keeps a directory per object, and in it one per upload.
fn uploads(folder: &Path) -> Result<usize> {
    if !folder.exists() {
        return Ok(0);
    }
    let mut count = 0;
    for object in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let object = object?.path();
        if object.is_dir() {
            count += fs::read_dir(object)?
                .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
                .count();
        }
    }
    Ok(count)
}
