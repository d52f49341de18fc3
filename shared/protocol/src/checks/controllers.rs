//! Controllers that change the same objects as the cutover, where they were looked for.

#![deny(dead_code)]

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict, listed},
    snapshot::{Snapshot, prechecks::ConflictingControllers},
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("unreadable-owner", unreadable_owner),
    Check::new("replica-owners", replica_owners),
    Check::new("autoscalers", autoscalers),
];

fn controllers(snapshot: &Snapshot) -> Option<&ConflictingControllers> {
    snapshot.prechecks.as_ref()?.controllers.as_ref()
}

/// Every owner of what the cutover changes can be read, and so paused: one that cannot would act in
/// the middle of the cutover.
fn unreadable_owner(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let unreadable = controllers(snapshot).map_or(&[][..], |found| &found.unreadable);
    let judge = unreadable.iter().map(|owner| {
        let (kind, manages) = (&owner.kind, &owner.manages);
        Finding::ok(
            "unreadable-owner",
            "every owner of what is changed can be paused",
            format!("{kind} manages {manages}, and {}", owner.failure),
        )
        .about(kind)
        .wrong_setting(
            "Role",
            "take manifests/components/keda or flux into your overlay, or apply \
             manifests/gitops/argo in Argo CD's namespace; or pause it by hand and remove its mark \
             from the objects",
        )
    });
    judge.collect()
}

/// Other owners of a workload's replicas, which cannot be paused from here.
fn replica_owners(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let found = controllers(snapshot).map_or(&[][..], |found| &found.replica_owners);
    let judge = found.iter().map(|found| {
        Finding::ok(
            "replica-owners",
            "only owners that can be paused",
            format!(
                "{} is also scaled by {}",
                found.workload,
                found.owners.join(", ")
            ),
        )
        // A word of ACCEPT has no spaces.
        .about(found.workload.rsplit(' ').next().unwrap_or_default())
        .with(
            Verdict::Decide,
            "pause it for the window; while it acts, the writes of its pods are refused, but they \
             may come up with the old configuration",
        )
    });
    judge.collect()
}

/// Autoscalers leave alone what has 0 replicas, and act again afterwards.
fn autoscalers(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let names = controllers(snapshot).map_or(&[][..], |found| &found.autoscalers);
    if names.is_empty() {
        return Vec::new();
    }
    let found = format!(
        "{}: leave alone what has 0 replicas, and act again afterwards",
        listed(names)
    );
    vec![Finding::ok("autoscalers", "known", found).handled()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Failure,
        finding::worst,
        simulation::{limits, look},
        snapshot::prechecks::{Prechecks, ReplicaOwners, UnreadableOwner},
    };

    #[test]
    fn an_unreadable_owner_blocks_and_the_others_are_named() {
        let mut snapshot = look();
        snapshot.prechecks = Some(Prechecks {
            controllers: Some(ConflictingControllers {
                replica_owners: vec![ReplicaOwners {
                    workload: "Deployment web".into(),
                    owners: vec!["its owner Mastodon m".into()],
                }],
                autoscalers: vec!["web".into()],
                unreadable: vec![UnreadableOwner {
                    kind: "HelmRelease".into(),
                    manages: "Deployment web".into(),
                    failure: Failure::config("it is forbidden"),
                }],
            }),
            ..Prechecks::default()
        });
        let findings: Vec<Finding> = CHECKS
            .iter()
            .flat_map(|check| (check.judge)(&snapshot, &limits()))
            .collect();
        let verdicts: Vec<Verdict> = findings.iter().map(|finding| finding.verdict).collect();
        assert_eq!(
            verdicts,
            [Verdict::Blocker, Verdict::Decide, Verdict::Handled]
        );
        assert_eq!(findings[1].key(), "replica-owners:web");
        assert_eq!(worst(&findings).unwrap_err().kind.code(), 2);
    }
}
