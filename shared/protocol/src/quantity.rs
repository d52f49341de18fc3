//! Sizes and times as text for logs and reports.

use std::time::Duration;

use jiff::Timestamp;

/// Formats a number of bytes: `40.2 GB`, `800.0 MB`, `12 kB`, `96 bytes`. Units are powers of ten.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Formats a time, rounded down to seconds or, from an hour on, to minutes: `45 s`, `3 min 20 s`,
/// `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Time from `since` to `now`; zero for a `since` of a clock that is ahead.
pub fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_has_seen_no_time_pass() {
        let second = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(elapsed(second(10), second(13)), Duration::from_secs(3));
        assert_eq!(elapsed(second(13), second(10)), Duration::ZERO);
    }

    #[test]
    fn each_has_the_unit_that_keeps_it_short() {
        let sizes = [0, 999, 1_001, 1_000_000, 40_200_000_000].map(size);
        assert_eq!(sizes, ["0 bytes", "999 bytes", "1 kB", "1.0 MB", "40.2 GB"]);
        let times = [59, 60, 3_599, 7_500].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(times, ["59 s", "1 min 0 s", "59 min 59 s", "2 h 5 min"]);
    }
}
