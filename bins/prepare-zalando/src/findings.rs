//! Judges the facts: what blocks the migration, what the user has to decide on, and what is handled
//! by the manifest or by this program. Pure.

pub mod access;
mod databases;
mod source;
pub mod target;

use std::fmt;

use job::error::Error;

use crate::{facts::Facts, image::Image, settings::Settings};

/// What a finding means for the migration, gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The migration cannot begin, or would not end well.
    Blocker,
    /// The migration can begin; the user decides whether to act on it before the cutover.
    Decide,
    /// The rendered manifest or this program takes care of it; the user has nothing to do.
    Handled,
}

/// One finding, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name of the check, in kebab-case.
    pub id: &'static str,
    /// What the finding is about, such as the name of a database; empty for the source as a whole.
    pub object: String,
    /// What it means for the migration.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; None when there is nothing to do.
    pub hint: Option<String>,
}

impl Finding {
    fn new(
        verdict: Verdict,
        id: &'static str,
        object: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            id,
            object: object.into(),
            verdict,
            found: found.into(),
            hint: Some(hint.into()).filter(|hint| !hint.is_empty()),
        }
    }

    /// A finding that stops this program.
    pub fn blocker(
        id: &'static str,
        object: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Blocker, id, object, found, hint)
    }

    /// A finding that the user decides on.
    pub fn decide(
        id: &'static str,
        object: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Decide, id, object, found, hint)
    }

    /// A finding that needs no action; `handled_by` says what takes care of it.
    pub fn handled(
        id: &'static str,
        object: impl Into<String>,
        found: impl Into<String>,
        handled_by: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Handled, id, object, found, handled_by)
    }

    /// `id:object`, or the id alone.
    pub fn label(&self) -> String {
        if self.object.is_empty() {
            self.id.to_owned()
        } else {
            format!("{}:{}", self.id, self.object)
        }
    }

    /// The id in UpperCamelCase, as the reason of an Event.
    pub fn event_reason(&self) -> String {
        let capitalized = |word: &str| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| {
                first.to_ascii_uppercase().to_string() + letters.as_str()
            })
        };
        self.id.split('-').map(capitalized).collect()
    }

    /// The finding as the error that ends this program.
    pub fn as_error(&self) -> Error {
        let error = Error::refused(&self.found);
        match &self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl fmt::Display for Finding {
    /// `found → hint [id:object]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        if let Some(hint) = &self.hint {
            write!(f, " → {hint}")?;
        }
        write!(f, " [{}]", self.label())
    }
}

/// All findings, blockers first.
pub fn all(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let mut findings: Vec<Finding> = [
        target::findings(facts, settings, image),
        access::findings(facts, settings),
        source::findings(facts, settings, image),
        databases::findings(facts, settings, image),
    ]
    .concat();
    findings.sort_by_key(|finding| finding.verdict);
    findings
}

/// The first five names, and the number of the others, so that a message stays one line.
fn shortened(names: &[impl AsRef<str>]) -> String {
    const NAMED_MAX: usize = 5;
    let named: Vec<&str> = names.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
pub(crate) fn labels(facts: &Facts, settings: &Settings) -> Vec<(Verdict, String)> {
    let image = Image::parse(&settings.target_image).unwrap();
    all(facts, settings, &image)
        .into_iter()
        .map(|finding| (finding.verdict, finding.label()))
        .collect()
}

#[cfg(test)]
#[track_caller]
pub(crate) fn assert_found(facts: &Facts, settings: &Settings, verdict: Verdict, label: &str) {
    let found = labels(facts, settings);
    assert!(
        found.contains(&(verdict, label.to_owned())),
        "{verdict:?} {label} is not in {found:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_source_as_the_operator_creates_it_has_no_blocker_and_few_decisions() {
        let found = labels(&fixture::facts(), &fixture::settings());
        let decisions: Vec<&str> = found
            .iter()
            .filter(|(verdict, _)| *verdict != Verdict::Handled)
            .map(|(_, label)| label.as_str())
            .collect();
        assert_eq!(
            decisions,
            ["collation-version:mastodon", "collation-version:postgres"],
            "{found:?}"
        );
    }

    #[test]
    fn blockers_come_first_and_every_finding_says_what_to_do() {
        let mut facts = fixture::facts();
        facts.server.tablespaces = vec!["fast".into()];
        let image = Image::parse(&fixture::settings().target_image).unwrap();
        let found = all(&facts, &fixture::settings(), &image);
        assert_eq!(
            (found[0].verdict, found[0].label().as_str()),
            (Verdict::Blocker, "tablespace:fast")
        );
        for finding in &found {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert!(finding.hint.is_some(), "{finding:?}");
        }
    }

    #[test]
    fn ids_are_kebab_case_and_no_two_findings_have_the_same_label() {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        settings.target_image = serde_json::from_value("own/postgresql:17".into()).unwrap();
        facts.auto_conf.insert("work_mem".into(), "1GB".into());
        for database in &mut facts.databases {
            database
                .extensions
                .extend(["timescaledb", "pg_cron", "hll"].map(String::from));
            database.unlogged = (1, vec!["public.t".into()]);
            database.event_triggers = vec!["e".into()];
            database.cron_jobs = 1;
        }
        let mut found: Vec<String> = labels(&facts, &settings)
            .into_iter()
            .map(|(_, label)| label)
            .collect();
        for label in &found {
            let id = label.split(':').next().unwrap();
            assert!(
                id.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{id}"
            );
        }
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), all, "{found:?}");
    }

    #[test]
    fn a_finding_is_one_line_with_its_label_and_its_id_is_an_event_reason() {
        let finding = Finding::decide("event-triggers", "app", "1 event trigger", "drop it");
        assert_eq!(
            finding.to_string(),
            "1 event trigger → drop it [event-triggers:app]"
        );
        assert_eq!(finding.event_reason(), "EventTriggers");
    }

    #[test]
    fn a_long_list_is_shortened() {
        assert_eq!(shortened(&["a", "b"]), "a, b");
        assert_eq!(
            shortened(&["1", "2", "3", "4", "5", "6", "7"]),
            "1, 2, 3, 4, 5 and 2 more"
        );
    }
}
