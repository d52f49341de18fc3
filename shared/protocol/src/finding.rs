//! What a check has found: its verdict, what was wanted and found, and how a list of findings is
//! shown and turned into the one failure that ends a program.

use std::fmt;

use crate::failure::{ErrorKind, Failure};

/// What a finding means for the cutover, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// As wanted.
    Ok,
    /// Not as wanted, and the user has nothing to do: these programs or the manifest deal with it,
    /// or the user has accepted it (ACCEPT).
    Handled,
    /// The cutover can go on; a person should decide whether it does.
    Decide,
    /// Not yet as wanted; waiting may be enough.
    NotYet,
    /// It blocks the cutover, or the replication before it, and waiting does not help.
    Blocker,
}

/// The answer of one check about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check, in kebab-case: what ACCEPT names.
    pub id: &'static str,
    /// The object that it is about; empty where there is only one.
    pub object: String,
    /// What it means.
    pub verdict: Verdict,
    /// What is needed, in words that fit behind "wanted "; empty where `found` says it, too.
    pub wanted: String,
    /// What was observed, in words that fit behind "found "; a sentence where `wanted` is empty.
    pub found: String,
    /// What the user does next; None where there is nothing to do.
    pub hint: Option<String>,
    /// The setting of these programs that is wrong, or `Role` for a missing permission: a blocker
    /// with it ends the program with exit code 2 instead of 3.
    pub setting: Option<&'static str>,
    /// The user has accepted it (ACCEPT).
    pub accepted: bool,
}

impl Finding {
    /// As wanted.
    pub fn ok(id: &'static str, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            id,
            object: String::new(),
            verdict: Verdict::Ok,
            wanted: wanted.into(),
            found: found.into(),
            hint: None,
            setting: None,
            accepted: false,
        }
    }

    /// The same finding with another verdict, and what to do about it.
    #[must_use]
    pub fn with(self, verdict: Verdict, hint: impl Into<String>) -> Self {
        Self {
            verdict,
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Not as wanted, and nothing to do about it.
    #[must_use]
    pub fn handled(self) -> Self {
        Self {
            verdict: Verdict::Handled,
            ..self
        }
    }

    /// The same finding about one of several objects.
    #[must_use]
    pub fn about(self, object: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            ..self
        }
    }

    /// A blocker because this setting is wrong.
    #[must_use]
    pub fn wrong_setting(self, setting: &'static str, hint: impl Into<String>) -> Self {
        Self {
            setting: Some(setting),
            ..self.with(Verdict::Blocker, hint)
        }
    }

    /// The check and its object, as ACCEPT names them: `id` or `id:object`.
    pub fn key(&self) -> String {
        if self.object.is_empty() {
            self.id.to_owned()
        } else {
            format!("{}:{}", self.id, self.object)
        }
    }

    /// The cutover does not begin.
    pub fn blocks(&self) -> bool {
        self.verdict > Verdict::Decide
    }

    /// In rising order: waiting may help, a wrong setting, nothing of these programs' own helps.
    fn gravity(&self) -> (Verdict, bool) {
        (self.verdict, self.setting.is_none())
    }
}

impl fmt::Display for Finding {
    /// `id:object: found`, and for what blocks `id:object: wanted …, found …` if `wanted` is given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.blocks() && !self.wanted.is_empty() {
            write!(
                f,
                "{}: wanted {}, found {}",
                self.key(),
                self.wanted,
                self.found
            )
        } else {
            write!(f, "{}: {}", self.key(), self.found)
        }
    }
}

/// A word of ACCEPT: a finding that the user takes on, as `id` or `id:object`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The check.
    pub id: String,
    /// The object; None for whatever object.
    pub object: Option<String>,
}

impl Acceptance {
    /// Whether it is this finding that the user accepts.
    pub fn covers(&self, finding: &Finding) -> bool {
        self.id == finding.id
            && self
                .object
                .as_ref()
                .is_none_or(|object| *object == finding.object)
    }
}

/// The gravest finding that blocks the cutover; of several the first, because the others may follow
/// from it.
pub fn gravest(findings: &[Finding]) -> Option<&Finding> {
    let blocking = findings.iter().filter(|finding| finding.blocks());
    // max_by_key gives the last of equals.
    blocking.rev().max_by_key(|finding| finding.gravity())
}

/// Ok when nothing blocks the cutover.
///
/// # Errors
/// Those of [`unless_blocked`].
pub fn worst(findings: &[Finding]) -> Result<(), Failure> {
    unless_blocked("the cutover", findings)
}

/// Ok when nothing blocks what is to come, such as `the cutover`.
///
/// # Errors
/// By the gravest finding: Refused for a blocker, Config for a wrong setting, Transient when
/// waiting may help. The message names all blockers, or else everything that is waited for; the
/// hint is that of the gravest.
pub fn unless_blocked(next: &str, findings: &[Finding]) -> Result<(), Failure> {
    let Some(gravest) = gravest(findings) else {
        return Ok(());
    };
    let named: Vec<String> = findings
        .iter()
        .filter(|finding| finding.verdict == gravest.verdict)
        .map(Finding::to_string)
        .collect();
    let kind = match (gravest.verdict, gravest.setting) {
        (Verdict::Blocker, None) => ErrorKind::Refused,
        (Verdict::Blocker, Some(_)) => ErrorKind::Config,
        _ => ErrorKind::Transient,
    };
    Err(Failure {
        kind,
        message: format!("not ready for {next}: {}", named.join("; ")),
        hint: gravest.hint.clone(),
    })
}

/// A line about one finding, or about all that are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What is printed.
    pub text: String,
    /// Reason of the Event for a finding that a person has to act on.
    pub event: Option<String>,
}

/// A line for each finding, and one line for all that are handled.
pub fn lines(findings: &[Finding]) -> Vec<Line> {
    let handled: Vec<String> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Handled)
        .map(|finding| {
            let accepted = if finding.accepted { " (accepted)" } else { "" };
            format!("{finding}{accepted}")
        })
        .collect();
    let mut lines: Vec<Line> = findings
        .iter()
        .enumerate()
        .filter(|(_, finding)| finding.verdict != Verdict::Handled)
        .map(|(index, finding)| line(finding, &findings[..index]))
        .collect();
    if !handled.is_empty() {
        lines.push(Line {
            text: format!("✓ handled: {}", handled.join("; ")),
            event: None,
        });
    }
    lines
}

/// The texts of [`lines`].
pub fn render(findings: &[Finding]) -> Vec<String> {
    lines(findings).into_iter().map(|line| line.text).collect()
}

fn line(finding: &Finding, before: &[Finding]) -> Line {
    let mark = match finding.verdict {
        Verdict::Ok | Verdict::Handled => '✓',
        Verdict::Decide | Verdict::NotYet => '!',
        Verdict::Blocker => '✗',
    };
    let hint = finding.hint.as_ref();
    let hint = hint.map_or_else(String::new, |hint| format!(" → {hint}"));
    Line {
        text: format!("{mark} {finding}{hint}"),
        event: (finding.verdict != Verdict::Ok).then(|| event_reason(finding, before)),
    }
}

/// The id in UpperCamelCase, numbered where a check has several findings: Events with the same
/// reason are taken for one that is repeated.
fn event_reason(finding: &Finding, before: &[Finding]) -> String {
    let mut reason: String = finding
        .id
        .split('-')
        .filter(|word| !word.is_empty())
        .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
        .collect();
    let earlier = before.iter().filter(|other| other.id == finding.id).count();
    if earlier > 0 {
        reason.push_str(&(earlier + 1).to_string());
    }
    reason
}

/// The first few of many, and how many more there are: a message must stay one line.
pub fn listed(names: &[impl AsRef<str>]) -> String {
    const NAMED_MAX: usize = 8;
    let named = names
        .iter()
        .take(NAMED_MAX)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &'static str, verdict: Verdict) -> Finding {
        Finding::ok(id, "this", "that").with(verdict, format!("fix {id}"))
    }

    fn wrong_setting(id: &'static str) -> Finding {
        Finding::ok(id, "this", "that").wrong_setting("APPS", format!("fix {id}"))
    }

    #[test]
    fn what_a_person_decides_does_not_block() {
        assert!(worst(&[]).is_ok());
        assert!(worst(&[finding("a", Verdict::Ok), finding("b", Verdict::Decide)]).is_ok());
    }

    #[test]
    fn the_gravest_decides_and_waitable_ones_are_not_named_beside_it() {
        let all = [
            finding("lag", Verdict::NotYet),
            wrong_setting("apps"),
            finding("id", Verdict::Blocker),
            finding("tli", Verdict::Blocker),
        ];
        let error = worst(&all).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            "not ready for the cutover: apps: wanted this, found that; id: wanted this, found \
             that; tli: wanted this, found that"
        );
        assert_eq!(error.hint.as_deref(), Some("fix id"));
        assert_eq!(worst(&all[..2]).unwrap_err().kind, ErrorKind::Config);
        assert_eq!(worst(&all[..1]).unwrap_err().kind, ErrorKind::Transient);
    }

    #[test]
    fn handled_findings_are_folded_and_the_others_have_a_mark_and_an_event() {
        let accepted = Finding {
            accepted: true,
            ..Finding::ok("apps-up", "all", "0 of 2")
                .about("web")
                .handled()
        };
        let all = [
            Finding::ok("version", "17", "17"),
            Finding::ok("autoscalers", "known", "web").handled(),
            finding("row-counts", Verdict::Decide).about("a"),
            finding("row-counts", Verdict::Blocker).about("b"),
            accepted,
        ];
        assert_eq!(
            render(&all),
            [
                "✓ version: 17",
                "! row-counts:a: that → fix row-counts",
                "✗ row-counts:b: wanted this, found that → fix row-counts",
                "✓ handled: autoscalers: web; apps-up:web: 0 of 2 (accepted)",
            ]
        );
        let events: Vec<Option<String>> = lines(&all).into_iter().map(|line| line.event).collect();
        let reason = |text: &str| Some(text.to_owned());
        assert_eq!(
            events,
            [None, reason("RowCounts"), reason("RowCounts2"), None]
        );
    }

    #[test]
    fn a_finding_whose_text_says_all_is_shown_without_what_was_wanted() {
        let sentence = Finding::ok("tablespace", "", "tablespace fast cannot be copied")
            .about("fast")
            .with(Verdict::Blocker, "drop it");
        assert_eq!(
            render(std::slice::from_ref(&sentence)),
            ["✗ tablespace:fast: tablespace fast cannot be copied → drop it"]
        );
        assert_eq!(
            unless_blocked("replication", &[sentence])
                .unwrap_err()
                .message,
            "not ready for replication: tablespace:fast: tablespace fast cannot be copied"
        );
    }

    #[test]
    fn a_long_list_is_shortened_and_says_so() {
        let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(listed(&names[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(listed(&names), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
