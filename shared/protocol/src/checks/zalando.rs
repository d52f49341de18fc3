//! What the operator and Patroni of the source must show before a cutover.

#![deny(dead_code)]

use super::Check;
use crate::{
    controllers::suspension::SUSPENDED,
    decision::Limits,
    finding::{Finding, Verdict, listed},
    snapshot::{Reachability, Snapshot},
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("zalando-operator", zalando_operator),
    Check::new("patroni", patroni),
];

/// The Zalando operator owns the `postgresql` resource, and no other actor has suspended it.
fn zalando_operator(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let Some(prechecks) = snapshot.prechecks.as_ref().filter(|asked| !asked.started) else {
        return Vec::new();
    };
    let finding = |found: String| Finding::ok("zalando-operator", "not suspended", found);
    vec![match prechecks.operator.as_deref() {
        None => finding("not suspended".into()),
        Some(SUSPENDED) => finding("suspended by an earlier cutover".into()).with(
            Verdict::Decide,
            "an earlier cutover has begun: run cutover again, it continues or rolls back where it \
             can; if the ConfigMap cutover-<cluster> was removed, undo by hand what the cutover \
             has changed (docs/operations.md#a-lost-record)",
        ),
        // The same annotation names the owning operator where several run (CONTROLLER_ID), so this
        // is not a blocker by itself.
        Some(value) => finding(format!("acid.zalan.do/controller: {value}")).with(
            Verdict::Decide,
            "right if this is your operator's CONTROLLER_ID (cutover restores it); otherwise \
             another actor has suspended the operator: ask them first",
        ),
    }]
}

/// Patroni has a leader, all of its members answer, and it is not paused: the block, the fence and
/// the rollback all go through it, and each member must say that its server is no primary.
fn patroni(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let finding = |found: String| {
        let wanted = "a leader, every member's REST API answers, not paused";
        Finding::ok("patroni", wanted, found)
    };
    let patroni = match &snapshot.patroni {
        Reachability::Up(patroni) => patroni,
        Reachability::Unreachable(failure) => {
            return vec![finding(failure.to_string()).with(
                Verdict::NotYet,
                "port 8008 of the source's pods must be reachable from this namespace; look at its \
                 NetworkPolicies",
            )];
        }
    };
    if !patroni.silent.is_empty() {
        let found = format!("no answer from {}", listed(&patroni.silent));
        return vec![finding(found).with(
            Verdict::NotYet,
            "the cutover stops the source only when each member says that its server is no \
             primary: repair or delete these pods, and open their port 8008 to this namespace",
        )];
    }
    vec![match (&patroni.leader, patroni.paused) {
        (None, _) => finding("no member with the label spilo-role=master".into()).with(
            Verdict::NotYet,
            "check SOURCE_CLUSTER; if it is right, the source has no leader now: wait for its \
             failover",
        ),
        (Some(leader), Some(true)) => finding(format!("leader {leader}, paused")).with(
            Verdict::Blocker,
            "a cutover that was stopped, or another actor, has paused it: run cutover again, or \
             resume it (patronictl resume)",
        ),
        (Some(leader), _) => finding(format!("leader {leader}, not paused")),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Failure,
        simulation::{limits, look},
        snapshot::{PatroniState, prechecks::Prechecks},
    };

    #[test]
    fn a_suspended_operator_is_for_a_person_to_decide() {
        let verdict = |operator: Option<&str>| {
            let mut snapshot = look();
            snapshot.prechecks = Some(Prechecks {
                operator: operator.map(str::to_owned),
                ..Prechecks::default()
            });
            zalando_operator(&snapshot, &limits()).remove(0).verdict
        };
        assert_eq!(verdict(None), Verdict::Ok);
        assert_eq!(verdict(Some(SUSPENDED)), Verdict::Decide);
        assert_eq!(verdict(Some("another")), Verdict::Decide);
    }

    #[test]
    fn patroni_must_lead_answer_and_not_be_paused() {
        let verdict = |change: fn(&mut PatroniState)| {
            let mut snapshot = look();
            if let Reachability::Up(patroni) = &mut snapshot.patroni {
                change(patroni);
            }
            patroni(&snapshot, &limits()).remove(0).verdict
        };
        assert_eq!(verdict(|_| ()), Verdict::Ok);
        assert_eq!(verdict(|patroni| patroni.leader = None), Verdict::NotYet);
        let silent = verdict(|patroni| patroni.silent = vec!["b".into()]);
        assert_eq!(silent, Verdict::NotYet);
        let paused = verdict(|patroni| patroni.paused = Some(true));
        assert_eq!(paused, Verdict::Blocker);
        let mut silent = look();
        silent.patroni = Reachability::Unreachable(Failure::transient("refused"));
        let finding = patroni(&silent, &limits()).remove(0);
        assert_eq!(finding.verdict, Verdict::NotYet);
    }
}
