//! Judges a run: compares the outcomes that the clients logged with the rows read back from both
//! servers.
//!
//! Pure: no clock, no database. Instants are durations since the run's
//! [`Epoch`](crate::application::Epoch), so that all clients and the rehearsal's steps share one
//! axis.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;

/// One row's identity: which client wrote it, and its number in that client's own count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// The writer's name, for example `mastodon-web-1/0`.
    pub client: String,
    /// The row's number in the writer's own count.
    pub sequence: u64,
}

/// Which server answered: servers are distinguished by address, promotions by timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// `inet_server_addr()` of the answering session.
    pub address: String,
    /// The timeline that the insert was written on.
    pub timeline: u32,
}

/// What a client knows about one insert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The commit was confirmed: this row must exist exactly once.
    Acknowledged(Server),
    /// The server refused before anything could be committed, or nothing was sent: this row must
    /// not exist.
    Refused(String),
    /// The connection ended between sending and the answer: the row may or may not exist.
    Unknown(String),
}

/// One insert as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Which row.
    pub key: Key,
    /// When the statement that could commit the row was sent.
    pub sent: Duration,
    /// When the answer, or the loss of the connection, was observed.
    pub answered: Duration,
    /// The outcome as the client knows it.
    pub outcome: Outcome,
}

impl Attempt {
    fn acknowledged_by(&self, side: &BTreeSet<String>) -> bool {
        matches!(&self.outcome, Outcome::Acknowledged(server) if side.contains(&server.address))
    }
}

/// The servers of a cutover, and when the source was fenced.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Addresses of the source's members.
    pub source: BTreeSet<String>,
    /// Addresses of the target's instances.
    pub target: BTreeSet<String>,
    /// When the source was verified to be fenced; none if it never was.
    pub fenced: Option<Duration>,
}

/// An interval without an acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// When the last write before the interval was acknowledged.
    pub from: Duration,
    /// When the first write after the interval was acknowledged.
    pub to: Duration,
}

impl Gap {
    /// The interval's length.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

/// The result of comparing the outcomes with the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Inserts whose commit was confirmed.
    pub acknowledged: usize,
    /// Acknowledged rows found on the target.
    pub found: usize,
    /// Acknowledged rows missing on the target.
    pub lost: Vec<Key>,
    /// Rows found more than once on the target.
    pub duplicated: Vec<Key>,
    /// Inserts that were refused.
    pub refused: usize,
    /// Refused rows that exist.
    pub refused_but_found: Vec<Key>,
    /// Inserts without an answer that were committed.
    pub unknown_found: usize,
    /// Inserts without an answer that were not committed.
    pub unknown_missing: usize,
    /// Rows that no client sent.
    pub unexplained: Vec<Key>,
    /// Inserts sent after the fence that the source acknowledged.
    pub after_fence: Vec<Key>,
    /// Rows found only on the source.
    pub only_on_source: Vec<Key>,
    /// From the last write acknowledged by the source to the first one acknowledged by the target,
    /// over all clients.
    pub gap: Option<Gap>,
    /// The same for each client that wrote on both servers.
    pub gap_by_client: BTreeMap<String, Gap>,
    /// Later intervals without an acknowledged write on the target, for example its restart.
    pub later_gaps: Vec<Gap>,
}

impl Verdict {
    /// True if no promise was broken.
    pub fn holds(&self) -> bool {
        [
            &self.lost,
            &self.duplicated,
            &self.refused_but_found,
            &self.unexplained,
            &self.after_fence,
            &self.only_on_source,
        ]
        .iter()
        .all(|keys| keys.is_empty())
    }
}

/// Judges a run. `on_target` and `on_source` are the rows read back from each server (none if the
/// source cannot be read); `pause` is the shortest interval that counts as a later gap.
pub fn judge(
    attempts: &[Attempt],
    on_target: &[Key],
    on_source: &[Key],
    topology: &Topology,
    pause: Duration,
) -> Verdict {
    let found = counted(on_target);
    let mut verdict = Verdict {
        duplicated: found
            .iter()
            .filter(|(_, times)| **times > 1)
            .map(|(key, _)| (*key).clone())
            .collect(),
        ..Verdict::default()
    };
    for attempt in attempts {
        let exists = found.contains_key(&attempt.key);
        match (&attempt.outcome, exists) {
            (Outcome::Acknowledged(_), true) => verdict.found += 1,
            (Outcome::Acknowledged(_), false) => verdict.lost.push(attempt.key.clone()),
            (Outcome::Refused(_), true) => verdict.refused_but_found.push(attempt.key.clone()),
            (Outcome::Refused(_), false) => {}
            (Outcome::Unknown(_), true) => verdict.unknown_found += 1,
            (Outcome::Unknown(_), false) => verdict.unknown_missing += 1,
        }
        verdict.acknowledged += usize::from(matches!(attempt.outcome, Outcome::Acknowledged(_)));
        verdict.refused += usize::from(matches!(attempt.outcome, Outcome::Refused(_)));
        if topology.fenced.is_some_and(|fenced| attempt.sent > fenced)
            && attempt.acknowledged_by(&topology.source)
        {
            verdict.after_fence.push(attempt.key.clone());
        }
    }
    let sent: BTreeSet<&Key> = attempts.iter().map(|attempt| &attempt.key).collect();
    verdict.unexplained = found
        .keys()
        .filter(|key| !sent.contains(*key))
        .map(|key| (*key).clone())
        .collect();
    verdict.only_on_source = counted(on_source)
        .keys()
        .filter(|key| !found.contains_key(*key))
        .map(|key| (*key).clone())
        .collect();
    verdict.gap = gap(attempts, topology);
    verdict.gap_by_client = gap_by_client(attempts, topology);
    verdict.later_gaps = later_gaps(attempts, topology, pause);
    verdict
}

fn counted(rows: &[Key]) -> BTreeMap<&Key, usize> {
    let mut times = BTreeMap::new();
    for row in rows {
        *times.entry(row).or_insert(0) += 1;
    }
    times
}

fn gap<'a>(attempts: impl IntoIterator<Item = &'a Attempt>, topology: &Topology) -> Option<Gap> {
    let (mut from, mut to) = (None, None);
    for attempt in attempts {
        if attempt.acknowledged_by(&topology.source) {
            from = from.max(Some(attempt.answered));
        } else if attempt.acknowledged_by(&topology.target) {
            to = Some(to.map_or(attempt.answered, |to: Duration| to.min(attempt.answered)));
        }
    }
    Some(Gap {
        from: from?,
        to: to?,
    })
}

/// The gap of each client that wrote on both servers.
pub fn gap_by_client(attempts: &[Attempt], topology: &Topology) -> BTreeMap<String, Gap> {
    let mut by_client: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for attempt in attempts {
        by_client
            .entry(&attempt.key.client)
            .or_default()
            .push(attempt);
    }
    by_client
        .into_iter()
        .filter_map(|(client, attempts)| Some((client.to_owned(), gap(attempts, topology)?)))
        .collect()
}

fn later_gaps(attempts: &[Attempt], topology: &Topology, pause: Duration) -> Vec<Gap> {
    let mut answered: Vec<_> = attempts
        .iter()
        .filter(|a| a.acknowledged_by(&topology.target))
        .map(|a| a.answered)
        .collect();
    answered.sort_unstable();
    answered
        .windows(2)
        .map(|pair| Gap {
            from: pair[0],
            to: pair[1],
        })
        .filter(|gap| gap.length() >= pause)
        .collect()
}

/// Writes acknowledged in one time slice, by server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Start of the slice.
    pub start: Duration,
    /// Acknowledged by the source.
    pub source: u32,
    /// Acknowledged by the target.
    pub target: u32,
}

/// Acknowledged writes per slice of `width` from the epoch to the last write, empty slices
/// included: the data of the chart.
pub fn series(attempts: &[Attempt], topology: &Topology, width: Duration) -> Vec<Bucket> {
    let slice = |at: Duration| {
        usize::try_from(at.as_nanos() / width.as_nanos().max(1)).unwrap_or(usize::MAX)
    };
    let acknowledged = || {
        attempts
            .iter()
            .filter(|a| matches!(a.outcome, Outcome::Acknowledged(_)))
    };
    let Some(last) = acknowledged().map(|a| slice(a.answered)).max() else {
        return Vec::new();
    };
    let mut buckets: Vec<Bucket> = (0..=last)
        .map(|n| Bucket {
            start: width.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX)),
            ..Bucket::default()
        })
        .collect();
    for attempt in acknowledged() {
        let bucket = &mut buckets[slice(attempt.answered)];
        bucket.source += u32::from(attempt.acknowledged_by(&topology.source));
        bucket.target += u32::from(attempt.acknowledged_by(&topology.target));
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "127.1.2.3";
    const TARGET: &str = "127.1.2.9";

    fn key(client: &str, sequence: u64) -> Key {
        Key {
            client: client.into(),
            sequence,
        }
    }

    fn attempt(client: &str, sequence: u64, at_ms: u64, outcome: Outcome) -> Attempt {
        let at = Duration::from_millis(at_ms);
        Attempt {
            key: key(client, sequence),
            sent: at.saturating_sub(Duration::from_millis(2)),
            answered: at,
            outcome,
        }
    }

    fn by(address: &str, timeline: u32) -> Outcome {
        Outcome::Acknowledged(Server {
            address: address.into(),
            timeline,
        })
    }

    fn topology(fenced_ms: u64) -> Topology {
        Topology {
            source: [SOURCE.into()].into(),
            target: [TARGET.into()].into(),
            fenced: Some(Duration::from_millis(fenced_ms)),
        }
    }

    const PAUSE: Duration = Duration::from_millis(500);

    /// Two clients, a cutover between 1,100 ms and 3,000 ms, a restart of the target between 3,200
    /// ms and 4,200 ms.
    fn run() -> (Vec<Attempt>, Vec<Key>) {
        let attempts = vec![
            attempt("a", 1, 1_000, by(SOURCE, 1)),
            attempt("b", 1, 1_100, by(SOURCE, 1)),
            attempt("a", 2, 1_200, Outcome::Refused("read-only".into())),
            attempt("b", 2, 1_210, Outcome::Unknown("gone".into())),
            attempt("b", 3, 1_220, Outcome::Unknown("gone".into())),
            attempt("b", 4, 3_000, by(TARGET, 2)),
            attempt("a", 3, 3_200, by(TARGET, 2)),
            attempt("a", 4, 4_200, by(TARGET, 2)),
        ];
        let rows = vec![
            key("a", 1),
            key("b", 1),
            key("b", 2),
            key("b", 4),
            key("a", 3),
            key("a", 4),
        ];
        (attempts, rows)
    }

    #[test]
    fn a_clean_run_holds_and_its_gaps_are_measured() {
        let (attempts, rows) = run();
        let verdict = judge(&attempts, &rows, &rows[..2], &topology(2_000), PAUSE);
        assert!(verdict.holds(), "{verdict:?}");
        assert_eq!(
            (verdict.acknowledged, verdict.found, verdict.refused),
            (5, 5, 1)
        );
        assert_eq!((verdict.unknown_found, verdict.unknown_missing), (1, 1));
        assert_eq!(verdict.gap.unwrap().length(), Duration::from_millis(1_900));
        assert_eq!(
            verdict.gap_by_client["a"].length(),
            Duration::from_millis(2_200)
        );
        assert_eq!(
            verdict.gap_by_client["b"].length(),
            Duration::from_millis(1_900)
        );
        assert_eq!(
            verdict.later_gaps,
            [Gap {
                from: Duration::from_millis(3_200),
                to: Duration::from_millis(4_200)
            }]
        );
    }

    #[test]
    fn an_acknowledged_row_that_is_missing_is_lost() {
        let (attempts, mut rows) = run();
        rows.retain(|row| *row != key("b", 1));
        let verdict = judge(&attempts, &rows, &[], &topology(2_000), PAUSE);
        assert_eq!(verdict.lost, [key("b", 1)]);
        assert_eq!(verdict.found, 4);
        assert!(!verdict.holds());
    }

    #[test]
    fn a_row_that_is_there_twice_is_a_duplicate() {
        let (attempts, mut rows) = run();
        rows.push(key("a", 3));
        let verdict = judge(&attempts, &rows, &[], &topology(2_000), PAUSE);
        assert_eq!(verdict.duplicated, [key("a", 3)]);
        assert_eq!(verdict.found, 5, "a duplicate does not replace another row");
        assert!(!verdict.holds());
    }

    #[test]
    fn a_write_accepted_by_the_source_after_the_fence_is_found_even_if_the_target_has_it() {
        let (mut attempts, mut rows) = run();
        attempts.push(attempt("unmanaged", 1, 2_500, by(SOURCE, 1)));
        rows.push(key("unmanaged", 1));
        let verdict = judge(&attempts, &rows, &[], &topology(2_000), PAUSE);
        assert_eq!(verdict.after_fence, [key("unmanaged", 1)]);
        assert!(!verdict.holds());
    }

    #[test]
    fn a_write_sent_before_the_fence_and_answered_after_it_is_no_breach() {
        let (attempts, rows) = run();
        let verdict = judge(&attempts, &rows, &[], &topology(1_099), PAUSE);
        assert!(verdict.after_fence.is_empty());
    }

    #[test]
    fn rows_that_only_the_source_has_break_the_promise() {
        let (attempts, rows) = run();
        let verdict = judge(
            &attempts,
            &rows,
            &[key("a", 1), key("x", 9)],
            &topology(2_000),
            PAUSE,
        );
        assert_eq!(verdict.only_on_source, [key("x", 9)]);
        assert!(!verdict.holds());
    }

    #[test]
    fn refused_rows_that_exist_and_rows_that_no_client_sent_are_named() {
        let (attempts, mut rows) = run();
        rows.extend([key("a", 2), key("x", 9)]);
        let verdict = judge(&attempts, &rows, &[], &topology(2_000), PAUSE);
        assert_eq!(verdict.refused_but_found, [key("a", 2)]);
        assert_eq!(verdict.unexplained, [key("x", 9)]);
        assert!(!verdict.holds());
    }

    #[test]
    fn without_a_write_on_both_sides_there_is_no_gap() {
        let verdict = judge(
            &[attempt("a", 1, 10, by(SOURCE, 1))],
            &[key("a", 1)],
            &[],
            &topology(20),
            PAUSE,
        );
        assert_eq!(verdict.gap, None);
        assert!(verdict.gap_by_client.is_empty());
    }

    #[test]
    fn the_series_keeps_empty_slices() {
        let (attempts, _) = run();
        let series = series(&attempts, &topology(2_000), Duration::from_millis(100));
        assert_eq!(series.len(), 43);
        assert_eq!(series.iter().map(|b| b.source).sum::<u32>(), 2);
        assert_eq!(series.iter().map(|b| b.target).sum::<u32>(), 3);
        assert_eq!(
            series[20],
            Bucket {
                start: Duration::from_millis(2_000),
                source: 0,
                target: 0
            }
        );
        assert_eq!(series[30].target, 1);
    }
}
