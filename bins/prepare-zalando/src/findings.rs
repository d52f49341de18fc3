//! What stands in the way, and what the operator should know: pure judgement of the facts, each
//! with what to do about it.

pub mod access;
mod contents;
mod running;
pub mod target;

use crate::{facts::Facts, image::Image, settings::Settings};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The migration cannot begin, or would end badly.
    Blocker,
    /// It can begin; somebody should know.
    Warning,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it stops this step.
    pub weight: Weight,
    /// For Events, UpperCamelCase. Kubernetes counts Events of one reason as one, so each warning
    /// has its own.
    pub reason: &'static str,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn blocker(reason: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            weight: Weight::Blocker,
            reason,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
    fn warning(reason: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            weight: Weight::Warning,
            ..Self::blocker(reason, what, remedy)
        }
    }
}

/// Everything that was found, blockers first.
pub fn all(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let mut findings: Vec<Finding> = [
        target::findings(facts, settings, image),
        access::findings(facts, settings),
        running::findings(facts, settings, image),
        contents::findings(facts, settings, image),
    ]
    .concat();
    findings.sort_by_key(|finding| finding.weight);
    findings
}

/// Names for a sentence: the first few, and how many more.
fn some(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
pub(crate) fn reasons(facts: &Facts, settings: &Settings) -> Vec<(Weight, &'static str)> {
    let image = Image::parse(&settings.target_image).unwrap();
    all(facts, settings, &image)
        .into_iter()
        .map(|finding| (finding.weight, finding.reason))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn a_source_as_the_operator_leaves_it_is_not_blocked() {
        let found = reasons(&example::facts(), &example::settings());
        assert!(
            found.iter().all(|(weight, _)| *weight == Weight::Warning),
            "{found:?}"
        );
    }

    #[test]
    fn blockers_come_first_and_every_finding_says_what_to_do() {
        let mut facts = example::facts();
        facts.server.tablespaces = vec!["fast".into()];
        let image = Image::parse(&example::settings().target_image).unwrap();
        let found = all(&facts, &example::settings(), &image);
        assert_eq!(
            (found[0].weight, found[0].reason),
            (Weight::Blocker, "Tablespaces")
        );
        assert!(
            found
                .iter()
                .all(|finding| !finding.what.is_empty() && !finding.remedy.is_empty())
        );
    }

    #[test]
    fn no_two_warnings_have_the_same_reason() {
        let (mut facts, mut settings) = (example::facts(), example::settings());
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
        let mut found: Vec<&str> = reasons(&facts, &settings)
            .iter()
            .map(|(_, reason)| *reason)
            .collect();
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), all, "{found:?}");
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(some(&["a", "b"]), "a, b");
        assert_eq!(
            some(&["1", "2", "3", "4", "5", "6", "7"]),
            "1, 2, 3, 4, 5 and 2 more"
        );
    }
}
