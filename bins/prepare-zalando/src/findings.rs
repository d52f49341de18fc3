//! Judges the facts: what blocks the migration, what the user has to decide on, and what is handled
//! by the manifest or by this program. Pure.

pub mod access;
mod databases;
pub mod source;
pub mod target;

use std::cmp::Reverse;

use job::error::Result;
use protocol::{
    checks::{self, prepare::Id},
    finding::{Finding, Verdict, unless_blocked},
};

use crate::{facts::Facts, image::Image, settings::Settings};

/// A finding that stops this program.
pub fn blocker(
    id: Id,
    object: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> Finding {
    finding(id, object, found).with(Verdict::Blocker, hint)
}

/// A finding that the user decides on.
pub fn decide(
    id: Id,
    object: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> Finding {
    finding(id, object, found).with(Verdict::Decide, hint)
}

/// A finding that needs no action; `handled_by` says what takes care of it.
pub fn handled(
    id: Id,
    object: impl Into<String>,
    found: impl Into<String>,
    handled_by: impl Into<String>,
) -> Finding {
    finding(id, object, found).with(Verdict::Handled, handled_by)
}

/// `found` is a sentence, which says what is wanted, too.
fn finding(id: Id, object: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding::ok(id.into(), "", found).about(object)
}

/// All findings, the gravest first; what the user accepts is handled.
pub fn all(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let findings: Vec<Finding> = [
        target::findings(facts, settings, image),
        access::findings(facts, settings),
        source::findings(facts, settings, image),
        databases::findings(facts, settings, image),
    ]
    .concat();
    let mut findings = checks::accept_decided(findings, &settings.accept.0);
    findings.sort_by_key(|finding| Reverse(finding.verdict));
    findings
}

/// Refuses if there is a blocker; the error names all blockers, with the hint of the first.
///
/// # Errors
/// Refused.
pub fn refuse(found: &[Finding]) -> Result<()> {
    Ok(unless_blocked("replication", found)?)
}

#[cfg(test)]
pub(crate) fn labels(facts: &Facts, settings: &Settings) -> Vec<(Verdict, String)> {
    let image = Image::parse(&settings.target_image).unwrap();
    all(facts, settings, &image)
        .into_iter()
        .map(|finding| (finding.verdict, finding.key()))
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
            [
                "wal-archive",
                "collation-version:mastodon",
                "collation-version:postgres"
            ],
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
            (found[0].verdict, found[0].key().as_str()),
            (Verdict::Blocker, "tablespace:fast")
        );
        for finding in &found {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert!(finding.hint.is_some(), "{finding:?}");
        }
    }

    #[test]
    fn only_blockers_refuse_and_the_hint_is_that_of_the_first() {
        let checksums = decide(
            Id::DataChecksums,
            "",
            "data checksums are off",
            "enable them",
        );
        let tablespace = blocker(Id::Tablespace, "fast", "tablespace fast exists", "drop it");
        let user = blocker(Id::SourceUser, "app", "SOURCE_USER is app", "set it");
        assert!(refuse(std::slice::from_ref(&checksums)).is_ok());
        let error = refuse(&[checksums, tablespace, user]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not ready for replication: tablespace:fast: tablespace fast exists; source-user:app: \
             SOURCE_USER is app"
        );
        assert_eq!(error.next_step(), Some("drop it"));
        assert_eq!(error.kind().code(), 3);
    }

    #[test]
    fn no_two_findings_have_the_same_label() {
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
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), all, "{found:?}");
    }

    #[test]
    fn what_the_user_accepts_is_handled_and_a_blocker_stays_one() {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        facts.server.tablespaces = vec!["fast".into()];
        settings.accept =
            serde_json::from_value("collation-version:mastodon,tablespace".into()).unwrap();
        let image = Image::parse(&settings.target_image).unwrap();
        let found = all(&facts, &settings, &image);
        let accepted: Vec<(Verdict, String)> = found
            .iter()
            .filter(|finding| finding.accepted)
            .map(|finding| (finding.verdict, finding.key()))
            .collect();
        assert_eq!(
            accepted,
            [(Verdict::Handled, "collation-version:mastodon".to_owned())]
        );
        assert_found(&facts, &settings, Verdict::Blocker, "tablespace:fast");
        assert_found(
            &facts,
            &settings,
            Verdict::Decide,
            "collation-version:postgres",
        );
    }
}
