//! Formats numbers and durations for people.

use std::time::Duration;

/// 4,812
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// 1 write, 4,812 writes
pub fn counted(number: usize, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        grouped(number),
        if number == 1 { one } else { many }
    )
}

/// Milliseconds, rounded: 2,905 ms
pub fn ms(length: Duration) -> String {
    format!("{} ms", whole_ms(length))
}

/// Milliseconds without their unit, for the cells of a table: 2,905
pub fn whole_ms(length: Duration) -> String {
    let rounded = (length.as_micros() + 500) / 1000;
    grouped(usize::try_from(rounded).unwrap_or(usize::MAX))
}

/// Seconds with one decimal: 2.9 s
pub fn seconds(length: Duration) -> String {
    format!("{:.1} s", length.as_secs_f64())
}

/// A range of seconds: "2.9 s", "2.9 to 3.1 s"
pub fn wait(least: Duration, most: Duration) -> String {
    let (least, most) = (seconds(least), seconds(most));
    if least == most {
        return most;
    }
    format!("{} to {most}", least.trim_end_matches(" s"))
}

/// Seconds from `zero`, negative before it.
pub fn since(zero: Duration, at: Duration) -> f64 {
    at.as_secs_f64() - zero.as_secs_f64()
}

/// Seconds from the zero of the axis: +1.06 s, −0.20 s
pub fn signed_seconds(seconds: f64) -> String {
    // A value that rounds to zero is not negative.
    let sign = if seconds < -0.005 { '−' } else { '+' };
    format!("{sign}{:.2} s", seconds.abs())
}

/// An instant on the axis of the page.
pub fn instant(zero: Duration, at: Duration) -> String {
    signed_seconds(since(zero, at))
}

/// A number of the axis: −1, 0, 0.5
pub fn tick(seconds: f64) -> String {
    // One decimal is enough for an axis with room for its numbers; avoids "-0".
    let tenths = (seconds * 10.0).round() + 0.0;
    format!("{}", tenths / 10.0).replace('-', "−")
}

/// Minutes and seconds: 1 min 37 s
pub fn minutes(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes => format!("{minutes} min {} s", seconds % 60),
    }
}

/// A percentage: 33 %, <1 %
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        nothing if nothing <= 0.0 => "0 %".to_owned(),
        little if little < 1.0 => "<1 %".to_owned(),
        share => format!("{share:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 7, 999, 1_000, 48_120, 1_234_567].map(grouped),
            ["0", "7", "999", "1,000", "48,120", "1,234,567"]
        );
        assert_eq!(counted(1, "write", "writes"), "1 write");
    }

    #[test]
    fn lengths_are_rounded_not_truncated() {
        assert_eq!(ms(Duration::from_micros(2_904_500)), "2,905 ms");
        assert_eq!(seconds(at(2_960)), "3.0 s");
        assert_eq!(minutes(at(97_000)), "1 min 37 s");
        assert_eq!(minutes(at(7_000)), "7 s");
    }

    #[test]
    fn equal_waits_are_written_once() {
        assert_eq!(wait(at(2_910), at(2_940)), "2.9 s");
        assert_eq!(wait(at(2_910), at(3_140)), "2.9 to 3.1 s");
    }

    #[test]
    fn instants_before_the_block_are_negative() {
        assert_eq!(instant(at(5_000), at(6_060)), "+1.06 s");
        assert_eq!(instant(at(5_000), at(4_800)), "−0.20 s");
        assert_eq!(instant(at(5_003), at(5_000)), "+0.00 s");
        assert_eq!(
            [-1.0, -0.04, 0.0, 0.5, 12.0].map(tick),
            ["−1", "0", "0", "0.5", "12"]
        );
    }

    #[test]
    fn a_small_share_is_not_zero() {
        assert_eq!(
            [0.0, 0.004, 0.333, 1.0].map(percent),
            ["0 %", "<1 %", "33 %", "100 %"]
        );
    }
}
