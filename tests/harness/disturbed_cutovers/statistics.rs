//! The figures over many cuts.

use std::{fmt, time::Duration};

use super::runner::CutoverRun;

/// All that is counted.
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
}

impl Statistics {
    /// One more.
    pub fn add(&mut self, cutover: &CutoverRun) {
        let verdict = &cutover.judgement.verdict;
        self.ended += 1;
        self.pods += cutover.pods.len();
        self.acknowledged += verdict.acknowledged;
        self.unknown += verdict.unknown_found + verdict.unknown_missing;
        self.lost += verdict.lost.len();
        self.duplicated += verdict.duplicated.len();
        self.gaps.push(cutover.judgement.gap());
        if cutover.pods.len() == 1 {
            self.quiet_gaps.push(cutover.judgement.gap());
        }
        self.rollbacks.extend(&cutover.rollbacks);
    }

    /// An attempt that went back, beside the cuts.
    pub fn add_rollbacks(&mut self, took: &[Duration]) {
        self.rollbacks.extend(took);
    }

    /// Cuts that have come to their end.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// Cuts in all: those that went back after the block are cuts, too.
    pub fn cutovers(&self) -> usize {
        self.ended + self.rollbacks.len()
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cuts, {} of them to the end and {} back, with {} pods: {} writes acknowledged, {} \
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
            ("way back", &self.rollbacks),
        ] {
            writeln!(f, "  {name:<20} {}", Spread::new(times))?;
        }
        Ok(())
    }
}

/// The middle and the end of many times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    count: usize,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Spread {
    /// By nearest rank.
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

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [self.p50, self.p99, self.max].map(|time| time.as_secs_f64());
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
    fn ranks_are_times_that_were_seen() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
        let spread = Spread::new(&times);
        let seconds = [spread.p50, spread.p99, spread.max].map(|time| time.as_secs());
        assert_eq!(seconds, [100, 198, 200]);
        assert_eq!(Spread::new(&[]), Spread::default());
    }
}
