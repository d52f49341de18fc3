//! The Kubernetes objects that the operator 1.15 creates for a cluster (docs/operators/zalando.md),
//! and those of the owner.

use serde_json::{Value, json};

use super::{
    Credentials,
    certificates::Certificates,
    member::MemberLayout,
    options::{Checksums, Dcs, SourceOptions, Tls},
    patroni::POSTGRES_PORT,
    workloads,
};

/// Name of the ServiceAccount, Role and RoleBinding of every Spilo pod.
pub(super) const ACCOUNT: &str = "postgres-pod";

/// Name of a role's Secret; underscores become dashes.
pub fn secret_name(cluster: &str, role: &str) -> String {
    format!(
        "{}.{cluster}.credentials.postgresql.acid.zalan.do",
        role.replace('_', "-")
    )
}

/// All objects that must exist before the first member starts.
pub(super) fn all(
    options: &SourceOptions,
    layouts: &[MemberLayout],
    credentials: &Credentials,
    certificates: &Certificates,
) -> Vec<Value> {
    let mut objects = vec![
        resource(options, layouts.len()),
        account(),
        role(),
        binding(&options.namespace),
    ];
    objects.extend(credentials.roles(options).map(|(role, password)| {
        let data = json!({"username": role, "password": password});
        secret(&secret_name(&options.cluster, role), &labels(options), data)
    }));
    objects.extend(tls_secrets(options, certificates));
    objects.extend(services(options));
    objects.push(workloads::stateful_set(options, layouts.len()));
    objects.extend(
        layouts
            .iter()
            .map(|layout| workloads::claim(options, layout)),
    );
    objects.extend(
        layouts
            .iter()
            .map(|layout| workloads::pod(options, layout, &[])),
    );
    objects.extend(
        ["", "-repl"]
            .into_iter()
            .flat_map(|suffix| workloads::pooler(options, suffix)),
    );
    objects
}

/// The labels of all objects that the operator creates for the cluster.
pub(super) fn labels(options: &SourceOptions) -> Value {
    json!({"application": "spilo", "cluster-name": options.cluster, "team": "mastodon"})
}

/// The `postgresql` resource as its owner wrote it, with the operator's status.
fn resource(options: &SourceOptions, instances: usize) -> Value {
    let (cluster, database) = (&options.cluster, &options.database);
    let mut spec = json!({
        "teamId": "mastodon", "numberOfInstances": instances, "volume": {"size": "40Gi"},
        "postgresql": {"version": options.postgres.to_string()},
        "users": {database: []}, "databases": {database: database},
        "enableConnectionPooler": true, "enableReplicaConnectionPooler": true,
    });
    if options.tls != Tls::SelfSigned {
        spec["tls"] = json!({
            "secretName": format!("{cluster}-server"), "caSecretName": format!("{cluster}-ca"),
            "caFile": "ca.crt"
        });
    }
    if options.checksums == Checksums::On {
        spec["patroni"] = json!({"initdb": {"data-checksums": "true"}});
    }
    let status = json!({"PostgresClusterStatus": "Running"});
    json!({
        "apiVersion": "acid.zalan.do/v1", "kind": "postgresql",
        "metadata": {"name": cluster, "labels": {"team": "mastodon"}}, "spec": spec,
        "status": status
    })
}

fn account() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}})
}

/// As the operator's ClusterRole `postgres-pod`.
fn role() -> Value {
    let all = [
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    ];
    let rules = json!([
        {"apiGroups": [""], "resources": ["endpoints", "configmaps"], "verbs": all},
        {
            "apiGroups": [""], "resources": ["pods"],
            "verbs": ["get", "list", "patch", "update", "watch"]
        },
        {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]},
    ]);
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": ACCOUNT},
        "rules": rules
    })
}

fn binding(namespace: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    })
}

fn secret(name: &str, labels: &Value, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "labels": labels}, "stringData": data
    })
}

fn tls_secrets(options: &SourceOptions, certificates: &Certificates) -> Vec<Value> {
    let Some(authority) = &certificates.secret else {
        return Vec::new();
    };
    let root = certificates.root.as_deref().unwrap_or_default();
    let server = json!({
        "tls.crt": certificates.server.certificate, "tls.key": certificates.server.key,
        "ca.crt": root
    });
    let authority: Value = authority
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    [("server", server), ("ca", authority)]
        .map(|(suffix, data)| secret(&format!("{}-{suffix}", options.cluster), &json!({}), data))
        .into()
}

/// With Endpoints as DCS the leader's Service has no selector: Patroni writes its Endpoints.
fn services(options: &SourceOptions) -> [Value; 2] {
    let selector = |role: &str| {
        json!({
            "application": "spilo", "cluster-name": options.cluster, "spilo-role": role
        })
    };
    let service = |name: String, role: &str, selector: Option<Value>| {
        let mut labels = labels(options);
        labels["spilo-role"] = role.into();
        let port = json!({
            "name": "postgresql", "port": POSTGRES_PORT, "targetPort": POSTGRES_PORT,
            "protocol": "TCP"
        });
        let mut spec = json!({"type": "ClusterIP", "ports": [port]});
        if let Some(selector) = selector {
            spec["selector"] = selector;
        }
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": spec
        })
    };
    let leader = (options.dcs == Dcs::ConfigMaps).then(|| selector("master"));
    [
        service(options.cluster.clone(), "master", leader),
        service(
            format!("{}-repl", options.cluster),
            "replica",
            Some(selector("replica")),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_with_an_underscore_has_a_secret_with_a_dash() {
        assert_eq!(
            secret_name("c", "streaming_replica"),
            "streaming-replica.c.credentials.postgresql.acid.zalan.do"
        );
    }

    #[test]
    fn the_leaders_service_has_a_selector_with_configmaps_only() {
        let with = |dcs| {
            services(&SourceOptions {
                dcs,
                ..Default::default()
            })[0]["spec"]
                .get("selector")
                .is_some()
        };
        assert!(with(Dcs::ConfigMaps) && !with(Dcs::Endpoints));
    }
}
