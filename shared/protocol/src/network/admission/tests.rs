use serde_json::{Value, json};

use super::*;
use crate::network::NamedPort;

const PORT: u16 = 5432;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn pooler() -> Pod {
    Pod {
        name: "pg-pooler-1".into(),
        labels: Some(labels(&[
            ("application", "db-connection-pooler"),
            ("cluster-name", "pg"),
        ])),
        address: Some([10, 1, 2, 3].into()),
        ports: Vec::new(),
    }
}

fn instance() -> Pod {
    Pod {
        name: "database-1".into(),
        labels: Some(labels(&[("cnpg.io/cluster", "database")])),
        address: Some([10, 1, 2, 4].into()),
        ports: vec![NamedPort {
            name: "postgresql".into(),
            protocol: "TCP".into(),
            number: PORT,
        }],
    }
}

fn judged(policies: &[Value], client: &Pod) -> [Admission; 2] {
    let policies = policies.iter().enumerate().map(|(number, spec)| Policy {
        name: format!("policy-{number}"),
        spec: serde_json::from_value(spec.clone()).unwrap(),
    });
    let network = Network {
        namespace: "mastodon".into(),
        policies: policies.collect(),
        pods: Vec::new(),
    };
    let server = instance();
    let path = Path {
        client,
        server: &server,
    };
    network
        .judge(path, PORT)
        .map(|judgement| judgement.admission)
}

/// What these policies say about a connection from the pooler to the instance: egress and ingress.
fn from_pooler(policies: &[Value]) -> [Admission; 2] {
    judged(policies, &pooler())
}

/// An ingress policy of all pods with these rules.
fn ingress(rules: Value) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules})
}

/// The answer of one ingress policy with one rule.
fn rule(rule: Value) -> Admission {
    from_pooler(&[ingress(json!([rule]))])[1]
}

/// The answer of one ingress policy with one peer.
fn peer(peer: Value) -> Admission {
    rule(json!({"from": [peer]}))
}

/// The answer of one ingress policy with one port.
fn port(port: Value) -> Admission {
    rule(json!({"ports": [port]}))
}

use Admission::{Admitted, Refused, Unknown};

#[test]
fn without_a_policy_that_selects_it_a_pod_admits_everything() {
    assert_eq!(from_pooler(&[]), [Admitted, Admitted]);
    let of_another = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    assert_eq!(from_pooler(&[of_another]), [Admitted, Admitted]);
}

#[test]
fn a_policy_without_rules_refuses_everything_in_its_directions() {
    let deny = |types: Value| from_pooler(&[json!({"podSelector": {}, "policyTypes": types})]);
    assert_eq!(deny(json!(["Ingress"])), [Admitted, Refused]);
    assert_eq!(deny(json!(["Egress"])), [Refused, Admitted]);
    assert_eq!(deny(json!(["Ingress", "Egress"])), [Refused, Refused]);
}

#[test]
fn directions_that_are_left_out_follow_from_the_rules() {
    assert_eq!(
        from_pooler(&[json!({"podSelector": {}})]),
        [Admitted, Refused]
    );
    let with_egress = json!({"podSelector": {}, "ingress": [{}], "egress": [
        {"to": [{"podSelector": {"matchLabels": {"application": "spilo"}}}]}
    ]});
    assert_eq!(from_pooler(&[with_egress]), [Refused, Admitted]);
    // Rules of a direction that is not listed do not count.
    let ignored = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"no": "pod"}}}]}]});
    assert_eq!(from_pooler(&[ignored]), [Admitted, Admitted]);
}

#[test]
fn an_empty_rule_admits_everything_and_the_rules_of_several_policies_add_up() {
    assert_eq!(rule(json!({})), Admitted);
    assert_eq!(rule(json!({"from": [], "ports": []})), Admitted);
    let deny = ingress(json!([]));
    let admit = json!({
        "podSelector": {"matchLabels": {"cnpg.io/cluster": "database"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [
            {"podSelector": {"matchLabels": {"application": "db-connection-pooler"}}}
        ]}],
    });
    assert_eq!(from_pooler(&[deny.clone(), admit]), [Admitted, Admitted]);
    let elsewhere = json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]);
    assert_eq!(from_pooler(&[deny, ingress(elsewhere)])[1], Refused);
}

#[test]
fn a_peer_is_named_by_the_labels_of_its_pod_and_of_its_namespace() {
    let pods = json!({"matchLabels": {"application": "db-connection-pooler"}});
    let others = json!({"matchExpressions": [
        {"key": "application", "operator": "NotIn", "values": ["db-connection-pooler"]}
    ]});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": "mastodon"}});
    let elsewhere = json!({"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}});
    let by_label = json!({"matchLabels": {"team": "social"}});
    for (peer_given, expected) in [
        (json!({"podSelector": {}}), Admitted),
        (json!({"podSelector": pods}), Admitted),
        (json!({"podSelector": others}), Refused),
        (json!({"namespaceSelector": {}}), Admitted),
        (json!({"namespaceSelector": here}), Admitted),
        (json!({"namespaceSelector": elsewhere}), Refused),
        (json!({"namespaceSelector": by_label}), Unknown),
        (
            json!({"namespaceSelector": here, "podSelector": pods}),
            Admitted,
        ),
        (
            json!({"namespaceSelector": here, "podSelector": others}),
            Refused,
        ),
        (
            json!({"namespaceSelector": elsewhere, "podSelector": pods}),
            Refused,
        ),
        (
            json!({"namespaceSelector": by_label, "podSelector": pods}),
            Unknown,
        ),
        (
            json!({"namespaceSelector": by_label, "podSelector": others}),
            Refused,
        ),
    ] {
        assert_eq!(peer(peer_given.clone()), expected, "{peer_given}");
    }
    // One of several is enough.
    let several = json!({"from": [{"podSelector": others}, {"podSelector": pods}]});
    assert_eq!(rule(several), Admitted);
}

#[test]
fn an_address_block_never_admits_a_pod_for_certain() {
    for (block, expected) in [
        (json!({"cidr": "0.0.0.0/0"}), Unknown),
        (json!({"cidr": "10.1.0.0/16"}), Unknown),
        (json!({"cidr": "10.1.2.3/32"}), Unknown),
        (json!({"cidr": "10.2.0.0/16"}), Refused),
        (json!({"cidr": "10.1.2.4/32"}), Refused),
        (
            json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}),
            Refused,
        ),
        (
            json!({"cidr": "10.0.0.0/8", "except": ["10.1.4.0/24"]}),
            Unknown,
        ),
        (json!({"cidr": "::/0"}), Refused),
    ] {
        assert_eq!(peer(json!({"ipBlock": block})), expected, "{block}");
    }
    let inside = |cidr: &str, address: &str| contains(cidr, address.parse().unwrap());
    assert!(inside("::/0", "2001:db8::1") && inside("2001:db8::/32", "2001:db8::1"));
    assert!(!inside("2001:db8::/32", "2001:db9::1"));
    assert!(!inside("10.0.0.0/33", "10.0.0.1") && !inside("10.0.0.0", "10.0.0.0"));
}

#[test]
fn a_port_is_a_number_a_range_or_a_name_that_the_server_declares() {
    for (given, expected) in [
        (json!({}), Admitted),
        (json!({"protocol": "TCP"}), Admitted),
        (json!({"protocol": "UDP"}), Refused),
        (json!({"port": 5432}), Admitted),
        (json!({"protocol": "TCP", "port": 5432}), Admitted),
        (json!({"protocol": "UDP", "port": 5432}), Refused),
        (json!({"port": 6432}), Refused),
        (json!({"port": 5000, "endPort": 6000}), Admitted),
        (json!({"port": 5432, "endPort": 5432}), Admitted),
        (json!({"port": 5433, "endPort": 6000}), Refused),
        (json!({"port": "postgresql"}), Admitted),
        (json!({"port": "postgresql", "protocol": "UDP"}), Refused),
        (json!({"port": "metrics"}), Refused),
    ] {
        assert_eq!(port(given.clone()), expected, "{given}");
    }
    let several = json!({"ports": [{"port": 9187}, {"port": 5432}]});
    assert_eq!(rule(several), Admitted);
    // The right peer at the wrong port is refused.
    let mixed = json!([
        {"from": [{"podSelector": {}}], "ports": [{"port": 9187}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]},
    ]);
    assert_eq!(from_pooler(&[ingress(mixed)])[1], Refused);
}

#[test]
fn egress_rules_name_the_server_and_a_name_of_one_of_its_ports() {
    let egress = |to: Value, ports: Value| {
        let policy = json!({
            "podSelector": {"matchLabels": {"application": "db-connection-pooler"}},
            "policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}],
        });
        from_pooler(&[policy])
    };
    let target = json!([{"podSelector": {"matchLabels": {"cnpg.io/cluster": "database"}}}]);
    let source = json!([{"podSelector": {"matchLabels": {"application": "spilo"}}}]);
    let named = json!([{"port": "postgresql"}]);
    assert_eq!(egress(target.clone(), named), [Admitted, Admitted]);
    assert_eq!(
        egress(target, json!([{"port": 53, "protocol": "UDP"}]))[0],
        Refused
    );
    assert_eq!(egress(source, json!([]))[0], Refused);
    // Both directions are needed, and each is judged by its own policies.
    let nothing = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    assert_eq!(
        from_pooler(&[nothing, ingress(json!([{}]))]),
        [Refused, Admitted]
    );
}

#[test]
fn a_client_that_is_no_pod_of_the_namespace_is_admitted_only_by_a_rule_for_every_source() {
    let client = Pod {
        name: "10.9.9.9".into(),
        address: Some([10, 9, 9, 9].into()),
        ..Pod::default()
    };
    let judge = |rule: Value| judged(&[ingress(json!([rule]))], &client);
    assert_eq!(judge(json!({})), [Admitted, Admitted]);
    assert_eq!(judge(json!({"from": [{"podSelector": {}}]}))[1], Refused);
    assert_eq!(
        judge(json!({"from": [{"namespaceSelector": {}}]}))[1],
        Unknown
    );
    assert_eq!(
        judge(json!({"from": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}))[1],
        Unknown
    );
    assert_eq!(
        judge(json!({"from": [{"ipBlock": {"cidr": "10.8.0.0/16"}}]}))[1],
        Refused
    );
    // No policy of this namespace is about its own connections.
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    assert_eq!(judged(&[egress], &client), [Admitted, Admitted]);
}

#[test]
fn the_policies_that_select_a_pod_are_named() {
    let network = Network {
        namespace: "mastodon".into(),
        policies: vec![
            Policy {
                name: "default-deny".into(),
                spec: serde_json::from_value(ingress(json!([]))).unwrap(),
            },
            Policy {
                name: "of-another".into(),
                spec: serde_json::from_value(
                    json!({"podSelector": {"matchLabels": {"app": "web"}}}),
                )
                .unwrap(),
            },
        ],
        pods: Vec::new(),
    };
    let (client, server) = (pooler(), instance());
    let path = Path {
        client: &client,
        server: &server,
    };
    let [_, ingress] = network.judge(path, PORT);
    assert_eq!(ingress.policies, ["default-deny"]);
    assert_eq!(ingress.direction, Direction::Ingress);
}
