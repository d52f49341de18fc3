//! The tally of all runs: each run adds one line of JSON to a file, and the total of all lines is
//! what "a thousand cutovers, none lost" refers to. Times are in seconds.

use std::{
    env,
    fs::{File, OpenOptions, read_to_string},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use harness::{
    disturbed_cutovers::{
        rollback_time::{ROLLBACK_MAX, RollbackTime},
        statistics::{Spread, Statistics},
    },
    setup::Setup,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FILE: &str = "soak.jsonl";

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Line {
    /// When the run ended.
    date: Timestamp,
    /// The programs' version, and their git revision where there is one.
    revision: String,
    /// The first seed.
    seed: u64,
    finished: u64,
    rolled_back: u64,
    writes_acknowledged: u64,
    lost: u64,
    duplicated: u64,
    rollback_p50: f64,
    rollback_p99: f64,
    rollback_max: f64,
    /// The rollbacks of more than ten seconds.
    slow_rollbacks: Vec<Slow>,
    /// Commands that repeat what broke a promise.
    broken: Vec<String>,
}

/// A rollback of more than ten seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Slow {
    seconds: f64,
    /// What allows it; None fails the run.
    cause: Option<String>,
    /// Why the cutover rolled back.
    reason: String,
    /// What was injected.
    faults: Vec<String>,
}

/// Adds a run to the tally, and prints the total of all runs.
///
/// # Errors
/// The tally cannot be read or written, or has a line that is not one of its own.
pub fn add(seed: u64, statistics: &Statistics, broken: &[String]) -> Result<()> {
    if statistics.cutovers() == 0 && broken.is_empty() {
        return Ok(());
    }
    let path = path()?;
    append(&path, &Line::new(seed, statistics, broken))
        .with_context(|| format!("adding the run to {}", path.display()))?;
    let text = read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lines = parse(&text).with_context(|| path.display().to_string())?;
    println!("{}\n  in {}", total(&lines), path.display());
    Ok(())
}

fn path() -> Result<PathBuf> {
    match env::var_os("SOAK_TALLY").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Ok(Setup::ready_blocking()?.directories.cache.join(FILE)),
    }
}

/// One write, so that runs that end at the same time do not mix their lines.
fn append(path: &Path, line: &Line) -> Result<()> {
    let mut file: File = OpenOptions::new().create(true).append(true).open(path)?;
    let line = format!("{}\n", serde_json::to_string(line)?);
    Ok(file.write_all(line.as_bytes())?)
}

fn parse(text: &str) -> Result<Vec<Line>> {
    let parsed = text.lines().zip(1..).map(|(line, number)| {
        serde_json::from_str(line).with_context(|| format!("line {number} is not a run"))
    });
    parsed.collect()
}

fn total(lines: &[Line]) -> String {
    let sum = |of: fn(&Line) -> u64| lines.iter().map(of).sum::<u64>();
    let (finished, rolled_back) = (sum(|line| line.finished), sum(|line| line.rolled_back));
    let longest = lines
        .iter()
        .fold(0.0, |longest: f64, line| longest.max(line.rollback_max));
    let slow = lines.iter().flat_map(|line| &line.slow_rollbacks);
    let (allowed, others): (Vec<&Slow>, Vec<&Slow>) = slow.partition(|slow| slow.cause.is_some());
    format!(
        "all {} runs: {} cutovers, {finished} finished and {rolled_back} rolled back: {} writes \
         acknowledged, lost {}, duplicated {}; rollbacks: longest {longest:.2} s, {} over {} s \
         with a cause that allows it, {} without; {} broken",
        lines.len(),
        finished + rolled_back,
        sum(|line| line.writes_acknowledged),
        sum(|line| line.lost),
        sum(|line| line.duplicated),
        allowed.len(),
        ROLLBACK_MAX.as_secs(),
        others.len(),
        sum(|line| line.broken.len() as u64),
    )
}

impl Line {
    fn new(seed: u64, statistics: &Statistics, broken: &[String]) -> Self {
        let [writes_acknowledged, lost, duplicated] = statistics.writes().map(|n| n as u64);
        let rollbacks = statistics.rollbacks();
        let [p50, p99, max] = Spread::new(rollbacks).ranks().map(rounded);
        Self {
            date: Timestamp::now(),
            revision: revision(),
            seed,
            finished: statistics.ended() as u64,
            rolled_back: rollbacks.len() as u64,
            writes_acknowledged,
            lost,
            duplicated,
            rollback_p50: p50,
            rollback_p99: p99,
            rollback_max: max,
            slow_rollbacks: statistics.slow_rollbacks().iter().map(Slow::new).collect(),
            broken: broken.to_vec(),
        }
    }
}

impl Slow {
    fn new(rollback: &RollbackTime) -> Self {
        Self {
            seconds: rounded(rollback.took),
            cause: rollback.cause().map(ToOwned::to_owned),
            reason: rollback.reason.clone(),
            faults: rollback.faults.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Seconds with milliseconds.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// The version, and the revision of a checkout.
fn revision() -> String {
    let mut git = Command::new("git");
    git.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]);
    let described = git.output().ok().filter(|output| output.status.success());
    let described = described.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = env!("CARGO_PKG_VERSION");
    match described {
        Some(revision) => format!("{version} ({})", revision.trim()),
        None => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(finished: u64, slow_rollbacks: Vec<Slow>) -> Line {
        Line {
            revision: "1.0.0 (abc)".to_owned(),
            finished,
            rolled_back: 2,
            writes_acknowledged: 1_000,
            rollback_max: finished as f64,
            slow_rollbacks,
            ..Line::default()
        }
    }

    fn slow(cause: Option<&str>) -> Slow {
        Slow {
            seconds: 51.0,
            cause: cause.map(ToOwned::to_owned),
            reason: "the source failed over".to_owned(),
            faults: vec!["SIGKILL".to_owned()],
        }
    }

    #[test]
    fn runs_are_added_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let runs = [
            line(3, vec![slow(Some("API server away"))]),
            line(5, vec![slow(None)]),
        ];
        for run in &runs {
            append(&path, run).unwrap();
        }
        let lines = parse(&read_to_string(&path).unwrap()).unwrap();
        assert_eq!(lines, runs);
        assert_eq!(
            total(&lines),
            "all 2 runs: 12 cutovers, 8 finished and 4 rolled back: 2000 writes acknowledged, \
             lost 0, duplicated 0; rollbacks: longest 5.00 s, 1 over 10 s with a cause that \
             allows it, 1 without; 0 broken"
        );
    }

    #[test]
    fn a_line_that_is_not_a_run_is_named() {
        let error = parse("{}").unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error:#}");
    }
}
