//! What must hold before a cut, as pure verdicts over what was seen: validate-replication lists
//! them all beforehand, and cutover asks the same functions again before its first effect, so that
//! the two can never disagree.
//!
//! A check never decides what happens next. It says what was wanted, what was found, and whether
//! waiting may help; [`worst`] turns a list of them into the one error that ends a program.

pub mod objects;
pub mod route;
pub mod servers;

use std::fmt;

use crate::failure::{ErrorKind, Failure};

/// What a finding means for the cut, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// As wanted.
    Ok,
    /// The cut can go on; somebody should know.
    Warning,
    /// Not yet as wanted; waiting may be enough.
    NotYet,
    /// A setting of these programs names something that is not there; waiting does not help.
    Misconfigured,
    /// The cut must not begin, and waiting does not help.
    Blocker,
}

/// One check's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a few words.
    pub check: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What a cut needs, in words that fit behind "wanted ".
    pub wanted: String,
    /// What was seen, in words that fit behind "found ".
    pub found: String,
    /// What the operator does next; None where nothing is to be done.
    pub hint: Option<String>,
}

impl Finding {
    /// As wanted.
    pub fn ok(check: &'static str, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            wanted: wanted.into(),
            found: found.into(),
            hint: None,
        }
    }

    /// Not as wanted: the same finding with another verdict and what to do about it.
    #[must_use]
    pub fn but(mut self, verdict: Verdict, hint: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Finding {
    /// `check: found` when it is as wanted, else `check: wanted …, found …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Ok => write!(f, "{}: {}", self.check, self.found),
            _ => write!(
                f,
                "{}: wanted {}, found {}",
                self.check, self.wanted, self.found
            ),
        }
    }
}

/// Ok when nothing stands against a cut; warnings do not.
///
/// # Errors
/// By the gravest verdict: Refused for a blocker, Config for a wrong setting, Transient when
/// waiting may help. The message names everything of that gravity or more, the hint is that of the
/// first of the gravest.
pub fn worst(findings: &[Finding]) -> Result<(), Failure> {
    let against = |finding: &&Finding| finding.verdict > Verdict::Warning;
    let Some(gravest) = findings
        .iter()
        .filter(against)
        .max_by_key(|finding| finding.verdict)
    else {
        return Ok(());
    };
    let named: Vec<String> = findings
        .iter()
        .filter(|f| f.verdict > Verdict::NotYet || f.verdict == gravest.verdict)
        .map(Finding::to_string)
        .collect();
    let message = format!("not ready for a cut: {}", named.join("; "));
    let kind = match gravest.verdict {
        Verdict::Blocker => ErrorKind::Refused,
        Verdict::Misconfigured => ErrorKind::Config,
        Verdict::NotYet | Verdict::Warning | Verdict::Ok => ErrorKind::Transient,
    };
    // max_by_key gives the last of equals; the first is the one that others may follow from.
    let first = findings
        .iter()
        .find(|finding| finding.verdict == gravest.verdict);
    Err(Failure {
        kind,
        message,
        hint: first.and_then(|finding| finding.hint.clone()),
    })
}

/// The first few of many, and how many more there are: a message must stay one line.
pub fn listed(names: &[String]) -> String {
    const NAMED_MAX: usize = 8;
    let named = names
        .iter()
        .take(NAMED_MAX)
        .map(String::as_str)
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

    fn finding(check: &'static str, verdict: Verdict) -> Finding {
        Finding::ok(check, "this", "that").but(verdict, format!("mend {check}"))
    }

    #[test]
    fn warnings_do_not_stand_against_a_cut() {
        assert!(worst(&[]).is_ok());
        assert!(worst(&[finding("a", Verdict::Ok), finding("b", Verdict::Warning)]).is_ok());
    }

    #[test]
    fn the_gravest_decides_and_waitable_ones_are_not_named_beside_it() {
        let all = [
            finding("lag", Verdict::NotYet),
            finding("apps", Verdict::Misconfigured),
            finding("id", Verdict::Blocker),
            finding("tli", Verdict::Blocker),
        ];
        let error = worst(&all).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            "not ready for a cut: apps: wanted this, found that; id: wanted this, found that; tli: \
             wanted this, found that"
        );
        assert_eq!(error.hint.as_deref(), Some("mend id"));
        assert_eq!(worst(&all[..2]).unwrap_err().kind, ErrorKind::Config);
        assert_eq!(worst(&all[..1]).unwrap_err().kind, ErrorKind::Transient);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(listed(&names[..8]), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(listed(&names), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
