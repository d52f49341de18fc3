//! The polling loop of all programs. Every wait has a deadline, an interval, and a text that says
//! what is missing.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// The result of one probe.
#[derive(Debug)]
pub enum ProbeResult<T> {
    /// The value that was waited for.
    Ready(T),
    /// What is still missing, as a text that can follow "waiting: ".
    NotYet(String),
}

/// Repeats `probe` every `interval` until it is ready or `deadline` has passed.
///
/// # Errors
/// Those of the probe, at once; Transient at the deadline, with the last thing that was missing.
pub async fn until<T>(
    deadline: Instant,
    interval: Duration,
    mut probe: impl AsyncFnMut() -> Result<ProbeResult<T>>,
) -> Result<T> {
    loop {
        match probe().await? {
            ProbeResult::Ready(value) => return Ok(value),
            ProbeResult::NotYet(missing) if Instant::now() >= deadline => {
                return Err(Error::transient(format!(
                    "gave up at the deadline: {missing}"
                )));
            }
            ProbeResult::NotYet(_) => {
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
            Ok(ProbeResult::NotYet("replay at 0/1".into()))
        })
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "gave up at the deadline: replay at 0/1");
        assert!(Instant::now() >= deadline);
    }
}
