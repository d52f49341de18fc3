//! The result of a rehearsal, shown as a page for a change request (module `page`) and as lines for
//! the terminal ([`verdict_lines`]).
//!
//! Pure: no clock, no cluster. All instants are on the ledger's axis: durations since the run's
//! epoch.

mod appendix;
pub mod budget;
#[cfg(test)]
pub mod example;
pub mod numbers;
mod page;
mod tables;
mod text;

use std::{collections::BTreeMap, time::Duration};

use harness::ledger::{Bucket, Verdict};
use jiff::Timestamp;

use budget::RestartGap;
use numbers::{counted, grouped, seconds, wait};

pub use page::page;
pub use text::verdict_lines;

/// The result of a rehearsal.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When it began.
    pub began: Timestamp,
    /// How long it took, without installing the programs.
    pub took: Duration,
    /// Names and versions of source and target.
    pub names: Names,
    /// The ledger's verdict on every write.
    pub verdict: Verdict,
    /// Acknowledged writes in slices of equal width, empty slices included.
    pub series: Vec<Bucket>,
    /// When the block of writes on the source was requested: the zero of the page's axis.
    pub block: Option<Duration>,
    /// When the target accepted its first write, from any client (the cutover verifies one before
    /// it routes).
    pub first_write: Option<Duration>,
    /// What the cutover did, in order.
    pub steps: Vec<Step>,
    /// The target's own time from the request to being primary.
    pub promoting: Option<Span>,
    /// The target's own time for its restart after the promotion.
    pub restarting: Option<Span>,
    /// Instants to mark, in order: DOWNTIME BEGINS, POINT OF NO RETURN, DOWNTIME ENDS.
    pub marks: Vec<Mark>,
    /// The unmanaged writer's account.
    pub unmanaged: Option<UnmanagedWriter>,
    /// Writes of the application that were not acknowledged around the cutover: the errors that its
    /// clients saw.
    pub errors: Option<usize>,
    /// The receipt that the cutover left: the keys of its ConfigMap.
    pub receipt: BTreeMap<String, String>,
    /// The programs in the order in which they ran.
    pub programs: Vec<Program>,
    /// Why the rehearsal stopped early, if it did.
    pub broken: Option<String>,
}

/// Names and versions of the parts.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The `postgresql` resource.
    pub source_cluster: String,
    /// The CNPG Cluster.
    pub target_cluster: String,
    /// Their namespace.
    pub namespace: String,
    /// Version of the source's PostgreSQL, for example 17.10.
    pub source_postgres: String,
    /// Version of the target's PostgreSQL.
    pub target_postgres: String,
    /// Version of Patroni.
    pub patroni: String,
    /// Version of the API server.
    pub kubernetes: String,
}

/// A step of the cutover.
#[derive(Clone, Debug)]
pub struct Step {
    /// The step in a few words.
    pub name: String,
    /// When it began.
    pub from: Duration,
    /// When it ended; None if it never did.
    pub to: Option<Duration>,
}

/// A time interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
}

/// An instant worth a line in the chart.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The event, for example DOWNTIME BEGINS.
    pub name: String,
    /// When.
    pub at: Duration,
}

/// A writer outside of the Deployments, connected to the source until the source ended its session.
#[derive(Clone, Debug)]
pub struct UnmanagedWriter {
    /// Its name.
    pub name: String,
    /// Its inserts whose commit was confirmed.
    pub acknowledged: usize,
    /// Those found on the target.
    pub found: usize,
    /// Those missing on the target.
    pub lost: usize,
}

/// One run of one program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program's name and variant: `cutover`, `cutover (dry run)`.
    pub name: String,
    /// The exit code; None if a signal ended the program.
    pub exit: Option<i32>,
    /// Its output.
    pub lines: Vec<String>,
}

impl Report {
    /// True if nothing failed.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// False if the run ended before there was anything to judge: then a count of zero is
    /// meaningless.
    pub fn judged(&self) -> bool {
        self.verdict.acknowledged > 0
    }

    /// All failures, one clause each, the most severe first. A run that verifies nothing fails,
    /// too.
    pub fn failures(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let mut failures = Vec::new();
        if !verdict.lost.is_empty() {
            let (lost, all) = (grouped(verdict.lost.len()), grouped(verdict.acknowledged));
            failures.push(format!("{lost} of {all} acknowledged writes lost"));
        }
        let breaches = [
            (
                "accepted by the source after the fence",
                &verdict.after_fence,
            ),
            ("on the target more than once", &verdict.duplicated),
            ("left behind on the source", &verdict.only_on_source),
            (
                "refused, but found on the target",
                &verdict.refused_but_found,
            ),
            ("not sent by any client", &verdict.unexplained),
        ];
        let broken = breaches.iter().filter(|(_, keys)| !keys.is_empty());
        failures.extend(
            broken.map(|(what, keys)| format!("{} {what}", counted(keys.len(), "write", "writes"))),
        );
        if let Some(writer) = self.unmanaged.as_ref().filter(|writer| writer.lost > 0) {
            failures.push(format!(
                "{} writes of the unmanaged writer lost",
                grouped(writer.lost)
            ));
        }
        failures.extend(
            self.broken
                .as_ref()
                .map(|why| format!("the rehearsal stopped early: {why}")),
        );
        failures.extend(self.programs.iter().filter_map(Program::failure));
        if self.broken.is_none() {
            failures.extend(self.missing_evidence());
        }
        failures
    }

    /// Failures of a finished run that lacks evidence.
    fn missing_evidence(&self) -> impl Iterator<Item = String> {
        [
            (
                !self.judged(),
                "no write was acknowledged, so nothing is verified",
            ),
            (
                self.judged() && self.verdict.gap.is_none(),
                "no client wrote before and after the cutover",
            ),
            (self.receipt.is_empty(), "the cutover left no receipt"),
        ]
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, failure)| failure.to_owned())
    }

    /// The verdict in a sentence or two.
    pub fn summary(&self) -> String {
        let failures = self.failures();
        let Verdict {
            acknowledged,
            found,
            ..
        } = self.verdict;
        if !failures.is_empty() {
            return format!("{}.", failures.join("; "));
        }
        let mut text = format!(
            "{} acknowledged, {} were found exactly once on the new primary; none was accepted by \
             the source after the fence.",
            counted(acknowledged, "write was", "writes were"),
            grouped(found),
        );
        if let Some((least, most)) = self.client_waits() {
            text.push_str(&format!(" Clients waited {}", wait(least, most)));
            if let RestartGap::SecondWait(gap) = self.restart_gap() {
                text.push_str(&format!(
                    ", and {} again when the target restarted",
                    seconds(gap.length())
                ));
            }
            text.push('.');
        }
        text
    }
}

impl Program {
    fn failure(&self) -> Option<String> {
        match self.exit {
            Some(0) => None,
            Some(code) => Some(format!("{} ended with exit code {code}", self.name)),
            None => Some(format!("{} was ended by a signal", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use harness::ledger::Key;

    use super::{example::*, *};

    #[test]
    fn a_clean_run_passes_and_its_summary_says_so() {
        let report = passed();
        assert_eq!(report.failures(), Vec::<String>::new());
        assert_eq!(
            report.summary(),
            "4,812 writes were acknowledged, 4,812 were found exactly once on the new primary; \
             none was accepted by the source \
             after the fence. Clients waited 3.7 to 4.4 s."
        );
    }

    #[test]
    fn a_second_wait_is_reported() {
        let summary = odd().summary();
        assert!(
            summary.ends_with(", and 1.5 s again when the target restarted."),
            "{summary}"
        );
    }

    #[test]
    fn lost_writes_come_first_in_the_sentence() {
        let report = failed();
        assert!(!report.passed());
        assert!(
            report
                .summary()
                .starts_with("3 of 4,812 acknowledged writes lost; "),
            "{}",
            report.summary()
        );
    }

    /// Each promise, broken alone, fails the run.
    #[test]
    fn each_broken_promise_fails_the_run() {
        let key = || {
            vec![Key {
                client: "mastodon-web-1".into(),
                sequence: 7,
            }]
        };
        let breaches: [fn(&mut Report, Vec<Key>); 13] = [
            |report, key| report.verdict.lost = key,
            |report, key| report.verdict.after_fence = key,
            |report, key| report.verdict.duplicated = key,
            |report, key| report.verdict.only_on_source = key,
            |report, key| report.verdict.refused_but_found = key,
            |report, key| report.verdict.unexplained = key,
            |report, _| report.verdict.acknowledged = 0,
            |report, _| report.verdict.gap = None,
            |report, _| report.receipt.clear(),
            |report, _| report.broken = Some("no leader".into()),
            |report, _| report.programs[0].exit = Some(3),
            |report, _| report.programs[0].exit = None,
            |report, _| report.unmanaged.as_mut().unwrap().lost = 1,
        ];
        for (number, breach) in breaches.iter().enumerate() {
            let mut report = passed();
            breach(&mut report, key());
            assert_eq!(
                report.failures().len(),
                1,
                "breach {number}: {:?}",
                report.failures()
            );
        }
    }

    #[test]
    fn a_run_that_did_nothing_does_not_pass() {
        assert!(!Report::default().passed());
    }
}
