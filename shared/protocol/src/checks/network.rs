//! Who uses the database today can reach it after the cutover, as far as NetworkPolicies of the
//! namespace decide it.

#![deny(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict, listed},
    network::{
        Network,
        admission::{Admission, Direction, Judgement},
    },
    route::Route,
    snapshot::Snapshot,
};

const ID: &str = "network-policy";

pub(super) const CHECKS: &[Check] = &[Check {
    // A network plugin that does not enforce policies refuses no connection.
    acceptable: true,
    ..Check::new(ID, network_policy)
}];

/// PostgreSQL's port, on which the target's pods and its poolers listen.
const PORT: u16 = 5432;

/// Connections that the same policies do not admit.
#[derive(Default)]
struct Group {
    clients: BTreeSet<String>,
    servers: BTreeSet<String>,
}

/// The policies admit the connections that are needed after the cutover: a finding for each group
/// of policies that refuses one, or leaves it open.
fn network_policy(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let network = snapshot.prechecks.as_ref();
    let Some(network) = network.and_then(|prechecks| prechecks.network.as_ref()) else {
        return Vec::new();
    };
    let route = Route::of(limits.route, !snapshot.poolers.is_empty());
    let hosts = limits.config.values().map(String::as_str).collect();
    let groups = groups(network, route, &hosts);
    if groups.is_empty() {
        let found = format!("{} policies, none refuses it", network.policies.len());
        return vec![Finding::ok(ID, WANTED, found)];
    }
    groups.into_iter().map(finding).collect()
}

const WANTED: &str = "the pods that use the database are admitted to the target";

type Groups = BTreeMap<(Admission, Direction, String), Group>;

fn groups(network: &Network, route: Route, hosts: &BTreeSet<&str>) -> Groups {
    let mut groups = Groups::new();
    for path in network.paths(route, hosts) {
        let judgements = network.judge(path, PORT).into_iter();
        for judgement in judgements.filter(|one| one.admission != Admission::Admitted) {
            let Judgement {
                direction,
                policies,
                admission,
            } = judgement;
            let group = groups
                .entry((admission, direction, policies.join("+")))
                .or_default();
            group.clients.insert(path.client.name.clone());
            group.servers.insert(path.server.name.clone());
        }
    }
    groups
}

fn finding(
    ((admission, direction, policies), group): ((Admission, Direction, String), Group),
) -> Finding {
    let list = |names: BTreeSet<String>| listed(&names.into_iter().collect::<Vec<_>>());
    let (clients, servers) = (list(group.clients), list(group.servers));
    let subject = match direction {
        Direction::Ingress => "the policies of the target's pods",
        Direction::Egress => "the policies of the clients' pods",
    };
    let found = match admission {
        Admission::Unknown => format!(
            "{subject} may refuse {clients} at {servers}, port {PORT}: only labels of a namespace \
             or an ipBlock would admit them"
        ),
        _ => format!("{subject} do not admit {clients} to {servers}, port {PORT}"),
    };
    let finding = Finding::ok(ID, WANTED, found).about(policies);
    if admission == Admission::Unknown {
        return finding.with(
            Verdict::Decide,
            "name the pods by a podSelector in the rule: some network plugins do not apply an \
             ipBlock to pods",
        );
    }
    finding.with(
        Verdict::Blocker,
        match direction {
            Direction::Ingress => {
                "add an ingress rule for these pods, by their labels, at that port; accept it if \
                 the network plugin does not enforce NetworkPolicies"
            }
            Direction::Egress => {
                "add an egress rule to the target's pods (label cnpg.io/cluster), at that port; \
                 accept it if the network plugin does not enforce NetworkPolicies"
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        network::{Pod, PodRole, Policy},
        simulation::{limits, look},
        snapshot::prechecks::Prechecks,
    };

    fn pod(name: &str, label: (&str, &str)) -> Pod {
        Pod {
            name: name.into(),
            labels: Some([(label.0.to_owned(), label.1.to_owned())].into()),
            ..Pod::default()
        }
    }

    /// The findings about these policies and pods.
    fn judged(route: Route, policies: &[(&str, Value)], pods: Vec<(PodRole, Pod)>) -> Vec<Finding> {
        let policy = |(name, spec): &(&str, Value)| Policy {
            name: (*name).to_owned(),
            spec: serde_json::from_value(spec.clone()).unwrap(),
        };
        let mut snapshot = look();
        snapshot.prechecks = Some(Prechecks {
            network: Some(Network {
                namespace: "mastodon".into(),
                policies: policies.iter().map(policy).collect(),
                pods,
            }),
            ..Prechecks::default()
        });
        let limits = Limits {
            route: Some(route),
            config: [(
                "DB_HOST".to_owned(),
                "database-pooler-rw.mastodon.svc".to_owned(),
            )]
            .into(),
            ..limits()
        };
        network_policy(&snapshot, &limits)
    }

    fn by_service() -> Vec<(PodRole, Pod)> {
        vec![
            (
                PodRole::Instance,
                pod("database-1", ("cnpg.io/cluster", "database")),
            ),
            (
                PodRole::SourcePooler,
                pod("pg-pooler-1", ("application", "db-connection-pooler")),
            ),
            (
                PodRole::SourcePooler,
                pod("pg-pooler-2", ("application", "db-connection-pooler")),
            ),
            (PodRole::Application, pod("web-1", ("app", "web"))),
        ]
    }

    /// Only the application's pods are admitted to the target.
    fn application_only() -> (&'static str, Value) {
        let spec = json!({
            "podSelector": {"matchLabels": {"cnpg.io/cluster": "database"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
        });
        ("target", spec)
    }

    #[test]
    fn policies_that_do_not_admit_the_poolers_block_and_are_named_with_the_pods() {
        let findings = judged(Route::Service, &[application_only()], by_service());
        let [finding] = &findings[..] else {
            panic!("{findings:#?}")
        };
        assert_eq!(finding.verdict, Verdict::Blocker);
        assert_eq!(
            finding.to_string(),
            "network-policy:target: wanted the pods that use the database are admitted to the \
             target, found the policies of the target's pods do not admit pg-pooler-1, pg-pooler-2 \
             to database-1, port 5432"
        );
    }

    #[test]
    fn without_poolers_the_application_itself_needs_the_way_to_the_target() {
        let mut pods = by_service();
        pods.retain(|(role, _)| *role != PodRole::SourcePooler);
        let findings = judged(Route::Service, &[application_only()], pods.clone());
        assert_eq!(findings[0].verdict, Verdict::Ok);
        pods.push((PodRole::Session, pod("exporter-1", ("app", "exporter"))));
        let findings = judged(Route::Service, &[application_only()], pods);
        assert_eq!(findings[0].verdict, Verdict::Blocker);
        assert!(findings[0].found.contains("exporter-1"), "{}", findings[0]);
    }

    #[test]
    fn a_changed_config_map_leads_through_the_targets_pooler_where_it_names_one() {
        let mut pods = by_service();
        let findings = judged(Route::Config, &[application_only()], pods.clone());
        assert_eq!(findings[0].verdict, Verdict::Ok);
        let pooler = pod(
            "database-pooler-rw-1",
            ("cnpg.io/poolerName", "database-pooler-rw"),
        );
        pods.push((PodRole::TargetPooler("database-pooler-rw".into()), pooler));
        let findings = judged(Route::Config, &[application_only()], pods.clone());
        assert_eq!(findings[0].verdict, Verdict::Blocker);
        assert!(
            findings[0]
                .found
                .contains("database-pooler-rw-1 to database-1"),
            "{}",
            findings[0]
        );
        let of_pooler = json!({
            "podSelector": {"matchLabels": {"cnpg.io/poolerName": "database-pooler-rw"}},
            "ingress": [],
        });
        let findings = judged(Route::Config, &[("pooler", of_pooler)], pods);
        assert!(
            findings[0].found.contains("web-1 to database-pooler-rw-1"),
            "{}",
            findings[0]
        );
    }

    #[test]
    fn egress_and_ingress_are_told_apart_and_what_is_open_is_for_a_person_to_decide() {
        let egress = json!({
            "podSelector": {"matchLabels": {"application": "db-connection-pooler"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"application": "spilo"}}}]}],
        });
        let open = json!({
            "podSelector": {"matchLabels": {"cnpg.io/cluster": "database"}},
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "social"}}}]}],
        });
        let findings = judged(
            Route::Service,
            &[("poolers", egress), ("target", open)],
            by_service(),
        );
        let seen: Vec<(String, Verdict)> = findings
            .iter()
            .map(|finding| (finding.key(), finding.verdict))
            .collect();
        assert_eq!(
            seen,
            [
                ("network-policy:poolers".to_owned(), Verdict::Blocker),
                ("network-policy:target".to_owned(), Verdict::Decide),
            ]
        );
    }
}
