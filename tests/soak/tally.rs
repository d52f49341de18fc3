//! The figures of all runs of `make soak` together: one file, one line of JSON for each run.

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use harness::{disturbed_cutovers::statistics::Statistics, setup::target_directory};
use serde::{Deserialize, Serialize};

/// What one run adds, or what all runs add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// When the run ended; empty for a total.
    pub at: String,
    /// The first seed.
    pub seed: u64,
    /// Cutovers that came to their end.
    pub finished: usize,
    /// Cutovers that rolled back after the block.
    pub rolled_back: usize,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Acknowledged writes that were not found.
    pub lost: usize,
    /// Writes that were found twice.
    pub duplicated: usize,
    /// The longest rollback, from its decision to the first write, without the excused ones.
    pub rollback_max_ms: u64,
    /// Rollbacks that took longer for a cause that no program can remove.
    pub excused: Vec<String>,
    /// Runs that broke a promise.
    pub broken: usize,
}

impl Tally {
    /// The figures of a run that ends now.
    pub fn of(statistics: &Statistics, seed: u64, excused: Vec<String>, broken: usize) -> Self {
        let rolled_back = statistics.cutovers() - statistics.ended();
        let (acknowledged, lost, duplicated) = statistics.writes();
        let longest = statistics.longest_rollback(excused.len());
        Self {
            at: jiff::Timestamp::now().to_string(),
            seed,
            finished: statistics.ended(),
            rolled_back,
            acknowledged,
            lost,
            duplicated,
            rollback_max_ms: longest.as_millis().try_into().unwrap_or(u64::MAX),
            excused,
            broken,
        }
    }

    /// Adds this run to the file of SOAK_TALLY, by default target/soak-tally.jsonl; returns the
    /// file and the total of all its runs.
    ///
    /// # Errors
    /// The file cannot be written, or it holds something else.
    pub fn add(&self) -> Result<(PathBuf, Self)> {
        let path = match std::env::var_os("SOAK_TALLY").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => target_directory().join("soak-tally.jsonl"),
        };
        let total = self
            .add_to(&path)
            .with_context(|| format!("the tally {}", path.display()))?;
        Ok((path, total))
    }

    fn add_to(&self, path: &Path) -> Result<Self> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        // One write, so that two runs at a time leave two lines.
        file.write_all(format!("{}\n", serde_json::to_string(self)?).as_bytes())?;
        let mut total = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            total.include(serde_json::from_str(line)?);
        }
        Ok(total)
    }

    fn include(&mut self, run: Self) {
        self.finished += run.finished;
        self.rolled_back += run.rolled_back;
        self.acknowledged += run.acknowledged;
        self.lost += run.lost;
        self.duplicated += run.duplicated;
        self.rollback_max_ms = self.rollback_max_ms.max(run.rollback_max_ms);
        self.excused.extend(run.excused);
        self.broken += run.broken;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cutovers, {} finished and {} rolled back: {} writes acknowledged, lost {}, \
             duplicated {}; longest rollback {} ms, {} more excused; {} broken",
            self.finished + self.rolled_back,
            self.finished,
            self.rolled_back,
            self.acknowledged,
            self.lost,
            self.duplicated,
            self.rollback_max_ms,
            self.excused.len(),
            self.broken
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_adds_a_line_and_the_total_counts_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tally");
        let run = Tally {
            finished: 3,
            rolled_back: 1,
            acknowledged: 100,
            rollback_max_ms: 700,
            excused: vec!["seed 7: 31 s, the API server is away".into()],
            ..Tally::default()
        };
        assert_eq!(run.add_to(&path).unwrap(), run);
        let total = run.add_to(&path).unwrap();
        assert_eq!((total.finished, total.rolled_back), (6, 2));
        assert_eq!((total.rollback_max_ms, total.excused.len()), (700, 2));
        fs::write(&path, "something else").unwrap();
        assert!(run.add_to(&path).is_err());
    }
}
