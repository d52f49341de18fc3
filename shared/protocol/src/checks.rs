//! What must hold before a cutover: pure functions over what was observed. validate-replication,
//! cutover's dry run and cutover itself ask all of them, so that they can never disagree.
//!
//! A check says what was wanted and what was found, and whether waiting may help; it never decides
//! what happens next. To add one, write its query in `platform::collector` (or use what the
//! [`Snapshot`] already shows), and a function with its row in `CHECKS` of the file of this folder
//! that it belongs to. A function without a row does not compile: the functions are private to
//! their files, where dead code is denied, and so is a `CHECKS` that is not in [`CHECKS`] here.

#![deny(dead_code)]

mod application;
mod cluster;
mod controllers;
mod data;
mod network;
pub mod prepare;
mod servers;
mod services;
mod zalando;

use std::str::FromStr;

use crate::{
    decision::Limits,
    finding::{Acceptance, Finding, Verdict},
    snapshot::{Snapshot, TargetState, kubernetes::ClusterState, prechecks::Question},
};

pub use cluster::{NO_STORE, STORE_HINT};
pub use servers::questions;
pub use servers::{CNPG_ROLES, REPLAY_LAG};

/// A check: a row of the list.
pub struct Check {
    /// Its name, in kebab-case: what a finding shows and ACCEPT names.
    pub id: &'static str,
    /// What it asks the servers beside what every snapshot shows.
    pub questions: &'static [Question],
    /// Whether ACCEPT can take on a blocker of this check, too; what a person decides can always be
    /// accepted.
    pub acceptable: bool,
    /// Its findings; none where what it judges was not observed.
    judge: fn(&Snapshot, &Limits) -> Vec<Finding>,
}

impl Check {
    const fn new(id: &'static str, judge: fn(&Snapshot, &Limits) -> Vec<Finding>) -> Self {
        Self {
            id,
            questions: &[],
            acceptable: false,
            judge,
        }
    }

    /// ACCEPT can take on a blocker, too.
    const fn acceptable(self) -> Self {
        Self {
            acceptable: true,
            ..self
        }
    }

    const fn asking(self, questions: &'static [Question]) -> Self {
        Self { questions, ..self }
    }
}

/// All checks, in the order of the report.
const CHECKS: &[&[Check]] = &[
    servers::CHECKS,
    cluster::CHECKS,
    zalando::CHECKS,
    services::CHECKS,
    network::CHECKS,
    application::CHECKS,
    controllers::CHECKS,
    data::CHECKS,
];

/// All checks, in the order of the report.
pub fn registered() -> impl Iterator<Item = &'static Check> {
    CHECKS.iter().copied().flatten()
}

/// The findings of all checks.
pub fn all(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    // While clients wait nothing of it is observed.
    if snapshot.prechecks.is_none() && snapshot.data.is_none() {
        return Vec::new();
    }
    judged(registered(), snapshot, limits)
}

/// The findings about the two servers and the replication between them: only when nothing there
/// blocks can their data be compared.
pub fn replication(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    judged(servers::CHECKS.iter(), snapshot, limits)
}

/// The findings about the data, where it was compared.
pub fn data(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    judged(data::CHECKS.iter(), snapshot, limits)
}

/// The Cluster still follows its source: the one check that needs no server. `target`: what its
/// server says, where it answers.
pub fn replica_mode(cluster: &ClusterState, target: Option<&TargetState>) -> Finding {
    cluster::in_replica_mode(cluster, target)
}

fn judged(
    checks: impl Iterator<Item = &'static Check>,
    snapshot: &Snapshot,
    limits: &Limits,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks {
        let found = (check.judge)(snapshot, limits).into_iter();
        findings.extend(found.map(|finding| accept(finding, check.acceptable, &limits.accepted)));
    }
    findings
}

/// The findings, those that a person decides handled where the user accepts them.
pub fn accept_decided(findings: Vec<Finding>, accepted: &[Acceptance]) -> Vec<Finding> {
    let findings = findings.into_iter();
    findings
        .map(|finding| accept(finding, false, accepted))
        .collect()
}

/// The finding, handled if the user accepts it.
fn accept(finding: Finding, acceptable: bool, accepted: &[Acceptance]) -> Finding {
    let possible = match finding.verdict {
        Verdict::Decide => true,
        Verdict::Blocker => acceptable,
        Verdict::Ok | Verdict::Handled | Verdict::NotYet => false,
    };
    if possible && accepted.iter().any(|word| word.covers(&finding)) {
        return Finding {
            accepted: true,
            ..finding.handled()
        };
    }
    finding
}

impl FromStr for Acceptance {
    type Err = String;

    /// Reads `id` or `id:object`. An id that neither a check nor a finding of prepare-zalando has
    /// is an error that names all ids.
    fn from_str(word: &str) -> Result<Self, String> {
        let (id, object) = match word.split_once(':') {
            Some((id, object)) => (id, Some(object.to_owned())),
            None => (word, None),
        };
        let checks = || registered().map(|check| check.id);
        if !checks().chain(prepare::ids()).any(|known| known == id) {
            return Err(format!(
                "there is no check {id:?}; the checks are {}; those of prepare-zalando are {}",
                checks().collect::<Vec<_>>().join(", "),
                prepare::ids().collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(Self {
            id: id.to_owned(),
            object: object.filter(|object| !object.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        finding::worst,
        simulation::{limits, look},
        snapshot::prechecks::Prechecks,
    };

    #[test]
    fn each_check_has_an_id_of_its_own_in_kebab_case() {
        let ids: Vec<&str> = registered().map(|check| check.id).collect();
        let different: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), different.len(), "{ids:?}");
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        for id in ids.into_iter().chain(prepare::ids()) {
            assert!(id.split('-').all(part), "{id}");
        }
    }

    #[test]
    fn each_finding_has_the_id_of_its_check() {
        let mut snapshot = look();
        snapshot.prechecks = Some(Prechecks::default());
        for check in registered() {
            for finding in (check.judge)(&snapshot, &limits()) {
                assert_eq!(finding.id, check.id);
            }
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_was_observed() {
        assert_eq!(all(&look(), &limits()), []);
    }

    #[test]
    fn what_a_person_decides_can_be_accepted_and_a_blocker_only_where_its_check_says_so() {
        let finding = |verdict| {
            Finding::ok("apps-up", "all", "0 of 2")
                .about("web")
                .with(verdict, "start it")
        };
        let accepted = |verdict, acceptable, word: &str| {
            accept(finding(verdict), acceptable, &[word.parse().unwrap()])
        };
        let handled = accepted(Verdict::Decide, false, "apps-up:web");
        assert_eq!(
            (handled.verdict, handled.accepted),
            (Verdict::Handled, true)
        );
        assert!(accepted(Verdict::Decide, false, "apps-up").accepted);
        assert!(!accepted(Verdict::Decide, false, "apps-up:other").accepted);
        assert!(!accepted(Verdict::Decide, false, "archiving").accepted);
        let blocker = accepted(Verdict::Blocker, false, "apps-up");
        assert!(worst(&[blocker]).is_err());
        let blocker = accepted(Verdict::Blocker, true, "apps-up");
        assert!(worst(&[blocker]).is_ok());
        assert!(!accepted(Verdict::NotYet, true, "apps-up").accepted);
    }

    #[test]
    fn an_unknown_id_is_an_error_that_names_the_known_ones() {
        let unknown = "appsup".parse::<Acceptance>().unwrap_err();
        assert!(unknown.starts_with("there is no check \"appsup\"; the checks are superuser, "));
        assert!(unknown.contains("apps-up"), "{unknown}");
        assert!(unknown.contains("those of prepare-zalando are alter-system, "));
    }

    #[test]
    fn every_program_reads_the_ids_of_prepare_zalando() {
        for id in prepare::ids() {
            let word = format!("{id}:app");
            assert_eq!(word.parse::<Acceptance>().unwrap().id, id);
        }
        assert!(prepare::ids().any(|id| id == "md5-passwords"));
    }
}
