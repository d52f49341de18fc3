//! What the target's Cluster must say before a cutover.

#![deny(dead_code)]

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict},
    instances as further, manifest,
    snapshot::{Snapshot, TargetState, kubernetes::ClusterState},
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("replica-mode", replica_mode),
    Check::new("instances", instances),
    Check::new("fencing", fencing),
    Check::new("superuser-password", superuser_password),
    Check::new("wal-archive", wal_archive).acceptable(),
];

/// What must not be done to a Cluster that may be a primary
/// (docs/operators/cloudnative-pg.md#replica-mode-again).
const KEEP_PROMOTED: &str = "do not apply the manifest of prepare-zalando to it, which would make \
    a primary a standby and end every session";

/// The Cluster still follows its source. `target`: what its server says, where it answers.
pub(super) fn in_replica_mode(cluster: &ClusterState, target: Option<&TargetState>) -> Finding {
    let finding = |found| Finding::ok("replica-mode", "the Cluster in replica mode", found);
    if cluster.follows {
        return finding("in replica mode");
    }
    let name = &cluster.name;
    let state = match target {
        Some(target) if target.in_recovery => {
            "its promotion is requested and not complete: kubectl describe shows its conditions"
                .to_owned()
        }
        Some(target) => format!(
            "it is a primary on timeline {}: the ConfigMap cutover-{name}-receipt says whether a \
             cutover has promoted it; for another migration choose another TARGET_CLUSTER",
            target.identity.timeline
        ),
        None => "it was promoted, or it was never made to follow: ask its server (select \
                 pg_is_in_recovery()) before you change it"
            .to_owned(),
    };
    finding("spec.replica.enabled is not true")
        .with(Verdict::Blocker, format!("{state}; {KEEP_PROMOTED}"))
}

fn replica_mode(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    vec![in_replica_mode(&snapshot.cluster, snapshot.target.answer())]
}

/// All instances are ready and stream from the designated primary, and nothing makes their
/// promotion slow (docs/operators/cloudnative-pg.md#instances).
fn instances(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let cluster = &snapshot.cluster;
    let counted = format!(
        "{} of {} ready, phase {:?}",
        cluster.ready_instances, cluster.instances, cluster.phase
    );
    let finding = |found| Finding::ok("instances", "all ready, streaming", found);
    if cluster.ready_instances == 0 {
        return vec![finding(counted).with(
            Verdict::NotYet,
            "wait for the instance; if it does not come, read the log of its pod",
        )];
    }
    if cluster.ready_instances != cluster.instances {
        return vec![finding(counted).with(
            Verdict::NotYet,
            "wait until all have joined; if one does not, kubectl logs of its Job or pod shows \
             why, and spec.instances: 1 removes it until the cutover is complete",
        )];
    }
    if cluster.instances == 1 {
        return vec![finding(counted)];
    }
    if let Some(to) = further::switching_to(cluster) {
        return vec![
            finding(format!("{counted}; the designated primary changes to {to}"))
                .with(Verdict::NotYet, "wait until the change is over"),
        ];
    }
    let target = snapshot.target.answer();
    let detached = target.map_or_else(Vec::new, |target| further::detached(cluster, target));
    let primary = &cluster.current_primary;
    if !detached.is_empty() {
        let found = format!(
            "{counted}; {} not streaming from {primary}",
            detached.join(", ")
        );
        return vec![finding(found).with(
            Verdict::NotYet,
            "wait; if it does not come back, the log of its pod shows why",
        )];
    }
    vec![several(cluster, target, finding(counted))]
}

/// What a promotion costs with several instances, beyond about half a second.
fn several(cluster: &ClusterState, target: Option<&TargetState>, ready: Finding) -> Finding {
    let primary = &cluster.current_primary;
    let restart = target.is_some_and(|target| target.running.pending_restart_after_promotion());
    match further::preferred(cluster) {
        Some(first) => Finding {
            found: format!("{}; the designated primary is {primary}", ready.found),
            ..ready
        }
        .with(
            Verdict::Decide,
            format!(
                "CloudNativePG prefers the first by name among equals, so the promotion was seen \
                 to take 25 s: kubectl cnpg promote {} {first}, or set spec.instances to 1",
                cluster.name
            ),
        ),
        None if restart => ready.with(
            Verdict::Decide,
            "CloudNativePG restarts the new primary after the others, which was seen to end 19 s \
             after the promotion: set ARCHIVE_RESTART to never before prepare-zalando, or \
             spec.instances to 1 until the cutover is complete",
        ),
        None => Finding {
            found: format!("{}; promoted about 0.5 s later than one", ready.found),
            ..ready
        },
    }
}

/// CloudNativePG may start and promote the instance.
fn fencing(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let finding = |found: &str| Finding::ok("fencing", "no instance fenced", found);
    vec![match &snapshot.cluster.fenced {
        None => finding("no instance fenced"),
        Some(fenced) => finding(fenced).with(
            Verdict::Blocker,
            "remove the annotation cnpg.io/fencedInstances from the Cluster: a fenced instance is \
             never promoted",
        ),
    }]
}

/// The superuser's password outlives the promotion: the cutover verifies a write with it
/// afterwards (docs/operators/cloudnative-pg.md).
fn superuser_password(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let superuser = &snapshot.cluster.superuser;
    let finding = |found: String| {
        let wanted = "spec.enableSuperuserAccess with a spec.superuserSecret";
        Finding::ok("superuser-password", wanted, found)
    };
    // Not "apply the manifest again", which would undo more than this.
    let hint = format!(
        "set both in the Cluster, as the manifest in the ConfigMap {} has them",
        manifest::map_name(&snapshot.cluster.name)
    );
    vec![match (superuser.enabled, &superuser.secret) {
        (true, Some(secret)) => finding(format!("that of the Secret {secret} is kept")),
        (true, None) => finding("no superuserSecret: CNPG would make up another password".into())
            .with(Verdict::Blocker, hint),
        (false, _) => {
            finding("enableSuperuserAccess is off: CNPG would remove the password".into())
                .with(Verdict::Blocker, hint)
        }
    }]
}

/// Whether there will be a WAL archive and backups.
fn wal_archive(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let cluster = &snapshot.cluster;
    let finding = |found: String| {
        let wanted = "a store for WAL and backups from the promotion on";
        Finding::ok("wal-archive", wanted, found)
    };
    vec![match &cluster.wal_archiver {
        _ if cluster.skip_wal_archiving => finding("none, by cnpg.io/skipWalArchiving".into())
            .with(
                Verdict::Decide,
                "no point-in-time recovery until the annotation is removed after the cutover, \
                 which may restart the target once",
            ),
        Some(archiver) => finding(format!("{archiver}, from the promotion on")),
        None => finding(NO_STORE.into()).with(Verdict::Blocker, STORE_HINT),
    }]
}

/// A Cluster for which nothing archives.
pub const NO_STORE: &str =
    "none: the Cluster has no backup store, so no WAL is archived and no backup is taken";
/// What to do about [`NO_STORE`].
pub const STORE_HINT: &str = "add spec.plugins or spec.backup to the Cluster (TARGET_PATCH), or \
    accept that: ACCEPT=wal-archive";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Failure,
        simulation::{limits, look},
        snapshot::{Reachability, kubernetes::SuperuserAccess, target::Standby},
    };

    type Judge = fn(&Snapshot, &Limits) -> Vec<Finding>;

    fn ready() -> ClusterState {
        ClusterState {
            follows: true,
            instances: 1,
            ready_instances: 1,
            superuser: SuperuserAccess {
                enabled: true,
                secret: Some("s".into()),
            },
            wal_archiver: Some("plugin barman".into()),
            ..ClusterState::default()
        }
    }

    fn verdict(judge: Judge, change: impl FnOnce(&mut ClusterState)) -> Verdict {
        let mut snapshot = look();
        snapshot.cluster = ready();
        change(&mut snapshot.cluster);
        judge(&snapshot, &limits()).remove(0).verdict
    }

    #[test]
    fn a_cluster_that_follows_with_one_ready_instance_passes() {
        for check in CHECKS {
            assert_eq!(verdict(check.judge, |_| ()), Verdict::Ok, "{}", check.id);
        }
    }

    #[test]
    fn each_deviation_of_the_cluster_has_its_verdict() {
        let promoted = verdict(replica_mode, |cluster| cluster.follows = false);
        assert_eq!(promoted, Verdict::Blocker);
        let starting = verdict(instances, |cluster| cluster.ready_instances = 0);
        assert_eq!(starting, Verdict::NotYet);
        let several = verdict(instances, |cluster| {
            (cluster.instances, cluster.ready_instances) = (2, 2);
        });
        assert_eq!(several, Verdict::Decide, "archive_mode is always");
        let fenced = verdict(fencing, |cluster| cluster.fenced = Some("[\"*\"]".into()));
        assert_eq!(fenced, Verdict::Blocker);
        let skipped = verdict(wal_archive, |cluster| cluster.skip_wal_archiving = true);
        assert_eq!(skipped, Verdict::Decide);
        let without = verdict(wal_archive, |cluster| cluster.wal_archiver = None);
        assert_eq!(without, Verdict::Blocker);
    }

    #[test]
    fn several_instances_pass_when_all_stream_and_the_first_is_promoted() {
        let judged = |change: fn(&mut ClusterState, &mut TargetState)| {
            let mut snapshot = look();
            let Reachability::Up(target) = &mut snapshot.target else {
                panic!("no target")
            };
            target.running.archive_mode = "off".into();
            target.standbys = vec![Standby {
                name: "database-2".into(),
                flushed: None,
            }];
            snapshot.cluster = ClusterState {
                instances: 2,
                ready_instances: 2,
                ready: vec!["database-1".into(), "database-2".into()],
                current_primary: "database-1".into(),
                target_primary: "database-1".into(),
                ..ready()
            };
            change(&mut snapshot.cluster, target);
            instances(&snapshot, &limits()).remove(0)
        };
        let passed = judged(|_, _| ());
        assert_eq!(passed.verdict, Verdict::Ok);
        assert!(passed.found.contains("0.5 s"), "{passed}");
        for (change, verdict, words) in [
            (
                (|cluster, _| cluster.ready_instances = 1) as fn(&mut ClusterState, &mut _),
                Verdict::NotYet,
                "1 of 2 ready",
            ),
            (
                |cluster, _| cluster.target_primary = "database-2".into(),
                Verdict::NotYet,
                "changes to database-2",
            ),
            (
                |_, target: &mut TargetState| target.standbys.clear(),
                Verdict::NotYet,
                "database-2 not streaming from database-1",
            ),
            (
                |_, target| target.running.archive_mode = "always".into(),
                Verdict::Decide,
                "ARCHIVE_RESTART",
            ),
            (
                |cluster, target| {
                    target.standbys[0].name = "database-1".into();
                    cluster.current_primary = "database-2".into();
                    cluster.target_primary = "database-2".into();
                },
                Verdict::Decide,
                "database-1",
            ),
        ] {
            let finding = judged(change);
            assert_eq!(finding.verdict, verdict, "{finding}");
            let text = format!("{} {:?}", finding.found, finding.hint);
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn no_hint_about_a_cluster_that_does_not_follow_says_to_apply_the_manifest() {
        let mut snapshot = look();
        snapshot.cluster = ClusterState {
            name: "database".into(),
            ..ClusterState::default()
        };
        let (Reachability::Up(standby), silent) = (
            snapshot.target.clone(),
            Reachability::Unreachable(Failure::transient("connection refused")),
        ) else {
            panic!("no target")
        };
        let mut primary = standby.clone();
        primary.in_recovery = false;
        for (target, words) in [
            (Reachability::Up(primary), "it is a primary on timeline 1"),
            (Reachability::Up(standby), "its promotion is requested"),
            (silent, "ask its server"),
        ] {
            snapshot.target = target;
            for check in CHECKS {
                for finding in (check.judge)(&snapshot, &limits()) {
                    let hint = finding.hint.unwrap_or_default();
                    let applying = hint.replace(KEEP_PROMOTED, "");
                    assert!(!applying.contains("apply"), "{}: {hint}", check.id);
                    if check.id == "replica-mode" {
                        assert!(
                            hint.contains(words) && hint.ends_with(KEEP_PROMOTED),
                            "{hint}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_superuser_whose_password_would_change_is_a_blocker() {
        let made_up = verdict(superuser_password, |cluster| {
            cluster.superuser.secret = None
        });
        let removed = verdict(superuser_password, |cluster| {
            cluster.superuser.enabled = false;
        });
        assert_eq!((made_up, removed), (Verdict::Blocker, Verdict::Blocker));
    }
}
