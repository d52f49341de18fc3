//! The wait until nothing is left that waiting could help: a standby that has just started catches
//! up first.

use std::time::Duration;

use job::{
    context::Run,
    error::{ErrorKind, Result},
    quantity::size,
    wait::{Seen, until},
};
use platform::patroni::Patroni;
use protocol::checks::{Finding, servers::LAG, worst};
use tokio::time::Instant;

use crate::{
    checks, doors,
    look::{self, Servers},
    sessions::{Ends, Sides},
    settings::Settings,
};

const POLL: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(10);
/// What has not come right by itself in this time, and is not a lag that falls, will not.
const SETTLE_SECONDS_MAX: u64 = 120;

/// The last look, and what it means.
pub struct Settled {
    /// Both sessions, as they were at the last look.
    pub sides: Sides,
    /// What the servers said.
    pub servers: Servers,
    /// The verdicts over the servers.
    pub of_servers: Vec<Finding>,
    /// The verdicts over the objects.
    pub of_objects: Vec<Finding>,
}

/// Looks until no finding can be helped by waiting, or the time is over.
///
/// # Errors
/// Config at once; Transient when no complete look succeeded in time.
pub async fn wait(
    run: &Run,
    settings: &Settings,
    ends: &Ends,
    deadline: Instant,
) -> Result<Settled> {
    let mut watch = Watch {
        run,
        settings,
        ends,
        rest: Patroni::default(),
        sides: None,
        lag: Lag::new(Instant::now()),
    };
    let mut last = None;
    let outcome = until(deadline, POLL, async || {
        let seen = match watch.look().await {
            Ok(seen) => seen,
            // What was allowed a moment ago will be again: an API server that starts refuses until
            // it has read its Roles.
            Err(error)
                if (error.kind() == ErrorKind::Transient || last.is_some())
                    && watch.lag.patient() =>
            {
                run.report.waiting(format!("waiting: {error}"));
                return Ok(Seen::NotYet(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let Some(missing) = watch.missing(&seen) else {
            return Ok(Seen::Ready(seen));
        };
        last = Some(seen);
        Ok(Seen::NotYet(missing))
    })
    .await;
    let (servers, of_servers, of_objects) = match (outcome, last) {
        (Ok(seen), _) => seen,
        // At the deadline the last look is worth more than the fact that it was the last.
        (Err(error), Some(seen)) if error.kind() == ErrorKind::Transient => seen,
        (Err(error), _) => return Err(error),
    };
    let sides = match watch.sides.take() {
        Some(sides) => sides,
        None => ends.both().await?,
    };
    Ok(Settled {
        sides,
        servers,
        of_servers,
        of_objects,
    })
}

/// What the servers said, the verdicts over them, and those over the objects.
type Look = (Servers, Vec<Finding>, Vec<Finding>);

struct Watch<'a> {
    run: &'a Run,
    settings: &'a Settings,
    ends: &'a Ends,
    rest: Patroni,
    sides: Option<Sides>,
    lag: Lag,
}

impl Watch<'_> {
    /// One look; a session that broke is opened anew at the next one.
    async fn look(&mut self) -> Result<Look> {
        let sides = match self.sides.take() {
            Some(sides) => sides,
            None => self.ends.both().await?,
        };
        let (servers, objects) = futures::try_join!(
            look::servers(&sides, self.settings),
            look::objects(self.run, self.settings, &self.rest)
        )?;
        let doors = doors::findings(self.run, self.settings, &sides.source, &objects).await?;
        self.sides = Some(sides);
        let of_servers = checks::servers(&servers, self.settings);
        let of_objects = checks::objects(&objects, doors, self.settings);
        Ok((servers, of_servers, of_objects))
    }

    /// What is still missing, if it is worth waiting for; says so.
    fn missing(&mut self, (servers, of_servers, of_objects): &Look) -> Option<String> {
        let all: Vec<Finding> = of_servers.iter().chain(of_objects).cloned().collect();
        let waitable = worst(&all)
            .err()
            .filter(|error| error.kind == ErrorKind::Transient)?;
        // A lag is a number that moves: it gets its own lines, and the others are said when they
        // change.
        let (lags, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|finding| finding.check == LAG);
        if let Err(error) = worst(&others) {
            self.run.report.waiting(format!("waiting: {error}"));
        }
        if worst(&lags).is_err()
            && let Some((source, replay)) = servers.source_lsn.zip(servers.replay.replay)
            && let Some(line) = self.lag.seen(Instant::now(), source.bytes_since(replay))
        {
            self.run.report.progress(line);
        }
        self.lag.patient().then(|| waitable.to_string())
    }
}

/// How a lag develops: as long as it falls, patience lasts.
struct Lag {
    least: Option<u64>,
    last_gain: Instant,
    line: Option<(Instant, u64)>,
}

impl Lag {
    fn new(now: Instant) -> Self {
        Self {
            least: None,
            last_gain: now,
            line: None,
        }
    }

    fn patient(&self) -> bool {
        self.last_gain.elapsed() < Duration::from_secs(SETTLE_SECONDS_MAX)
    }

    /// Takes note of a lag in bytes; a line every ten seconds.
    fn seen(&mut self, now: Instant, behind: u64) -> Option<String> {
        if self.least.is_none_or(|least| behind < least) {
            self.least = Some(behind);
            self.last_gain = now;
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
    async fn patience_lasts_as_long_as_the_lag_falls() {
        let mut lag = Lag::new(Instant::now());
        assert_eq!(
            lag.seen(Instant::now(), 500_000_000).unwrap(),
            "the target catches up: 500.0 MB behind"
        );
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(
            lag.seen(Instant::now(), 400_000_000).unwrap(),
            "the target catches up: 400.0 MB behind, 10.0 MB/s faster than the source writes, \
             about 40 s left"
        );
        tokio::time::advance(Duration::from_secs(119)).await;
        assert!(lag.patient());
        assert!(
            lag.seen(Instant::now(), 450_000_000)
                .unwrap()
                .ends_with("not getting closer")
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!lag.patient());
        assert_eq!(lag.seen(Instant::now(), 399_000_000), None);
        assert!(lag.patient());
    }
}
