//! Runs kubectl as README tells users to. Commands that a user would type are printed; queries that
//! only the test needs are not.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::{Instant, sleep, timeout},
};

/// Limit for commands that do not wait for anything.
const ANSWER: Duration = Duration::from_secs(60);
/// Pause between two queries for a state that kubectl cannot wait for.
const POLL: Duration = Duration::from_millis(300);

/// kubectl in one namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    /// The namespace of every command.
    pub namespace: String,
}

impl Kubectl {
    /// Prints the command as a user would type it, runs it, and prints the output.
    pub async fn run_shown(&self, arguments: &[&str]) -> Result<String> {
        println!("\n$ kubectl -n {} {}", self.namespace, arguments.join(" "));
        let answer = self.query(arguments).await?;
        for line in answer.lines() {
            println!("  {line}");
        }
        Ok(answer)
    }

    /// Runs the command without printing anything.
    pub async fn query(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "", ANSWER).await
    }

    /// Reads an object or a list of them.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.query(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("what kubectl {} printed", arguments.join(" ")))
    }

    /// Runs a command that waits, with `limit` as its `--timeout`.
    pub async fn wait(&self, arguments: &[&str], limit: Duration) -> Result<()> {
        let flag = format!("--timeout={}s", limit.as_secs());
        self.run_with_input(&[arguments, &[&flag]].concat(), "", limit + ANSWER)
            .await
            .map(drop)
    }

    /// Applies objects that belong to the test.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        let list =
            serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.run_with_input(&["apply", "-f", "-"], &list, ANSWER)
            .await
            .map(drop)
    }

    /// Runs the command with `input` on standard input.
    pub async fn run_with_input(
        &self,
        arguments: &[&str],
        input: &str,
        limit: Duration,
    ) -> Result<String> {
        let what = || format!("kubectl {}", arguments.join(" "));
        let run = async {
            let mut child = self
                .command(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("starting kubectl; install it: https://kubernetes.io/docs/tasks/tools")?;
            let mut stdin = child
                .stdin
                .take()
                .context("kubectl has no standard input")?;
            let writing = async move {
                // A kubectl that fails does not read all of its input; its error message explains
                // why.
                let _ = stdin.write_all(input.as_bytes()).await;
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), writing);
            anyhow::Ok(output?)
        };
        let output = timeout(limit, run)
            .await
            .with_context(|| format!("{}: no end within {limit:?}", what()))??;
        if !output.status.success() {
            bail!(
                "{}: {}",
                what(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Calls `on_line` with each line as it arrives, until the command ends; returns its standard
    /// error.
    pub async fn follow(
        &self,
        arguments: &[&str],
        mut on_line: impl FnMut(&str),
    ) -> Result<String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        let mut lines = BufReader::new(
            child
                .stdout
                .take()
                .context("kubectl has no standard output")?,
        )
        .lines();
        while let Some(line) = lines.next_line().await? {
            on_line(&line);
        }
        let output = child.wait_with_output().await?;
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(["-n", &self.namespace])
            .args(arguments)
            .kill_on_drop(true);
        command
    }
}

/// Repeats `ask` until it returns a value; `None` means not yet.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waiting for {what}: timed out after {} s", limit.as_secs());
        }
        sleep(POLL).await;
    }
}
