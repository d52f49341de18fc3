//! The only polling loop. Every wait has a deadline, an interval, and a word for what is missing.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// What a probe saw.
#[derive(Debug)]
pub enum Seen<T> {
    /// What was waited for.
    Ready(T),
    /// What is still missing, in words that fit behind "waiting: ".
    NotYet(String),
}

/// Probes until it is ready or the deadline is over; the last thing that was missing is the error's
/// message.
///
/// # Errors
/// Whatever the probe returns as an error, at once; [`Error::transient`] at the deadline.
pub async fn until<T>(
    deadline: Instant,
    interval: Duration,
    mut probe: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    loop {
        match probe().await? {
            Seen::Ready(value) => return Ok(value),
            Seen::NotYet(missing) if Instant::now() >= deadline => {
                return Err(Error::transient(format!(
                    "gave up at the deadline: {missing}"
                )));
            }
            Seen::NotYet(_) => {
                sleep(interval.min(deadline.saturating_duration_since(Instant::now()))).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_names_what_was_missing() {
        let deadline = Instant::now() + Duration::from_secs(3);
        let error = until::<()>(deadline, Duration::from_secs(1), async || {
            Ok(Seen::NotYet("replay at 0/1".into()))
        })
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "gave up at the deadline: replay at 0/1");
        assert!(Instant::now() >= deadline);
    }
}
