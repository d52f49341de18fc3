//! The wait until no finding can settle by itself: a standby that has just started catches up
//! first.

use std::time::Duration;

use job::{
    context::JobContext,
    error::{ErrorKind, Result},
    quantity::size,
    wait::{ProbeResult, until},
};
use platform::collector::{Collector, Controllers, Scope};
use protocol::{
    checks::{self, REPLAY_LAG},
    decision::Limits,
    finding::{Finding, worst},
    snapshot::Snapshot,
};
use tokio::time::Instant;

use crate::joins::Joins;

const POLL: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(10);
/// Longest wait for a finding to settle by itself, while the lag does not fall, in seconds.
const SETTLE_SECONDS_MAX: u64 = 120;

/// What this step observes: no controller beside the Zalando operator, because its Role does not
/// permit that, and no names of clients.
const SCOPE: Scope<'static> = Scope {
    start: None,
    untouched: true,
    target_optional: false,
    each_member: true,
    application: true,
    controllers: Controllers::None,
    manifest: false,
    services: true,
    leftovers: false,
    poolers: true,
    traffic: false,
    service_answer: None,
    client_names: false,
    sessions_ended: false,
    prechecks: true,
};

/// Observes until no finding can settle by itself, or the time is over; returns the last snapshot.
///
/// # Errors
/// Config at once; Transient when no complete observation succeeded in time.
pub async fn wait(
    run: &JobContext,
    collector: &mut Collector,
    limits: &Limits,
    deadline: Instant,
) -> Result<Snapshot> {
    let mut watch = Watch {
        run,
        limits,
        lag: Lag::new(Instant::now()),
    };
    let mut joins = Joins::new();
    let mut last = None;
    let outcome = until(deadline, POLL, async || {
        let snapshot = match observe(collector, limits).await {
            Ok(snapshot) => snapshot,
            // A permission that was granted a moment ago is not missing: an API server that starts
            // refuses requests until it has read its Roles.
            Err(error)
                if (error.kind() == ErrorKind::Transient || last.is_some())
                    && watch.lag.may_settle() =>
            {
                run.report.waiting(format!("waiting: {error}"));
                return Ok(ProbeResult::NotYet(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        if joins.advance(run, collector, &snapshot.cluster).await {
            watch.lag.progressed(Instant::now());
        }
        let Some(missing) = watch.missing(&snapshot) else {
            return Ok(ProbeResult::Ready(snapshot));
        };
        last = Some(snapshot);
        Ok(ProbeResult::NotYet(missing))
    })
    .await;
    match (outcome, last) {
        // At the deadline the findings of the last snapshot say more than the timeout.
        (Err(error), Some(snapshot)) if error.kind() == ErrorKind::Transient => Ok(snapshot),
        (outcome, _) => outcome,
    }
}

/// One snapshot in which both servers answer; an error otherwise, because a server that does not
/// answer cannot be judged.
async fn observe(collector: &mut Collector, limits: &Limits) -> Result<Snapshot> {
    let snapshot = collector.observe(&SCOPE, limits).await?;
    let failure = snapshot.source.failure().or(snapshot.target.failure());
    if let Some(failure) = failure {
        return Err(failure.clone().into());
    }
    Ok(snapshot)
}

struct Watch<'a> {
    run: &'a JobContext,
    limits: &'a Limits,
    lag: Lag,
}

impl Watch<'_> {
    /// What is still missing, if it is worth waiting for; logs it.
    fn missing(&mut self, snapshot: &Snapshot) -> Option<String> {
        let all = checks::all(snapshot, self.limits);
        let waitable = worst(&all)
            .err()
            .filter(|failure| failure.kind == ErrorKind::Transient)?;
        // A lag is a number that changes all the time: it gets its own lines, and the others are
        // logged when they change.
        let (lags, others): (Vec<Finding>, Vec<Finding>) = all
            .into_iter()
            .partition(|finding| finding.id == REPLAY_LAG);
        if let Err(failure) = worst(&others) {
            self.run.report.waiting(format!("waiting: {failure}"));
        }
        let insert = snapshot.source.answer().and_then(|source| source.insert);
        let target = snapshot.target.answer();
        let replayed = target.and_then(|target| target.replay.replay);
        if worst(&lags).is_err()
            && let Some((insert, replayed)) = insert.zip(replayed)
            && let Some(line) = self
                .lag
                .record(Instant::now(), insert.bytes_since(replayed))
        {
            self.run.report.progress(line);
        }
        self.lag.may_settle().then(|| waitable.to_string())
    }
}

/// How a lag develops: the wait continues while it falls.
struct Lag {
    least: Option<u64>,
    last_decrease: Instant,
    line: Option<(Instant, u64)>,
}

impl Lag {
    fn new(now: Instant) -> Self {
        Self {
            least: None,
            last_decrease: now,
            line: None,
        }
    }

    /// The lag has fallen to a new minimum, or a further instance was being copied, within the last
    /// [`SETTLE_SECONDS_MAX`].
    fn may_settle(&self) -> bool {
        self.last_decrease.elapsed() < Duration::from_secs(SETTLE_SECONDS_MAX)
    }

    /// Something else goes on that the wait is for.
    fn progressed(&mut self, now: Instant) {
        self.last_decrease = now;
    }

    /// Records a lag in bytes; returns a line every ten seconds.
    fn record(&mut self, now: Instant, behind: u64) -> Option<String> {
        if self.least.is_none_or(|least| behind < least) {
            self.least = Some(behind);
            self.last_decrease = now;
        }
        let Some((at, before)) = self.line else {
            self.line = Some((now, behind));
            return Some(format!("the target catches up: {} behind", size(behind)));
        };
        if now.duration_since(at) < LINE {
            return None;
        }
        self.line = Some((now, behind));
        let gained = before.saturating_sub(behind) as f64 / now.duration_since(at).as_secs_f64();
        let left = if gained > 0.0 {
            format!("about {} s left", (behind as f64 / gained).ceil() as u64)
        } else {
            "not getting closer".into()
        };
        Some(format!(
            "the target catches up: {} behind, {:.1} MB/s faster than the source writes, {left}",
            size(behind),
            gained / 1e6
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_continues_while_the_lag_falls() {
        let mut lag = Lag::new(Instant::now());
        assert_eq!(
            lag.record(Instant::now(), 500_000_000).unwrap(),
            "the target catches up: 500.0 MB behind"
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(
            lag.record(Instant::now(), 400_000_000).unwrap(),
            "the target catches up: 400.0 MB behind, 10.0 MB/s faster than the source writes, \
             about 40 s left"
        );
        tokio::time::advance(Duration::from_secs(119)).await;
        assert!(lag.may_settle());
        assert!(
            lag.record(Instant::now(), 450_000_000)
                .unwrap()
                .ends_with("not getting closer")
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!lag.may_settle());
        assert_eq!(lag.record(Instant::now(), 399_000_000), None);
        assert!(lag.may_settle());
    }
}
