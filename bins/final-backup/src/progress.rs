//! Progress lines of a copy: percentage, rate and time left.

use std::time::{Duration, Instant};

use job::quantity::{duration, size};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Progress of a transfer.
pub struct Progress {
    activity: &'static str,
    total: u64,
    begun: Instant,
    /// Time and bytes of the last line.
    last: (Instant, u64),
}

impl Progress {
    /// Begins to measure a transfer of about `total` bytes.
    pub fn new(activity: &'static str, total: u64, now: Instant) -> Self {
        Self {
            activity,
            total,
            begun: now,
            last: (now, 0),
        }
    }

    /// The next line, if ten seconds have passed since the last one. `done` is in bytes, and raises
    /// a total that was estimated too low.
    pub fn line(&mut self, now: Instant, done: u64) -> Option<String> {
        let since = now.duration_since(self.last.0);
        if since < INTERVAL {
            return None;
        }
        let rate = done.saturating_sub(self.last.1) as f64 / since.as_secs_f64();
        self.last = (now, done);
        self.total = self.total.max(done);
        let percent = (done * 100).checked_div(self.total).unwrap_or(100);
        // The time left follows from the average rate, which is steadier than the current one.
        let overall = done as f64 / now.duration_since(self.begun).as_secs_f64();
        let left = match self.total - done {
            0 => "nearly done".to_owned(),
            _ if overall < 1.0 => "time left unknown".to_owned(),
            rest => format!(
                "{} left",
                duration(Duration::from_secs_f64(rest as f64 / overall))
            ),
        };
        Some(format!(
            "{}: {percent} % of {}, {:.1} MB/s, {left}",
            self.activity,
            size(self.total),
            rate / 1e6
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_every_ten_seconds_with_percent_rate_and_time_left() {
        let begun = Instant::now();
        let mut progress = Progress::new("copying", 4_000_000_000, begun);
        let mut at =
            |seconds: u64, done: u64| progress.line(begun + Duration::from_secs(seconds), done);
        assert_eq!(at(9, 900_000_000), None);
        assert_eq!(
            at(10, 1_000_000_000).unwrap(),
            "copying: 25 % of 4.0 GB, 100.0 MB/s, 30 s left"
        );
        assert_eq!(at(12, 1_000_000_000), None);
        assert_eq!(
            at(20, 1_000_000_000).unwrap(),
            "copying: 25 % of 4.0 GB, 0.0 MB/s, 1 min 0 s left"
        );
        assert_eq!(
            at(30, 4_500_000_000).unwrap(),
            "copying: 100 % of 4.5 GB, 350.0 MB/s, nearly done"
        );
    }

    #[test]
    fn an_empty_total_and_a_stalled_start_do_not_divide_by_zero() {
        let begun = Instant::now();
        assert!(
            Progress::new("a", 0, begun)
                .line(begun + INTERVAL, 0)
                .unwrap()
                .contains("100 %")
        );
        assert!(
            Progress::new("a", 100, begun)
                .line(begun + INTERVAL, 0)
                .unwrap()
                .contains("time left unknown")
        );
    }
}
