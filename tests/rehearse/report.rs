//! What a rehearsal found out, and the two ways to show it: a page for a change request ([`page`])
//! and lines for the terminal ([`verdict_lines`]).
//!
//! Pure: no clock, no cluster. All instants lie on the axis of the ledger, durations since the
//! run's origin.

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

/// Everything that a rehearsal leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When it began.
    pub began: Timestamp,
    /// How long it took, without the set-up.
    pub took: Duration,
    /// What was migrated to what.
    pub names: Names,
    /// The ledger's verdict on every write.
    pub verdict: Verdict,
    /// Acknowledged writes in slices of equal width, empty slices included.
    pub series: Vec<Bucket>,
    /// When the block of the source's writes was asked for: the zero of everything that is shown.
    pub block: Option<Duration>,
    /// When the target accepted its first write, whoever sent it (the cutover proves one before it
    /// routes).
    pub first_write: Option<Duration>,
    /// What the cutover did, in order.
    pub steps: Vec<Step>,
    /// The target's own time from being told to being primary.
    pub promoting: Option<Span>,
    /// The target's own time to restart its server after the promotion.
    pub restarting: Option<Span>,
    /// Instants to mark, in order: DOWNTIME BEGINS, POINT OF NO RETURN, DOWNTIME ENDS.
    pub marks: Vec<Mark>,
    /// The writer that nobody told about the migration.
    pub unmanaged: Option<UnmanagedWriter>,
    /// Writes of the application that were not acknowledged around the cut: what its clients
    /// noticed beside the wait.
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
    /// Where both are.
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
    /// What was done, in a few words.
    pub name: String,
    /// When it began.
    pub from: Duration,
    /// When it was done; none when it never was.
    pub to: Option<Duration>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its begin.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
}

/// An instant worth a line in the chart.
#[derive(Clone, Debug)]
pub struct Mark {
    /// What became true, for example DOWNTIME BEGINS.
    pub name: String,
    /// When.
    pub at: Duration,
}

/// A writer outside the list of Deployments, connected to the source until the source ended that.
#[derive(Clone, Debug)]
pub struct UnmanagedWriter {
    /// Its name.
    pub name: String,
    /// Its inserts whose commit was confirmed.
    pub acknowledged: usize,
    /// Those of them that the target has.
    pub found: usize,
    /// Those that it has not.
    pub lost: usize,
}

/// One run of one program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name, with what was special about the run: `cutover`, `cutover (dry run)`.
    pub name: String,
    /// How it ended; none when a signal ended it.
    pub exit: Option<i32>,
    /// What it printed.
    pub lines: Vec<String>,
}

impl Report {
    /// True when nothing went wrong.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// False when the run ended before there was anything to judge: then no count of zero is good
    /// news.
    pub fn judged(&self) -> bool {
        self.verdict.acknowledged > 0
    }

    /// What went wrong, a clause each, the worst first. A run that proves nothing is a failure too.
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
            ("refused, and yet there", &verdict.refused_but_found),
            ("sent by nobody", &verdict.unexplained),
        ];
        let broken = breaches.iter().filter(|(_, keys)| !keys.is_empty());
        failures.extend(
            broken.map(|(said, keys)| format!("{} {said}", counted(keys.len(), "write", "writes"))),
        );
        if let Some(writer) = self.unmanaged.as_ref().filter(|writer| writer.lost > 0) {
            failures.push(format!(
                "{} of the forgotten writer's writes lost",
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
            failures.extend(self.unproved());
        }
        failures
    }

    /// What a run that came to its end must have shown.
    fn unproved(&self) -> impl Iterator<Item = String> {
        [
            (
                !self.judged(),
                "no write was acknowledged, so nothing is proved",
            ),
            (
                self.judged() && self.verdict.gap.is_none(),
                "no write was acknowledged on both sides of the cut",
            ),
            (self.receipt.is_empty(), "the cutover left no receipt"),
        ]
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, said)| said.to_owned())
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
    fn a_clean_run_passes_and_says_so_in_words() {
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
    fn a_second_wait_is_not_kept_quiet() {
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

    /// Every promise, broken alone, must fail the run.
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
