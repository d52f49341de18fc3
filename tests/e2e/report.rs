//! The verdict and the table of a run. Pure: no clock and no I/O.

use std::{collections::BTreeMap, time::Duration};

use harness::ledger::{Gap, Verdict};
use serde_json::{Value, json};

use crate::clients::Pod;

/// The longest acceptable interval without a write once the downtime has ended.
const LATER_MAX: Duration = Duration::from_secs(1);

/// The figures of one client.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// The client connects through the poolers.
    pub pooled: bool,
    /// From its last acknowledged write on the source to its first on the target.
    pub cutover: Option<Gap>,
    /// Its longest interval without an acknowledged write afterwards.
    pub later: Option<Gap>,
    /// Its errors, disconnects and reads.
    pub session: Pod,
}

/// The result of a whole run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The run's settings in one line.
    pub description: String,
    /// Whether clients behind the poolers must see no error at all: ROUTE=service.
    pub unnoticed: bool,
    /// The longest acceptable wait of a client.
    pub bar: Duration,
    /// How long the clients were observed after the cutover.
    pub watched: Duration,
    /// The machine's load just before the cutover.
    pub load: String,
    /// The ledger's verdict.
    pub verdict: Verdict,
    /// The clients by name.
    pub clients: BTreeMap<String, Client>,
    /// Milliseconds from the block of writes to each step.
    pub steps: Vec<(&'static str, i64)>,
    /// What the audit log showed.
    pub permissions: String,
    /// Failures that the other checks found.
    pub failures: Vec<String>,
}

impl Report {
    /// Every broken promise of the run.
    pub fn all_failures(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let broken = [
            ("acknowledged writes lost", verdict.lost.len()),
            ("writes found twice", verdict.duplicated.len()),
            (
                "writes accepted by the source after it was stopped",
                verdict.after_fence.len(),
            ),
            ("writes on the source only", verdict.only_on_source.len()),
            (
                "refused writes found on the target",
                verdict.refused_but_found.len(),
            ),
            ("rows that no client sent", verdict.unexplained.len()),
        ];
        let mut failures: Vec<String> = broken
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        if verdict.acknowledged == 0 || verdict.gap.is_none() {
            failures.push("no client wrote on both servers: nothing is verified".to_owned());
        }
        for (name, client) in &self.clients {
            failures.extend(self.client_failures(name, client));
        }
        failures.extend(self.failures.iter().cloned());
        failures
    }

    fn client_failures(&self, name: &str, client: &Client) -> Vec<String> {
        let (errors, gone) = (
            client.session.errors.len(),
            client.session.disconnects.len(),
        );
        let mut failures = Vec::new();
        if self.unnoticed && client.pooled && errors + gone > 0 {
            let first = client
                .session
                .errors
                .iter()
                .chain(&client.session.disconnects)
                .next();
            failures.push(format!(
                "{name} saw {errors} errors and {gone} disconnects, the first: \
                 {first:?}"
            ));
        }
        // With ROUTE=config nothing redirects the unmanaged writer: its writes end with the source.
        if client.cutover.is_none() && (client.pooled || self.unnoticed) {
            failures.push(format!("{name} did not write on both servers"));
        }
        if let Some(later) = client.later.filter(|gap| gap.length() > LATER_MAX) {
            failures.push(format!(
                "{name} waited {} ms again after the cutover",
                later.length().as_millis()
            ));
        }
        failures
    }

    /// The longest wait of a client behind the poolers.
    pub fn longest(&self) -> Option<Duration> {
        let pooled = self.clients.values().filter(|client| client.pooled);
        pooled
            .filter_map(|client| client.cutover.map(|gap| gap.length()))
            .max()
    }

    /// The longest wait, where it is above the limit.
    fn above_bar(&self) -> Option<Duration> {
        self.longest().filter(|longest| *longest > self.bar)
    }

    /// The verdict. A wait above the limit does not fail a run, because it depends on the machine.
    fn verdict_text(&self) -> String {
        let word = if self.all_failures().is_empty() {
            "PASS"
        } else {
            "FAIL"
        };
        match self.above_bar() {
            Some(longest) => format!(
                "{word}, but a client waited {} ms, above the limit of {} ms",
                longest.as_millis(),
                self.bar.as_millis()
            ),
            None => word.to_owned(),
        }
    }

    /// The report as lines for the terminal.
    pub fn lines(&self) -> Vec<String> {
        let failures = self.all_failures();
        let mut lines = vec![format!("{}  {}", self.verdict_text(), self.description)];
        lines.extend(failures.iter().map(|failure| format!("  ✗ {failure}")));
        lines.push(String::new());
        lines.push(format!(
            "  {:<52}{:>11}{:>10}{:>8}{:>13}",
            "CLIENT", "cutover ms", "later ms", "errors", "disconnects"
        ));
        for (name, client) in &self.clients {
            let name = if client.pooled {
                name.clone()
            } else {
                format!("{name} (directly to the leader)")
            };
            lines.push(format!(
                "  {name:<52}{:>11}{:>10}{:>8}{:>13}",
                ms(client.cutover),
                ms(client.later),
                client.session.errors.len(),
                client.session.disconnects.len()
            ));
        }
        lines.push(format!(
            "  cutover: last acknowledged on the source to first on the target; later: the longest \
             wait in the {} s after it",
            self.watched.as_secs()
        ));
        lines.push(String::new());
        let verdict = &self.verdict;
        lines.push(format!(
            "  acknowledged {}, found {}, lost {}, twice {}, accepted by the source after the \
             fence {}, unanswered {}, of which {} were committed",
            verdict.acknowledged,
            verdict.found,
            verdict.lost.len(),
            verdict.duplicated.len(),
            verdict.after_fence.len(),
            verdict.unknown_found + verdict.unknown_missing,
            verdict.unknown_found
        ));
        if let Some(longest) = self.longest() {
            let word = self.above_bar().map_or("within", |_| "above");
            lines.push(format!(
                "  longest wait through the poolers {} ms, {word} the limit of {} ms; load of this \
                 machine {}",
                longest.as_millis(),
                self.bar.as_millis(),
                self.load
            ));
        }
        lines.push(format!("  permissions: {}", self.permissions));
        lines.push(String::new());
        lines.extend(
            self.steps
                .iter()
                .map(|(name, at)| format!("  {:<52}{:>8}", name, format!("+{at}"))),
        );
        lines
    }

    /// The report as JSON, for tools and for medians over several runs.
    pub fn summary(&self) -> Value {
        let milliseconds = |gap: Option<Gap>| gap.map(|gap| gap.length().as_millis() as u64);
        let clients = self.clients.iter().map(|(name, client)| {
            let session = &client.session;
            let value = json!({
                "pooled": client.pooled, "cutover_ms": milliseconds(client.cutover),
                "later_ms": milliseconds(client.later),
                "errors": session.errors.len(), "disconnects": session.disconnects.len(),
            });
            (name.clone(), value)
        });
        json!({
            "run": self.description, "load": self.load, "failures": self.all_failures(),
            "longest_ms": self.longest().map(|longest| longest.as_millis() as u64),
            "acknowledged": self.verdict.acknowledged, "found": self.verdict.found,
            "lost": self.verdict.lost.len(),
            "clients": clients.collect::<serde_json::Map<_, _>>(),
            "ms_since_block": self.steps.iter().map(
                |(name, at)| json!([name, at])
            ).collect::<Vec<_>>(),
        })
    }
}

fn ms(gap: Option<Gap>) -> String {
    gap.map_or_else(
        || "–".to_owned(),
        |gap| gap.length().as_millis().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use harness::ledger::Key;

    use super::*;

    fn gap(ms: u64) -> Option<Gap> {
        let from = Duration::from_secs(100);
        Some(Gap {
            from,
            to: from + Duration::from_millis(ms),
        })
    }

    fn passed() -> Report {
        let client = |pooled, cutover| Client {
            pooled,
            cutover: gap(cutover),
            later: gap(60),
            ..Client::default()
        };
        Report {
            description: "ROUTE=service".into(),
            unnoticed: true,
            bar: Duration::from_millis(3_500),
            verdict: Verdict {
                acknowledged: 10,
                found: 10,
                gap: gap(3_000),
                ..Verdict::default()
            },
            clients: [
                ("web".to_owned(), client(true, 3_100)),
                ("unmanaged".to_owned(), client(false, 3_900)),
            ]
            .into(),
            ..Report::default()
        }
    }

    #[test]
    fn a_clean_run_passes_and_the_limit_applies_to_clients_behind_the_poolers() {
        let report = passed();
        assert_eq!(report.all_failures(), Vec::<String>::new());
        let text = report.lines().join("\n");
        assert!(
            text.starts_with("PASS")
                && text.contains("longest wait through the poolers 3100 ms, within"),
            "{text}"
        );
    }

    #[test]
    fn a_wait_above_the_limit_is_named_in_the_line_of_the_verdict() {
        let mut report = passed();
        report.bar = Duration::from_millis(3_000);
        let line = report.lines().swap_remove(0);
        assert_eq!(
            line,
            "PASS, but a client waited 3100 ms, above the limit of 3000 ms  ROUTE=service"
        );
        report.failures.push("no receipt".into());
        assert!(report.lines().swap_remove(0).starts_with("FAIL, but"));
    }

    /// Each promise, broken alone, fails the run.
    #[test]
    fn each_broken_promise_fails_the_run() {
        let key = || Key {
            client: "web".into(),
            sequence: 7,
        };
        let web = |report: &mut Report| report.clients.get_mut("web").unwrap().clone();
        let breaches: [fn(&mut Report, Key); 9] = [
            |report, key| report.verdict.lost = vec![key],
            |report, key| report.verdict.after_fence = vec![key],
            |report, key| report.verdict.unexplained = vec![key],
            |report, _| report.verdict.gap = None,
            |report, _| {
                report
                    .clients
                    .get_mut("web")
                    .unwrap()
                    .session
                    .errors
                    .push("x".into())
            },
            |report, _| {
                report
                    .clients
                    .get_mut("web")
                    .unwrap()
                    .session
                    .disconnects
                    .push("x".into())
            },
            |report, _| report.clients.get_mut("web").unwrap().later = gap(1_001),
            |report, _| report.clients.get_mut("web").unwrap().cutover = None,
            |report, _| report.failures.push("no receipt".into()),
        ];
        for (number, breach) in breaches.iter().enumerate() {
            let mut report = passed();
            assert!(web(&mut report).cutover.is_some());
            breach(&mut report, key());
            assert_eq!(
                report.all_failures().len(),
                1,
                "breach {number}: {:?}",
                report.all_failures()
            );
        }
    }

    #[test]
    fn clients_outside_the_poolers_and_all_clients_of_the_config_route_may_see_errors() {
        let mut report = passed();
        report
            .clients
            .get_mut("unmanaged")
            .unwrap()
            .session
            .errors
            .push("57P01".into());
        assert!(report.all_failures().is_empty());
        report.unnoticed = false;
        report.clients.get_mut("unmanaged").unwrap().cutover = None;
        report
            .clients
            .get_mut("web")
            .unwrap()
            .session
            .errors
            .push("25006".into());
        assert!(report.all_failures().is_empty());
    }

    #[test]
    fn a_run_that_did_nothing_does_not_pass() {
        assert!(!Report::default().all_failures().is_empty());
    }
}
