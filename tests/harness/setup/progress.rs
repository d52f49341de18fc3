//! What a person sees while the parts are made: which one, how long it will take, and how long it
//! took. All on standard error.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// A work that takes longer than this reports that it goes on.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Does `work` and reports it: `what` with `estimate` when it begins, the time when it ends.
///
/// # Errors
/// Those of `work`. They are reported at once, because others may still be working.
pub(super) fn report<T>(what: &str, estimate: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("making {what}: {estimate} on two cores, once");
    let begun = Instant::now();
    let result = thread::scope(|scope| {
        let (finished, wait) = channel::<()>();
        scope.spawn(move || {
            while wait.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
                eprintln!("still making {what}: {}", words(begun.elapsed()));
            }
        });
        let result = work();
        drop(finished);
        result
    });
    let took = words(begun.elapsed());
    match &result {
        Ok(_) => eprintln!("made {what} in {took}"),
        Err(error) => eprintln!("{what} failed after {took}: {error:#}"),
    }
    result
}

/// `4 min 12 s`.
fn words(time: Duration) -> String {
    match (time.as_secs() / 60, time.as_secs() % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_minutes_and_seconds() {
        assert_eq!(words(Duration::from_millis(59_900)), "59 s");
        assert_eq!(words(Duration::from_secs(252)), "4 min 12 s");
    }

    #[test]
    fn the_result_is_handed_on() {
        assert_eq!(report("nothing", "no time", || Ok(7)).unwrap(), 7);
        assert!(report::<()>("nothing", "no time", || anyhow::bail!("no")).is_err());
    }
}
