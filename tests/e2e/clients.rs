//! Parses the clients' log lines (written by `writer.sh`) into attempts for the ledger and counts
//! for the table.
//!
//! Instants are durations since 1970, so that the clients' clocks, the receipt and the log share
//! one axis.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};
use harness::ledger::{Attempt, Gap, Key, Outcome, Server};

/// The parsed log lines of all clients.
#[derive(Clone, Debug, Default)]
pub struct ClientOutput {
    /// Every row that a client tried to write.
    pub attempts: Vec<Attempt>,
    /// The sessions of each pod, by pod name.
    pub pods: BTreeMap<String, Pod>,
}

/// What one client observed.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Writes or reads that were refused or got no answer, counted from the client's first session
    /// on.
    pub errors: Vec<String>,
    /// Sessions that the client did not end itself.
    pub disconnects: Vec<String>,
    /// When a reader received rows, and from which server.
    pub reads: Vec<(Duration, String)>,
    /// The client has had a session.
    opened: bool,
    /// The client wrote its last line.
    ended: bool,
}

impl ClientOutput {
    /// Reads the lines of all pods, in any order of pods.
    ///
    /// # Errors
    /// A line that writer.sh cannot have written.
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut output = Self::default();
        let mut known = BTreeSet::new();
        // The lines of a pod that was followed and read again at the end appear twice.
        for line in lines.into_iter().filter(|line| known.insert(*line)) {
            output
                .line(line)
                .with_context(|| format!("a line of a client: {line:?}"))?;
        }
        Ok(output)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let (pod, line) = line.split_once(' ').context("no pod")?;
        let (verb, rest) = line.split_once(' ').context("no verb")?;
        let entry = self.pods.entry(pod.to_owned()).or_default();
        match verb {
            "ack" | "no" | "unknown" => {
                let attempt = attempt(pod, verb, rest)?;
                // A client that has had no session yet waits for the source to become ready.
                if entry.opened && !matches!(attempt.outcome, Outcome::Acknowledged(_)) {
                    entry.errors.push(text(&attempt.outcome).to_owned());
                }
                self.attempts.push(attempt);
            }
            "open" => entry.opened = true,
            "read" => {
                let (at, server) = rest.split_once(' ').context("no server")?;
                entry.reads.push((instant(at)?, server.to_owned()));
            }
            "unread" if entry.opened => entry.errors.push(after_instant(rest)),
            "unread" => {}
            "gone" => entry.disconnects.push(after_instant(rest)),
            "end" => entry.ended = true,
            other => anyhow::bail!("unknown verb {other:?}"),
        }
        Ok(())
    }

    /// Pods whose log has no last line, so that some outcomes are unknown.
    pub fn broken_off(&self) -> Vec<&str> {
        self.pods
            .iter()
            .filter(|(_, pod)| !pod.ended)
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

fn attempt(pod: &str, verb: &str, rest: &str) -> Result<Attempt> {
    let mut words = rest.splitn(4, ' ');
    let mut word = || words.next().context("a field is missing");
    let (sequence, sent, answered, rest) = (
        word()?.parse()?,
        instant(word()?)?,
        instant(word()?)?,
        word()?,
    );
    let outcome = match verb {
        "ack" => {
            let (address, timeline) = rest.split_once(' ').context("no timeline")?;
            Outcome::Acknowledged(Server {
                address: address.to_owned(),
                timeline: u32::from_str_radix(timeline, 16)
                    .with_context(|| format!("a timeline: {timeline:?}"))?,
            })
        }
        "unknown" => Outcome::Unknown(rest.to_owned()),
        _ => Outcome::Refused(rest.to_owned()),
    };
    let client = pod.to_owned();
    Ok(Attempt {
        key: Key { client, sequence },
        sent,
        answered,
        outcome,
    })
}

fn text(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Acknowledged(server) => &server.address,
        Outcome::Refused(why) | Outcome::Unknown(why) => why,
    }
}

fn after_instant(rest: &str) -> String {
    rest.split_once(' ')
        .map_or(rest, |(_, text)| text)
        .to_owned()
}

/// Seconds since 1970 with six digits after the point.
fn instant(text: &str) -> Result<Duration> {
    let (seconds, micros) = text
        .split_once('.')
        .with_context(|| format!("an instant: {text:?}"))?;
    Ok(Duration::from_secs(seconds.parse()?) + Duration::from_micros(micros.parse()?))
}

/// The Deployment of a pod: the pod's name without the two suffixes that Kubernetes appends. A
/// client's wait spans pods from before and after the cutover, whose names differ.
pub fn deployment(pod: &str) -> &str {
    pod.rsplitn(3, '-').nth(2).unwrap_or(pod)
}

/// Each client's longest interval between acknowledged writes on the target, by the name that
/// `named` returns.
pub fn longest_later(
    attempts: &[Attempt],
    target: &BTreeSet<String>,
    named: impl Fn(&str) -> &str,
) -> BTreeMap<String, Gap> {
    let mut by_client: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for attempt in attempts {
        if matches!(
            &attempt.outcome, Outcome::Acknowledged(server) if target.contains(&server.address)
        ) {
            by_client
                .entry(named(&attempt.key.client))
                .or_default()
                .push(attempt.answered);
        }
    }
    let longest = by_client.into_iter().filter_map(|(client, mut answered)| {
        answered.sort_unstable();
        let gaps = answered.windows(2).map(|pair| Gap {
            from: pair[0],
            to: pair[1],
        });
        Some((client.to_owned(), gaps.max_by_key(Gap::length)?))
    });
    longest.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "web-6f5b-x2x no 1 100.000000 100.100000 psql: error: connection refused
web-6f5b-x2x open 100.500000
web-6f5b-x2x ack 2 101.000000 101.002500 10.0.0.1 0000000A
web-6f5b-x2x no 3 102.000000 102.001000 ERROR:  25006: cannot execute INSERT in a read-only \
        transaction
web-6f5b-x2x unknown 4 103.000000 103.100000 FATAL:  57P01: terminating connection
web-6f5b-x2x gone 103.100000 FATAL:  57P01: terminating connection
web-6f5b-x2x open 104.000000
web-6f5b-x2x ack 5 104.100000 104.200000 10.0.0.2 0000000B
web-6f5b-x2x ack 6 104.250000 105.400000 10.0.0.2 0000000B
web-6f5b-x2x end 106.000000
reader-1-a open 99.000000
reader-1-a read 100.000000 10.0.0.3
reader-1-a unread 101.000000 no answer";

    fn output() -> ClientOutput {
        // The pod was followed, and its log read again at the end.
        ClientOutput::read(LINES.lines().chain(LINES.lines())).unwrap()
    }

    #[test]
    fn every_row_becomes_an_attempt_once() {
        let output = output();
        let sequences: Vec<u64> = output
            .attempts
            .iter()
            .map(|attempt| attempt.key.sequence)
            .collect();
        assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            output.attempts[1].answered,
            Duration::from_micros(101_002_500)
        );
        let server = |address: &str, timeline| {
            Outcome::Acknowledged(Server {
                address: address.into(),
                timeline,
            })
        };
        assert_eq!(output.attempts[1].outcome, server("10.0.0.1", 10));
        assert!(
            matches!(&output.attempts[3].outcome, Outcome::Unknown(why) if why.contains("57P01"))
        );
    }

    #[test]
    fn errors_count_from_the_first_session_and_a_clients_own_end_is_no_disconnect() {
        let output = output();
        let web = &output.pods["web-6f5b-x2x"];
        assert_eq!((web.errors.len(), web.disconnects.len()), (2, 1));
        let reader = &output.pods["reader-1-a"];
        assert_eq!(
            (reader.errors.as_slice(), reader.reads.len()),
            (&["no answer".to_owned()][..], 1)
        );
        assert_eq!(output.broken_off(), ["reader-1-a"]);
    }

    #[test]
    fn a_line_that_is_not_a_clients_is_an_error() {
        assert!(
            ClientOutput::read(["web-1-a /app/writer.sh: line 9: fork: no more processes"])
                .is_err()
        );
    }

    #[test]
    fn the_longest_wait_after_the_cutover_is_per_client() {
        let later = longest_later(&output().attempts, &["10.0.0.2".into()].into(), deployment);
        assert_eq!(later["web"].length(), Duration::from_micros(1_200_000));
    }
}
