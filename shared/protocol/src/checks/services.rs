//! What must hold for a cutover that repoints the source's Services: the poolers can be paused, the
//! Services can be repointed, and every client can log in afterwards. Nothing of it matters to a
//! cutover by the application's ConfigMap.

#![deny(dead_code)]

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict, listed},
    route::Route,
    snapshot::{
        PoolerPodState, PoolerState, Snapshot,
        kubernetes::ServiceState,
        poolers::PoolerPod,
        prechecks::{HashComparison, OwnerPassword},
    },
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("poolers", poolers),
    Check::new("pooler-rollout", pooler_rollout),
    Check::new("query-wait-timeout", query_wait_timeout),
    Check::new("pool-mode", pool_mode),
    Check::new("services", services),
    Check::new("owner-password", owner_password),
];

/// PostgreSQL's port, on which the target's pods listen.
const PORT: i32 = 5432;

/// The cutover would repoint the Services.
fn by_services(snapshot: &Snapshot, limits: &Limits) -> bool {
    snapshot.prechecks.is_some()
        && Route::of(limits.route, !snapshot.poolers.is_empty()) == Route::Service
}

/// Every pod of the poolers answers on its console and serves its clients.
fn poolers(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    if !by_services(snapshot, limits) {
        return Vec::new();
    }
    let finding = |found: String| {
        let wanted = "every console answers, none is paused";
        Finding::ok("poolers", wanted, found)
    };
    let paused = snapshot.poolers_that(|state| state != PoolerState::Serving);
    if !paused.is_empty() {
        return vec![finding(format!("paused: {}", listed(&paused))).with(
            Verdict::Blocker,
            "another actor, or a cutover that was stopped, has paused them: run cutover again, or \
             RESUME on their consoles",
        )];
    }
    let unreachable: Vec<String> = snapshot
        .poolers
        .iter()
        .filter_map(|pooler| Some(format!("{}: {}", pooler.pod, pooler.state.failure()?)))
        .collect();
    if !unreachable.is_empty() {
        return vec![
            finding(format!("no answer from {}", listed(&unreachable))).with(
                Verdict::NotYet,
                "wait for the pods; if they stay unreachable, look at their log and at \
             NetworkPolicies, or set ROUTE=config",
            ),
        ];
    }
    vec![match snapshot.poolers.len() {
        0 => finding("none: sessions at the source's Services end once".into()),
        pods => finding(format!(
            "{pods} pods, none paused: their clients wait and notice nothing else"
        )),
    }]
}

/// No rollout of the poolers is under way: a pod that is replaced in the pause keeps its clients
/// waiting until its grace period ends.
fn pooler_rollout(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let Some(prechecks) = &snapshot.prechecks else {
        return Vec::new();
    };
    if !by_services(snapshot, limits) || prechecks.pooler_pods.is_empty() {
        return Vec::new();
    }
    let finding = |found: String| Finding::ok("pooler-rollout", "none under way", found);
    let changing = changing(&prechecks.pooler_pods);
    vec![if changing.is_empty() {
        finding("none under way".into())
    } else {
        finding(listed(&changing)).with(
            Verdict::NotYet,
            "wait until the Deployments of the poolers have replaced their pods (kubectl rollout \
             status)",
        )
    }]
}

/// The pods that a rollout has not finished with: those that end, those that start, and all of a
/// pooler whose pods were made from different templates.
fn changing(pods: &[PoolerPod]) -> Vec<String> {
    let replaced = |pod: &PoolerPod| {
        let mut same = pods.iter().filter(|other| other.pooler == pod.pooler);
        same.any(|other| other.template != pod.template && !other.terminating)
    };
    let describe = |pod: &PoolerPod| {
        let what = match pod {
            _ if pod.terminating => "is being deleted",
            _ if !pod.ready => "is not ready",
            _ if replaced(pod) => "is one of two templates",
            _ => return None,
        };
        Some(format!("{} {what}", pod.name))
    };
    pods.iter().filter_map(describe).collect()
}

/// What a rollback after the deadline takes until the poolers are resumed, at most.
const ROLLBACK_SECONDS: f64 = 10.0;

/// No pooler disconnects clients that wait for as long as a pause may last before it is rolled
/// back.
fn query_wait_timeout(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let pause = limits.cutover_max.as_secs_f64() + ROLLBACK_SECONDS;
    let asked = |pooler: &PoolerPodState| {
        let seconds = pooler.query_wait_seconds?;
        Some((pooler.pod.clone(), seconds))
    };
    let timeouts: Vec<(String, f64)> = snapshot.poolers.iter().filter_map(asked).collect();
    if !by_services(snapshot, limits) || timeouts.is_empty() {
        return Vec::new();
    }
    let finding = |found: String| {
        let wanted = format!("none, or more than the longest pause of {pause} s");
        Finding::ok("query-wait-timeout", wanted, found)
    };
    let short: Vec<String> = timeouts
        .iter()
        .filter(|(_, seconds)| *seconds > 0.0 && *seconds <= pause)
        .map(|(pod, seconds)| format!("{seconds} s at {pod}"))
        .collect();
    vec![if short.is_empty() {
        finding(format!("none, or more than the longest pause of {pause} s"))
    } else {
        finding(listed(&short)).with(
            Verdict::Decide,
            "a cutover that is rolled back at its deadline comes after PgBouncer has disconnected \
             the waiting clients: lower CUTOVER_MAX_SECONDS, or raise query_wait_timeout of the \
             poolers",
        )
    }]
}

/// How the poolers hand out their connections; the operator's default is transaction.
fn pool_mode(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let Some(prechecks) = &snapshot.prechecks else {
        return Vec::new();
    };
    if !by_services(snapshot, limits) || snapshot.poolers.is_empty() {
        return Vec::new();
    }
    let mode = prechecks.pool_mode.as_deref().unwrap_or("transaction");
    let finding = Finding::ok("pool-mode", "transaction", mode);
    vec![if mode == "transaction" {
        finding
    } else {
        finding.with(
            Verdict::Decide,
            "a session pooler is paused only when its clients have left: after PAUSE_MAX_SECONDS \
             their sessions are ended and they see one error",
        )
    }]
}

/// The Services exist, and their port leads to the target's.
fn services(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    if !by_services(snapshot, limits) {
        return Vec::new();
    }
    let leads = |service: &ServiceState| service.port == Some(PORT);
    let described = |name: &String| match snapshot.services.get(name) {
        None => format!("no {name}"),
        Some(service) if leads(service) => format!("{name} can be repointed"),
        Some(_) => format!("{name} does not lead to port {PORT} alone"),
    };
    let names: Vec<&String> = limits.services.keys().collect();
    let found: Vec<String> = names.iter().map(|name| described(name)).collect();
    let finding = Finding::ok(
        "services",
        format!("each with one port that leads to {PORT}"),
        found.join(", "),
    );
    // The first is the leader's; without replicas the other may be missing.
    let first = names.first().and_then(|name| snapshot.services.get(*name));
    let all_lead = names
        .iter()
        .all(|name| snapshot.services.get(*name).is_none_or(leads));
    vec![if first.is_some() && all_lead {
        finding
    } else {
        finding.with(
            Verdict::Blocker,
            "the Service behind the poolers cannot be repointed as it is: set ROUTE=config",
        )
    }]
}

/// The owner's stored hash is the one that CloudNativePG sets at the promotion; otherwise poolers
/// that know the old one drop every client (docs/operators/zalando.md).
fn owner_password(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |password: &OwnerPassword| {
        let found = match password.comparison {
            HashComparison::Same => "kept as it is",
            HashComparison::Different => "it has been set again since prepare-zalando",
            HashComparison::RoleWithout => "the role has none, or does not exist",
            HashComparison::SecretMissing => "the Secret cannot be read",
        };
        let finding = Finding::ok(
            "owner-password",
            "the same in the database and in the Secret of the Cluster's bootstrap",
            format!("{}: {found}", password.owner),
        );
        if password.comparison == HashComparison::Same {
            return finding;
        }
        finding.with(
            Verdict::Blocker,
            "run prepare-zalando again: it writes the hash as it is now; the Zalando operator 2.x \
             salts it again at each sync",
        )
    };
    let password = snapshot.prechecks.as_ref();
    let password = password.and_then(|asked| asked.owner_password.as_ref());
    password.map(judge).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        failure::Failure,
        simulation::{limits, look},
        snapshot::{Reachability, prechecks::Prechecks},
    };

    fn observed(poolers: Vec<Reachability<PoolerState>>, prechecks: Prechecks) -> Snapshot {
        let mut snapshot = look();
        let pod = |state| PoolerPodState::new("pg-pooler-1", state);
        snapshot.poolers = poolers.into_iter().map(pod).collect();
        snapshot.prechecks = Some(prechecks);
        snapshot
    }

    #[test]
    fn poolers_answer_and_are_not_paused_by_another_actor() {
        let judged = |states| {
            let snapshot = observed(states, Prechecks::default());
            poolers(&snapshot, &limits()).remove(0).verdict
        };
        let up = Reachability::Up;
        assert_eq!(judged(vec![]), Verdict::Ok);
        assert_eq!(judged(vec![up(PoolerState::Serving)]), Verdict::Ok);
        let both = vec![up(PoolerState::Serving), up(PoolerState::Paused)];
        assert_eq!(judged(both), Verdict::Blocker);
        let refused = Reachability::Unreachable(Failure::transient("refused"));
        assert_eq!(judged(vec![refused]), Verdict::NotYet);
    }

    fn pod(name: &str, template: &str) -> PoolerPod {
        PoolerPod {
            name: name.into(),
            pooler: "pg-pooler".into(),
            template: template.into(),
            ready: true,
            terminating: false,
        }
    }

    #[test]
    fn a_rollout_of_the_poolers_is_waited_for() {
        let judged = |pods: Vec<PoolerPod>| {
            let prechecks = Prechecks {
                pooler_pods: pods,
                ..Prechecks::default()
            };
            let snapshot = observed(vec![Reachability::Up(PoolerState::Serving)], prechecks);
            let finding = pooler_rollout(&snapshot, &limits()).remove(0);
            (finding.verdict, finding.found)
        };
        assert_eq!(judged(vec![pod("a", "1"), pod("b", "1")]).0, Verdict::Ok);
        // Two poolers have templates of their own.
        let of_standbys = PoolerPod {
            pooler: "pg-pooler-repl".into(),
            ..pod("c", "3")
        };
        assert_eq!(judged(vec![pod("a", "1"), of_standbys]).0, Verdict::Ok);
        let two = (
            Verdict::NotYet,
            "a is one of two templates, b is one of two templates".to_owned(),
        );
        assert_eq!(judged(vec![pod("a", "1"), pod("b", "2")]), two);
        let ending = PoolerPod {
            terminating: true,
            ..pod("a", "1")
        };
        let starting = PoolerPod {
            ready: false,
            ..pod("b", "2")
        };
        let both = "a is being deleted, b is not ready".to_owned();
        assert_eq!(judged(vec![ending, starting]), (Verdict::NotYet, both));
    }

    #[test]
    fn a_timer_of_the_poolers_that_ends_within_the_longest_pause_is_for_a_person_to_decide() {
        let judged = |query_wait_seconds, cutover_max| {
            let mut snapshot = observed(
                vec![Reachability::Up(PoolerState::Serving)],
                Prechecks::default(),
            );
            snapshot.poolers[0].query_wait_seconds = query_wait_seconds;
            let limits = Limits {
                cutover_max: std::time::Duration::from_secs(cutover_max),
                ..limits()
            };
            let finding = query_wait_timeout(&snapshot, &limits);
            finding.first().map(|one| (one.verdict, one.found.clone()))
        };
        let short = (Verdict::Decide, "120 s at pg-pooler-1".to_owned());
        assert_eq!(judged(Some(120.0), 120), Some(short));
        assert_eq!(judged(Some(120.0), 110).unwrap().0, Verdict::Decide);
        assert_eq!(judged(Some(120.0), 60).unwrap().0, Verdict::Ok);
        assert_eq!(judged(Some(0.0), 600).unwrap().0, Verdict::Ok);
        assert_eq!(judged(None, 600), None);
    }

    #[test]
    fn a_session_pooler_is_for_a_person_to_decide() {
        let judged = |mode: Option<&str>| {
            let prechecks = Prechecks {
                pool_mode: mode.map(str::to_owned),
                ..Prechecks::default()
            };
            let snapshot = observed(vec![Reachability::Up(PoolerState::Serving)], prechecks);
            pool_mode(&snapshot, &limits()).remove(0).verdict
        };
        assert_eq!(judged(None), Verdict::Ok);
        assert_eq!(judged(Some("session")), Verdict::Decide);
    }

    #[test]
    fn services_lead_to_the_targets_port() {
        let judged = |services: &[(&str, i32)]| {
            let mut snapshot = observed(vec![], Prechecks::default());
            let state = |port| ServiceState {
                port: Some(port),
                ..ServiceState::default()
            };
            snapshot.services = services
                .iter()
                .map(|(name, port)| ((*name).to_owned(), state(*port)))
                .collect::<BTreeMap<_, _>>();
            super::services(&snapshot, &limits()).remove(0).verdict
        };
        assert_eq!(judged(&[("pg", 5432), ("pg-repl", 5432)]), Verdict::Ok);
        assert_eq!(judged(&[("pg", 5432), ("pg-repl", 6432)]), Verdict::Blocker);
        assert_eq!(judged(&[("pg", 5432)]), Verdict::Ok);
        assert_eq!(judged(&[]), Verdict::Blocker);
    }

    #[test]
    fn a_hash_that_has_changed_is_a_blocker() {
        for (stored, secret, verdict) in [
            (Some("md5a"), Some("md5a"), Verdict::Ok),
            (Some("md5a"), Some("md5b"), Verdict::Blocker),
            (None, Some("md5a"), Verdict::Blocker),
            (Some("md5a"), None, Verdict::Blocker),
        ] {
            let prechecks = Prechecks {
                owner_password: Some(OwnerPassword {
                    owner: "app".into(),
                    comparison: HashComparison::of(stored, secret),
                }),
                ..Prechecks::default()
            };
            let finding = owner_password(&observed(vec![], prechecks), &limits()).remove(0);
            assert_eq!(finding.verdict, verdict, "{finding}");
        }
    }
}
