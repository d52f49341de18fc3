//! A running pod: its process, its log, and signals to it.

use std::{
    fs::File,
    io::{BufRead, BufReader, PipeReader, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobSpec;
use tokio::{sync::watch, time::timeout};

use super::{Ended, grace, launch::OnLine};
use crate::{
    cost::CostMonitor,
    process::{Process, Signal},
};

/// Limit from the end of a program to the end of its output, which may still be in the pipe.
const OUTPUT_SECONDS_MAX: u64 = 5;

/// A line of the log.
#[derive(Clone, Debug)]
pub struct Line {
    /// When the line arrived.
    pub at: Timestamp,
    /// Without its line end.
    pub text: String,
}

/// A pod that has been started; killed on drop.
pub struct RunningPod {
    name: String,
    process: Process,
    started: Instant,
    output: Arc<Output>,
    output_state: watch::Receiver<OutputState>,
    cost_monitor: CostMonitor,
    termination_log: PathBuf,
    spec: JobSpec,
}

/// How much output there is.
#[derive(Clone, Copy, Debug, Default)]
struct OutputState {
    lines: usize,
    /// Set once the program and its output have ended.
    over: Option<Instant>,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Vec<Line>>,
}

impl Output {
    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunningPod {
    pub(super) fn start(
        name: &str,
        command: Command,
        log: &Path,
        termination_log: PathBuf,
        spec: JobSpec,
        on_line: Option<Arc<Mutex<OnLine>>>,
    ) -> Result<Self> {
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let started = Instant::now();
        let process = Process::start_into(name, command, File::from(OwnedFd::from(writer)), log)?;
        let output = Arc::new(Output::default());
        let (sender, output_state) = watch::channel(OutputState::default());
        let recorded = Arc::clone(&output);
        std::thread::spawn(move || listen(reader, file, &recorded, &sender, on_line.as_deref()));
        let cost_monitor = CostMonitor::process(process.pid());
        Ok(Self {
            name: name.to_owned(),
            process,
            started,
            output,
            output_state,
            cost_monitor,
            termination_log,
            spec,
        })
    }

    /// The name of the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The log so far.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lines().clone()
    }

    /// Waits for a line that contains `text`, including earlier lines.
    ///
    /// # Errors
    /// The line does not appear within `limit`, or the program ends without it.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<Line> {
        self.wait_for_next_line(&mut 0, text, limit).await
    }

    /// Like [`RunningPod::wait_for_line`], starting at line `from`, which is then set to the line
    /// after the match.
    pub async fn wait_for_next_line(
        &self,
        from: &mut usize,
        text: &str,
        limit: Duration,
    ) -> Result<Line> {
        let mut output_state = self.output_state.clone();
        let search = async {
            loop {
                let now = *output_state.borrow_and_update();
                let found = {
                    let lines = self.output.lines();
                    let number = lines
                        .iter()
                        .skip(*from)
                        .position(|line| line.text.contains(text));
                    *from = number.map_or(lines.len(), |number| *from + number + 1);
                    number.map(|_| lines[*from - 1].clone())
                };
                match found {
                    Some(line) => return Some(line),
                    None if now.over.is_some() || output_state.changed().await.is_err() => {
                        return None;
                    }
                    None => {}
                }
            }
        };
        match timeout(limit, search).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(self
                .process
                .error_with_log(&format!("ended without logging {text:?}"))),
            Err(_) => Err(self.process.error_with_log(&format!(
                "did not log {text:?} within {} s",
                limit.as_secs()
            ))),
        }
    }

    /// Resolves at the end of the program, to whether it succeeded; borrows nothing.
    pub(super) fn end(&self) -> impl Future<Output = bool> + Send + 'static {
        let ended = self.process.ending();
        async move { ended.await.is_some_and(|status| status.success()) }
    }

    /// Releases the failpoint at which the program waits, or cancels the one that is set (SIGUSR1).
    pub fn release_failpoint(&self) {
        self.process.signal(Signal::USR1);
    }

    /// SIGKILL, as for a lost node or the OOM killer.
    pub fn kill(&self) {
        self.process.signal(Signal::KILL);
    }

    /// SIGTERM, the beginning of a pod's deletion or a node's drain.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// SIGSTOP, as if the node hung.
    pub fn suspend(&self) {
        self.process.suspend();
    }

    /// SIGCONT after [`RunningPod::suspend`].
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Deletes the pod: SIGTERM, then SIGKILL after terminationGracePeriodSeconds.
    ///
    /// # Errors
    /// As [`RunningPod::wait`].
    pub async fn delete(&self) -> Result<Ended> {
        self.terminate();
        if timeout(grace(&self.spec), self.process.wait())
            .await
            .is_err()
        {
            self.kill();
        }
        self.wait(Duration::from_secs(OUTPUT_SECONDS_MAX)).await
    }

    /// Waits for the end of the pod.
    ///
    /// # Errors
    /// The pod still runs after `limit`; the error holds the end of its log. The pod keeps running
    /// until it is dropped.
    pub async fn wait(&self, limit: Duration) -> Result<Ended> {
        let Ok(status) = timeout(limit, self.process.wait()).await else {
            return Err(self
                .process
                .error_with_log(&format!("still running after {} s", limit.as_secs())));
        };
        let mut output_state = self.output_state.clone();
        let over = timeout(
            Duration::from_secs(OUTPUT_SECONDS_MAX),
            output_state.wait_for(|output_state| output_state.over.is_some()),
        )
        .await;
        let Ok(over) =
            over.map(|output_state| output_state.ok().and_then(|output_state| output_state.over))
        else {
            bail!(
                "{} has ended, but a child process keeps its output open",
                self.name
            );
        };
        let elapsed = over.map_or_else(
            || self.started.elapsed(),
            |over| over.duration_since(self.started),
        );
        let cost = self.cost_monitor.cost();
        Ok(Ended::new(
            &self.spec,
            status,
            &self.termination_log,
            self.lines(),
            elapsed,
            cost,
        ))
    }
}

fn listen(
    reader: PipeReader,
    mut log: File,
    output: &Output,
    sender: &watch::Sender<OutputState>,
    on_line: Option<&Mutex<OnLine>>,
) {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|read| read > 0)
    {
        // A full disk must not keep the lines from tests that wait for them.
        log.write_all(&bytes).ok();
        let line = Line {
            at: Timestamp::now(),
            text: String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).into_owned(),
        };
        bytes.clear();
        if let Some(hear) = on_line {
            hear.lock().unwrap_or_else(PoisonError::into_inner)(&line);
        }
        output.lines().push(line);
        sender.send_modify(|output_state| output_state.lines += 1);
    }
    sender.send_modify(|output_state| output_state.over = Some(Instant::now()));
}
