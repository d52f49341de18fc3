//! Figures over many cutovers.

use std::{fmt, time::Duration};

use super::{rollback_time::RollbackTime, runner::CutoverRun};
use crate::ledger::Verdict;

/// Counts and times of all cutovers.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    ended: usize,
    pods: usize,
    acknowledged: usize,
    unknown: usize,
    lost: usize,
    duplicated: usize,
    gaps: Vec<Duration>,
    quiet_gaps: Vec<Duration>,
    rollbacks: Vec<Duration>,
    slow_rollbacks: Vec<RollbackTime>,
}

impl Statistics {
    /// Adds a finished cutover.
    pub fn add(&mut self, cutover: &CutoverRun) {
        self.ended += 1;
        self.pods += cutover.pods.len();
        self.add_writes(&cutover.judgement.verdict);
        self.gaps.push(cutover.judgement.gap());
        if cutover.pods.len() == 1 {
            self.quiet_gaps.push(cutover.judgement.gap());
        }
        let rollbacks = &cutover.rollbacks;
        self.rollbacks.extend(rollbacks.iter().map(|one| one.took));
        let slow = rollbacks.iter().filter(|one| one.is_slow());
        self.slow_rollbacks.extend(slow.cloned());
    }

    /// Adds the writes of a cutover; alone, of one that broke a promise.
    pub fn add_writes(&mut self, verdict: &Verdict) {
        self.acknowledged += verdict.acknowledged;
        self.unknown += verdict.unknown_found + verdict.unknown_missing;
        self.lost += verdict.lost.len();
        self.duplicated += verdict.duplicated.len();
    }

    /// Adds rollbacks of attempts that are not part of a finished cutover.
    pub fn add_rollbacks(&mut self, took: &[Duration]) {
        self.rollbacks.extend(took);
    }

    /// The number of finished cutovers.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// The writes that were acknowledged, that were lost, and that were duplicated.
    pub fn writes(&self) -> [usize; 3] {
        [self.acknowledged, self.lost, self.duplicated]
    }

    /// The times of all rollbacks after the block.
    pub fn rollbacks(&self) -> &[Duration] {
        &self.rollbacks
    }

    /// The rollbacks that took longer than
    /// [`ROLLBACK_MAX`](super::rollback_time::ROLLBACK_MAX).
    pub fn slow_rollbacks(&self) -> &[RollbackTime] {
        &self.slow_rollbacks
    }

    /// The number of all cutovers: attempts that rolled back after the block count as well.
    pub fn cutovers(&self) -> usize {
        self.ended + self.rollbacks.len()
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cutovers, {} finished and {} rolled back, with {} pods: {} writes acknowledged, {} \
             unanswered, lost {}, duplicated {}",
            self.cutovers(),
            self.ended,
            self.rollbacks.len(),
            self.pods,
            self.acknowledged,
            self.unknown,
            self.lost,
            self.duplicated
        )?;
        for (name, times) in [
            ("write gap", &self.gaps),
            ("write gap, one pod", &self.quiet_gaps),
            ("rollback", &self.rollbacks),
        ] {
            writeln!(f, "  {name:<20} {}", Spread::new(times))?;
        }
        Ok(())
    }
}

/// Median, p99 and maximum of many durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    count: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Spread {
    /// Computes the values by nearest rank.
    pub fn new(times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            sorted
                .get((sorted.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
                .unwrap_or_default()
        };
        Self {
            count: sorted.len(),
            p50: rank(50),
            p99: rank(99),
            max: rank(100),
        }
    }
}

impl Spread {
    /// Median, p99 and maximum, in this order.
    pub fn ranks(&self) -> [Duration; 3] {
        [self.p50, self.p99, self.max]
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = self.ranks().map(|time| time.as_secs_f64());
        write!(
            f,
            "p50 {p50:6.2} s   p99 {p99:6.2} s   max {max:6.2} s   of {}",
            self.count
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_durations_of_the_input() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
        let spread = Spread::new(&times);
        let seconds = [spread.p50, spread.p99, spread.max].map(|time| time.as_secs());
        assert_eq!(seconds, [100, 198, 200]);
        assert_eq!(Spread::new(&[]), Spread::default());
    }
}
