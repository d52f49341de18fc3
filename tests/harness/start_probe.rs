//! Measures a program's start: time, CPU and memory until its first call of the API server, with
//! the settings of the example.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};

use crate::{
    authority::Authority,
    manifests::{self, of_kind, of_step},
    setup::Setup,
};

const LIMIT: Duration = Duration::from_secs(30);

/// The measurements of one start.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// From the start of the process to its first connection.
    pub elapsed: Duration,
    /// CPU time until then.
    pub processor: Duration,
    /// Peak memory until then.
    pub resident_bytes: u64,
}

/// A listener in place of the API server, which never answers.
pub struct StartProbe {
    listener: TcpListener,
    account: tempfile::TempDir,
    objects: Vec<Value>,
}

impl StartProbe {
    /// Opens the listener and renders the example.
    ///
    /// # Errors
    /// As [`manifests::render`], or a file cannot be written.
    pub async fn new() -> Result<Self> {
        let account = tempfile::tempdir()?;
        let authority = Authority::root("another CA")?;
        for (name, text) in [
            ("token", "t"),
            ("namespace", "n"),
            ("ca.crt", authority.certificate()),
        ] {
            fs::write(account.path().join(name), text)?;
        }
        Ok(Self {
            listener: TcpListener::bind("127.0.0.1:0").await?,
            account,
            objects: manifests::example(Setup::ready().await?)?,
        })
    }

    /// Starts the program of a step once and kills it after its first connection.
    ///
    /// # Errors
    /// The program does not connect within half a minute.
    pub async fn start(&self, program: &Path, step: &str) -> Result<Start> {
        let mut command = Command::new(program);
        command.env_clear().envs(self.variables(step)?);
        let begun = Instant::now();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let connected = timeout(LIMIT, self.listener.accept()).await;
        let elapsed = begun.elapsed();
        let usage = sample(child.id());
        child.kill()?;
        child.wait()?;
        connected.with_context(|| format!("{step} has not called the API server"))??;
        let (processor, resident_bytes) = usage?;
        Ok(Start {
            elapsed,
            processor,
            resident_bytes,
        })
    }

    /// The settings, and an empty file for each mounted file.
    fn variables(&self, step: &str) -> Result<BTreeMap<String, String>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let settings = of_kind(&self.objects, "ConfigMap").find_map(|map| map["data"].as_object());
        let mut variables: BTreeMap<String, String> = settings
            .context("the example has no settings")?
            .iter()
            .map(|(key, value)| (key.clone(), text(value)))
            .collect();
        let own = of_step(&self.objects, step);
        let Some(job) = of_kind(&own, "Job").next() else {
            bail!("there is no step {step}")
        };
        let mounted = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
        variables.extend(
            mounted
                .into_iter()
                .flatten()
                .map(|one| (text(&one["name"]), "/dev/null".to_owned())),
        );
        let address = self.listener.local_addr()?;
        for (key, value) in [
            (
                "SERVICE_ACCOUNT_DIRECTORY",
                self.account.path().display().to_string(),
            ),
            // final-backup checks its volume first.
            ("BACKUP_TO", self.account.path().display().to_string()),
            ("KUBERNETES_SERVICE_HOST", address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", address.port().to_string()),
            ("SOURCE_HOSTADDR", "127.0.0.1".to_owned()),
            ("TARGET_HOSTADDR", "127.0.0.1".to_owned()),
        ] {
            variables.insert(key.to_owned(), value);
        }
        Ok(variables)
    }
}

/// CPU time (proc(5), schedstat: nanoseconds) and peak memory so far.
fn sample(pid: u32) -> Result<(Duration, u64)> {
    let schedule = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds = schedule
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: Option<u64> =
        peak.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok((
        Duration::from_nanos(nanoseconds.context("no time in schedstat")?),
        kilobytes.context("no VmHWM in status")? * 1024,
    ))
}
