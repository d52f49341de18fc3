//! Child processes that are cleaned up, both when they are dropped and when the harness itself is
//! killed.
//!
//! The kernel's parent-death signal is not sufficient: it depends on the thread that started the
//! child, which ends early in a test runner, and it does not reach PostgreSQL, which Patroni
//! detaches. So every process carries a mark in its environment, which its children inherit, and a
//! guard (a shell that waits for the end of a pipe, which the kernel closes with the harness) ends
//! all marked processes.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

const MARK: &str = "HARNESS_MARK";

/// Ends all processes that carry the mark `$1`: Patroni and others at once, so that nothing
/// restarts a server; PostgreSQL with SIGINT (fast shutdown), so that its shared memory is
/// released; whatever is left after 5 s with SIGKILL.
const GUARD: &str = r#"
cat >/dev/null
marked() { grep -lzs "^HARNESS_MARK=$1:" /proc/[0-9]*/environ | cut -d/ -f3; }
for pid in $(marked "$1"); do
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ] && kill -INT "$pid" && kill -CONT "$pid" ||
    kill -KILL "$pid"
done 2>/dev/null
for _ in $(seq 50); do [ -z "$(marked "$1")" ] && exit; sleep 0.1; done
for pid in $(marked "$1"); do kill -KILL "$pid" 2>/dev/null; done
"#;

/// How long PostgreSQL may take to release its shared memory when its [`Process`] is dropped.
const DROP_SECONDS_MAX: u64 = 5;

/// A running child process in a process group of its own, with a log file; ended on drop together
/// with its descendants.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    mark: String,
    log: PathBuf,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// Held while signalling, so that the process id cannot be reused.
    reaped: std::sync::Arc<Mutex<bool>>,
}

impl Process {
    /// Starts `command` with standard output and error appended to `log` and no standard input.
    ///
    /// # Errors
    /// The log cannot be written or the program cannot be started.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        Self::start_into(name, command, file, log)
    }

    /// Like [`Process::start`], with standard output and error going to `output`, for example a
    /// pipe; its reader writes the log.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_into(name: &str, mut command: Command, output: File, log: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}:{}", guard()?, NUMBER.fetch_add(1, Ordering::Relaxed));
        let program = command.get_program().to_owned();
        // A process group of its own: Ctrl-C reaches only the harness, which ends its children in
        // order.
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .env(MARK, &mark)
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {name} ({})", program.display()))?;
        let pid = Pid::from_child(&child);
        let (sender, ended) = watch::channel(None);
        let reaped = std::sync::Arc::new(Mutex::new(false));
        let flag = reaped.clone();
        std::thread::spawn(move || {
            // Waits without reaping first, so that the process id stays valid until no thread can
            // be about to signal it.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(
                waitid(WaitId::Pid(pid), options),
                Err(rustix::io::Errno::INTR)
            ) {}
            let mut reaped = lock(&flag);
            let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
            *reaped = true;
            sender.send_replace(Some(status));
        });
        Ok(Self {
            name: name.to_owned(),
            pid,
            mark,
            log: log.to_owned(),
            ended,
            reaped,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Path of the log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status, once the process has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Resolves when the process has ended; None if it was dropped first.
    pub fn ending(&self) -> impl Future<Output = Option<ExitStatus>> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            ended
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|status| *status)
        }
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        if !*lock(&self.reaped) {
            // This fails only for a process that has just become a zombie.
            kill_process(self.pid, signal).ok();
        }
    }

    /// Suspends the process (SIGSTOP): it keeps its connections and answers nothing.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process after [`Process::suspend`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the end of the process.
    pub async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            // The waiting thread ends only after it has sent the status.
            _ => ExitStatus::from_raw(0),
        }
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// The process still runs after `limit`.
    pub async fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match tokio::time::timeout(limit, self.wait()).await {
            Ok(status) => Ok(status),
            Err(_) => bail!(
                "{} did not end within {} s of SIGTERM",
                self.name,
                limit.as_secs()
            ),
        }
    }

    /// Kills this process only (SIGKILL) and waits until it is gone.
    pub async fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// The ids of this process and all its running descendants.
    pub fn family(&self) -> Vec<u32> {
        with_descendants(marked(&self.mark))
    }

    /// Sends a signal to the process and its descendants, youngest first: a parent must not replace
    /// a child that is being stopped.
    pub fn signal_family(&self, signal: Signal) {
        self.family()
            .into_iter()
            .rev()
            .for_each(|pid| send(pid, signal));
    }

    /// An error with the end of the log, for a process that did not do what was expected.
    pub fn error_with_log(&self, what: &str) -> anyhow::Error {
        let state = self
            .exit_status()
            .map_or_else(|| "still running".to_owned(), |status| status.to_string());
        anyhow::anyhow!(
            "{} ({state}): {what}; end of {}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log, 20)
        )
    }
}

impl Drop for Process {
    /// Kills everything except PostgreSQL, which gets a chance to release its shared memory.
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(DROP_SECONDS_MAX);
        let mut asked = false;
        loop {
            let left = marked(&self.mark);
            let (servers, others): (Vec<u32>, Vec<u32>) =
                left.iter().partition(|pid| is_postgres(**pid));
            let in_time = Instant::now() < deadline;
            others.iter().for_each(|pid| send(*pid, Signal::KILL));
            if !asked || !in_time {
                // SIGQUIT is PostgreSQL's immediate shutdown: no checkpoint, but shared memory is
                // released.
                servers
                    .iter()
                    .for_each(|pid| send(*pid, if in_time { Signal::QUIT } else { Signal::KILL }));
                servers.iter().for_each(|pid| send(*pid, Signal::CONT));
                asked = true;
            }
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The last `lines` lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn lock(flag: &Mutex<bool>) -> std::sync::MutexGuard<'_, bool> {
    flag.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

fn is_postgres(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "postgres")
}

/// Processes whose initial environment contained the mark. A zombie has no environment.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}").into_bytes();
    let carries = |pid: &u32| {
        let Ok(file) = File::open(format!("/proc/{pid}/environ")) else {
            return false;
        };
        BufReader::new(file)
            .split(0)
            .map_while(Result::ok)
            .any(|variable| variable == wanted)
    };
    processes().filter(carries).collect()
}

/// Adds descendants: PostgreSQL's children overwrite the environment that would mark them.
fn with_descendants(mut family: Vec<u32>) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = processes()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        let (children, others) = parents.into_iter().partition(|(_, parent)| *parent == pid);
        parents = others;
        let new: Vec<u32> = Vec::<(u32, u32)>::into_iter(children)
            .map(|(child, _)| child)
            .filter(|child| !family.contains(child))
            .collect();
        family.extend(new);
        next += 1;
    }
    family
}

/// True while the process runs or is stopped; a zombie does not count.
pub fn is_alive(pid: u32) -> bool {
    status_field(pid, 0).is_some_and(|state| state != "Z")
}

fn parent(pid: u32) -> Option<u32> {
    status_field(pid, 1)?.parse().ok()
}

/// A field of /proc/PID/stat, counted from the one after the name, which is in parentheses and may
/// contain any character.
fn status_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(number)
        .map(String::from)
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Starts the guard once per harness process; returns the prefix of all its marks.
fn guard() -> Result<&'static str> {
    static GUARDED: OnceLock<Result<(String, std::process::Child), String>> = OnceLock::new();
    let started = GUARDED.get_or_init(|| {
        let since = std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos());
        let mark = format!("{}-{since}", std::process::id());
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", GUARD, "harness-guard", &mark])
            .env_remove(MARK);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .current_dir("/");
        // The child is kept, so that the pipe stays open until this process ends.
        shell
            .spawn()
            .map(|child| (mark, child))
            .map_err(|error| format!("starting the guard: {error}"))
    });
    match started {
        Ok((mark, _)) => Ok(mark),
        Err(error) => bail!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn log(name: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("harness-{}-{name}", std::process::id()));
        fs::remove_file(&file).ok();
        file
    }

    #[tokio::test]
    async fn exit_status_and_log_are_available_after_the_end() {
        let process =
            Process::start("speaker", shell("echo hello; exit 3"), &log("speaker")).unwrap();
        assert_eq!(process.wait().await.code(), Some(3));
        assert_eq!(tail(process.log(), 1), "hello");
        assert!(
            process
                .error_with_log("no")
                .to_string()
                .contains("exit status: 3")
        );
        fs::remove_file(process.log()).unwrap();
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_reported_and_dies_on_drop() {
        let process = Process::start(
            "deaf",
            shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"),
            &log("deaf"),
        )
        .unwrap();
        while tail(process.log(), 1) != "ready" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = process
            .terminate(Duration::from_millis(200))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "deaf did not end within 0 s of SIGTERM");
        let pid = process.pid();
        fs::remove_file(process.log()).unwrap();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}/environ")).exists());
    }

    #[tokio::test]
    async fn drop_ends_a_grandchild_that_was_detached() {
        let process = Process::start(
            "parent",
            shell("setsid sleep 1000 & sleep 1000"),
            &log("parent"),
        )
        .unwrap();
        while process.family().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mark = process.mark.clone();
        fs::remove_file(process.log()).unwrap();
        drop(process);
        assert_eq!(marked(&mark), Vec::<u32>::new());
    }

    #[tokio::test]
    async fn a_dropped_postgres_releases_its_shared_memory() {
        let setup = crate::setup::Setup::ready().await.unwrap();
        let instance = crate::instance::Instance::claim(setup).unwrap();
        let (home, log) = (instance.directory(), instance.directory().join("log"));
        let run = |program: &str, arguments: &[&str]| {
            let mut command = setup.postgres(program);
            command
                .arg("-D")
                .arg(home.join("data"))
                .args(arguments)
                .current_dir(home);
            Process::start(program, command, &log).unwrap()
        };
        assert!(run("initdb", &["--no-sync"]).wait().await.success());
        let server = run("postgres", &["-c", "listen_addresses=", "-k", "."]);
        let pid = server.pid().to_string();
        // The fifth column is the process that made the segment.
        let has_segment = || {
            let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
            table
                .lines()
                .any(|line| line.split_whitespace().nth(4) == Some(pid.as_str()))
        };
        while !has_segment()
            || !fs::read_to_string(&log)
                .unwrap()
                .contains("ready to accept connections")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(server);
        assert!(!has_segment());
    }

    #[tokio::test]
    async fn the_guard_ends_what_a_killed_harness_leaves() {
        let script = format!("(echo; {GUARD}) </dev/null");
        let mut orphan = shell("exec sleep 1000");
        orphan.env(MARK, "guard-test:1");
        let mut orphan = orphan.spawn().unwrap();
        // The killed child stays a zombie of this test; the guard must not count it as running.
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", &script, "harness-guard", "guard-test"])
            .status()
            .unwrap();
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
    }
}
