//! What the Kubernetes objects around both servers must say before a cut.

use std::collections::BTreeMap;

use super::{Finding, Verdict, listed};
use crate::snapshot::kubernetes::{ClusterState, SuperuserAccess};

const APPLY_AGAIN: &str =
    "apply the manifest that prepare-zalando rendered (ConfigMap <cluster>-cluster-replica)";

/// Patroni as its leader tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniSeen {
    /// Name of the member that leads.
    pub leader: Option<String>,
    /// Why the leader's REST API cannot be used; None when it answered.
    pub unreachable: Option<String>,
    /// Automatic failover is switched off.
    pub paused: bool,
}

/// The Cluster still follows its source.
pub fn replica_mode(cluster: &ClusterState) -> Finding {
    if cluster.follows {
        return Finding::ok("cluster", "in replica mode", "in replica mode");
    }
    Finding::ok(
        "cluster",
        "in replica mode",
        "spec.replica.enabled is not true",
    )
    .but(
        Verdict::Blocker,
        format!("it has been promoted, or it was never made to follow: {APPLY_AGAIN}"),
    )
}

/// Exactly one instance, and it is ready: a promotion with two took up to 25 s instead of 8
/// (docs/operators/cloudnative-pg.md#instances).
pub fn one_instance(cluster: &ClusterState) -> Finding {
    let found = format!(
        "{} of {} ready, phase {:?}",
        cluster.ready_instances, cluster.instances, cluster.phase
    );
    let finding = Finding::ok("instances", "one, ready", found);
    if cluster.ready_instances == 0 {
        return finding.but(
            Verdict::NotYet,
            "wait for the instance; if it does not come, read the log of its pod",
        );
    }
    if cluster.instances == 1 {
        return finding;
    }
    finding.but(
        Verdict::Warning,
        "a promotion with one instance is quicker; set spec.instances to 1 and add the others \
         after the cut",
    )
}

/// CNPG may start and promote the instance.
pub fn not_fenced(cluster: &ClusterState) -> Finding {
    match &cluster.fenced {
        None => Finding::ok("fencing", "no instance fenced", "no instance fenced"),
        Some(fenced) => Finding::ok("fencing", "no instance fenced", fenced.clone()).but(
            Verdict::Blocker,
            "remove the annotation cnpg.io/fencedInstances from the Cluster: a fenced instance is \
             never promoted",
        ),
    }
}

/// The superuser's password outlives the promotion: the cut proves a write with it afterwards
/// (docs/operators/cloudnative-pg.md#passwords-at-promotion).
pub fn superuser_kept(superuser: &SuperuserAccess) -> Finding {
    let finding = Finding::ok(
        "superuser after the promotion",
        "spec.enableSuperuserAccess with a spec.superuserSecret",
        "",
    );
    match superuser {
        SuperuserAccess {
            enabled: true,
            secret: Some(secret),
        } => Finding {
            found: format!("keeps the password of the Secret {secret}"),
            ..finding
        },
        SuperuserAccess {
            enabled: true,
            secret: None,
        } => Finding {
            found: "no superuserSecret: CNPG would make up another password".into(),
            ..finding
        }
        .but(Verdict::Blocker, APPLY_AGAIN),
        SuperuserAccess { enabled: false, .. } => Finding {
            found: "enableSuperuserAccess is off: CNPG would remove the password".into(),
            ..finding
        }
        .but(Verdict::Blocker, APPLY_AGAIN),
    }
}

/// Whether there will be a WAL archive.
pub fn wal_archive(cluster: &ClusterState) -> Finding {
    let finding = Finding::ok(
        "wal archive",
        "one from the promotion on",
        "from the promotion on, as the Cluster says",
    );
    if !cluster.skip_wal_archiving {
        return finding;
    }
    Finding {
        found: "none, by cnpg.io/skipWalArchiving".into(),
        ..finding
    }
    .but(
        Verdict::Warning,
        "no point-in-time recovery until the annotation is removed after the cut, which may \
         restart the target once",
    )
}

/// The Zalando operator owns this resource and nobody has frozen it. `controller` is the annotation
/// acid.zalan.do/controller, `ours` the value that cutover itself writes there.
pub fn operator_not_frozen(controller: Option<&str>, ours: &str) -> Finding {
    let wanted = "not frozen by anybody";
    match controller {
        None => Finding::ok("zalando operator", wanted, "not frozen"),
        Some(value) if value == ours => Finding::ok(
            "zalando operator",
            wanted,
            "frozen by an \
            earlier cutover",
        )
        .but(
            Verdict::Warning,
            "an earlier cutover has begun: run cutover again, it goes on or goes back where it can",
        ),
        // The same annotation names the owning operator where several run (CONTROLLER_ID), so this
        // is not a blocker by itself.
        Some(value) => Finding::ok(
            "zalando operator",
            wanted,
            format!(
                "acid.zalan.do/controller: \
            {value}"
            ),
        )
        .but(
            Verdict::Warning,
            "right if this is your operator's CONTROLLER_ID (cutover puts it back); otherwise \
             somebody else has frozen it: ask them first",
        ),
    }
}

/// Patroni leads, answers, and nobody has paused it: cutover's block, fence and way back all go
/// through it.
pub fn patroni(seen: &PatroniSeen) -> Finding {
    let wanted = "a leader whose REST API answers, not paused";
    let Some(leader) = &seen.leader else {
        return Finding::ok(
            "patroni",
            wanted,
            "no member with the label spilo-role=master",
        )
        .but(
            Verdict::NotYet,
            "check SOURCE_CLUSTER; if it is right, the source has no leader now: wait for its \
             failover",
        );
    };
    if let Some(why) = &seen.unreachable {
        return Finding::ok("patroni", wanted, format!("leader {leader}: {why}")).but(
            Verdict::NotYet,
            "port 8008 of the source's pods must be reachable from this namespace; look at its \
             NetworkPolicies",
        );
    }
    if seen.paused {
        return Finding::ok("patroni", wanted, format!("leader {leader}, paused")).but(
            Verdict::Blocker,
            "a cut that was stopped, or somebody else, has paused it: run cutover again, or resume \
             it (patronictl resume)",
        );
    }
    Finding::ok("patroni", wanted, format!("leader {leader}, not paused"))
}

/// Every Deployment of APPS exists.
pub fn deployments(wanted: &[String], missing: &[String]) -> Finding {
    let finding = Finding::ok(
        "deployments",
        "all of APPS",
        format!("all {} of APPS", wanted.len()),
    );
    if wanted.is_empty() {
        return Finding {
            found: "APPS is empty".into(),
            ..finding
        }
        .but(
            Verdict::Misconfigured,
            "name the Deployments that use the database in APPS",
        );
    }
    if missing.is_empty() {
        return finding;
    }
    Finding {
        found: format!("no {}", listed(missing)),
        ..finding
    }
    .but(
        Verdict::Misconfigured,
        "correct APPS in the ConfigMap replica-migration",
    )
}

/// The application's ConfigMap has every key that the cut will change; `wanted` is
/// APP_CONFIG_TARGET.
pub fn app_config(
    name: &str,
    data: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> Finding {
    let spelled: Vec<String> = wanted
        .keys()
        .map(|key| format!("{key}={}", data.get(key).map_or("(absent)", String::as_str)))
        .collect();
    let finding = Finding::ok(
        "application's configuration",
        format!("the keys of APP_CONFIG_TARGET in {name}"),
        spelled.join(", "),
    );
    if wanted.is_empty() {
        return finding.but(
            Verdict::Misconfigured,
            "name the keys and the target's values in APP_CONFIG_TARGET",
        );
    }
    if !wanted.keys().all(|key| data.contains_key(key)) {
        return finding.but(
            Verdict::Misconfigured,
            "correct APP_CONFIG_TARGET or APP_CONFIGMAP in the ConfigMap replica-migration",
        );
    }
    if wanted
        .iter()
        .all(|(key, value)| data.get(key) == Some(value))
    {
        return finding.but(
            Verdict::Warning,
            "the application is configured for the target already: pods that restart now find a \
             read-only server",
        );
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterState {
        ClusterState {
            follows: true,
            instances: 1,
            ready_instances: 1,
            phase: "Cluster in healthy state".into(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn a_cluster_that_follows_with_one_ready_instance_passes() {
        for check in [replica_mode, one_instance, not_fenced, wal_archive] {
            assert_eq!(check(&cluster()).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn each_deviation_of_the_cluster_has_its_verdict() {
        assert_eq!(
            replica_mode(&ClusterState {
                follows: false,
                ..cluster()
            })
            .verdict,
            Verdict::Blocker
        );
        assert_eq!(
            one_instance(&ClusterState {
                ready_instances: 0,
                ..cluster()
            })
            .verdict,
            Verdict::NotYet
        );
        assert_eq!(
            one_instance(&ClusterState {
                instances: 2,
                ready_instances: 2,
                ..cluster()
            })
            .verdict,
            Verdict::Warning
        );
        assert_eq!(
            not_fenced(&ClusterState {
                fenced: Some("[\"*\"]".into()),
                ..cluster()
            })
            .verdict,
            Verdict::Blocker
        );
        assert_eq!(
            wal_archive(&ClusterState {
                skip_wal_archiving: true,
                ..cluster()
            })
            .verdict,
            Verdict::Warning
        );
    }

    #[test]
    fn a_superuser_whose_password_would_change_is_a_blocker() {
        let seen = |enabled, secret: Option<&str>| SuperuserAccess {
            enabled,
            secret: secret.map(str::to_owned),
        };
        assert_eq!(superuser_kept(&seen(true, Some("s"))).verdict, Verdict::Ok);
        assert_eq!(superuser_kept(&seen(true, None)).verdict, Verdict::Blocker);
        assert_eq!(
            superuser_kept(&seen(false, Some("s"))).verdict,
            Verdict::Blocker
        );
    }

    #[test]
    fn who_owns_the_source_is_said() {
        assert_eq!(operator_not_frozen(None, "us").verdict, Verdict::Ok);
        assert_eq!(
            operator_not_frozen(Some("us"), "us").verdict,
            Verdict::Warning
        );
        assert_eq!(
            operator_not_frozen(Some("them"), "us").verdict,
            Verdict::Warning
        );
    }

    #[test]
    fn patroni_must_lead_answer_and_not_be_paused() {
        let seen = PatroniSeen {
            leader: Some("pg-0".into()),
            unreachable: None,
            paused: false,
        };
        assert_eq!(patroni(&seen).verdict, Verdict::Ok);
        assert_eq!(
            patroni(&PatroniSeen {
                leader: None,
                ..seen.clone()
            })
            .verdict,
            Verdict::NotYet
        );
        assert_eq!(
            patroni(&PatroniSeen {
                unreachable: Some("refused".into()),
                ..seen.clone()
            })
            .verdict,
            Verdict::NotYet
        );
        assert_eq!(
            patroni(&PatroniSeen {
                paused: true,
                ..seen
            })
            .verdict,
            Verdict::Blocker
        );
    }

    #[test]
    fn a_forgotten_deployment_is_a_wrong_setting() {
        let names = ["web".to_owned(), "sidekiq".to_owned()];
        assert_eq!(deployments(&names, &[]).verdict, Verdict::Ok);
        assert_eq!(deployments(&[], &[]).verdict, Verdict::Misconfigured);
        let finding = deployments(&names, &names[1..]);
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (Verdict::Misconfigured, "no sidekiq")
        );
    }

    #[test]
    fn the_applications_configuration_must_have_every_key_and_not_yet_the_targets_values() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let wanted = map(&[("DB_HOST", "new"), ("REPLICA_DB_HOST", "new-ro")]);
        assert_eq!(
            app_config(
                "m",
                &map(&[("DB_HOST", "old"), ("REPLICA_DB_HOST", "old")]),
                &wanted
            )
            .verdict,
            Verdict::Ok
        );
        assert_eq!(
            app_config("m", &map(&[("DB_HOST", "old")]), &wanted).verdict,
            Verdict::Misconfigured
        );
        assert_eq!(
            app_config("m", &map(&[]), &BTreeMap::new()).verdict,
            Verdict::Misconfigured
        );
        assert_eq!(app_config("m", &wanted, &wanted).verdict, Verdict::Warning);
    }
}
