//! The Kubernetes objects that the operator 1.15 makes for a cluster (facts/zalando.md §1, §4), and the owner's own.
//! No kubelet runs: the pods' status is written as the kubelet would.

use serde_json::{Value, json};

use super::{
    Credentials,
    certificates::Certificates,
    member::Place,
    options::{Checksums, Dcs, SourceOptions},
    patroni::POSTGRES_PORT,
};

const IMAGE: &str = "ghcr.io/zalando/spilo-17:4.0-p2";
/// Name of the ServiceAccount, Role and RoleBinding of every Spilo pod.
pub(super) const ACCOUNT: &str = "postgres-pod";

/// Name of the Secret of a role, underscores as dashes.
pub fn secret_name(cluster: &str, role: &str) -> String {
    format!("{}.{cluster}.credentials.postgresql.acid.zalan.do", role.replace('_', "-"))
}

/// Everything that must be there before the first member starts.
pub(super) fn all(options: &SourceOptions, places: &[Place], credentials: &Credentials, certificates: &Certificates) -> Vec<Value> {
    let mut objects = vec![
        resource(options, places.len(), certificates),
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
    objects.push(stateful_set(options, places.len(), certificates));
    objects.extend(places.iter().map(|place| pod(options, place, certificates)));
    objects.extend(["", "-repl"].into_iter().flat_map(|suffix| pooler(options, suffix)));
    objects
}

fn labels(options: &SourceOptions) -> Value {
    json!({"application": "spilo", "cluster-name": options.cluster, "team": "mastodon"})
}

/// The `postgresql` resource as its owner wrote it, with the operator's status.
fn resource(options: &SourceOptions, instances: usize, certificates: &Certificates) -> Value {
    let (cluster, database) = (&options.cluster, &options.database);
    let mut spec = json!({
        "teamId": "mastodon", "numberOfInstances": instances, "volume": {"size": "40Gi"},
        "postgresql": {"version": "17"},
        "users": {database: []}, "databases": {database: database},
        "enableConnectionPooler": true, "enableReplicaConnectionPooler": true,
    });
    if certificates.secret.is_some() {
        spec["tls"] = json!({"secretName": format!("{cluster}-server"), "caSecretName": format!("{cluster}-ca"), "caFile": "ca.crt"});
    }
    if options.checksums == Checksums::On {
        spec["patroni"] = json!({"initdb": {"data-checksums": "true"}});
    }
    let status = json!({"PostgresClusterStatus": "Running"});
    json!({"apiVersion": "acid.zalan.do/v1", "kind": "postgresql", "metadata": {"name": cluster, "labels": {"team": "mastodon"}}, "spec": spec, "status": status})
}

fn account() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}})
}

/// As the operator's ClusterRole `postgres-pod`.
fn role() -> Value {
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let rules = json!([
        {"apiGroups": [""], "resources": ["endpoints", "configmaps"], "verbs": all},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch", "update", "watch"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]},
    ]);
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": ACCOUNT}, "rules": rules})
}

fn binding(namespace: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    })
}

fn secret(name: &str, labels: &Value, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": {"name": name, "labels": labels}, "stringData": data})
}

fn tls_secrets(options: &SourceOptions, certificates: &Certificates) -> Vec<Value> {
    let Some(authority) = &certificates.secret else { return Vec::new() };
    let root = certificates.root.as_deref().unwrap_or_default();
    let server = json!({"tls.crt": certificates.server.certificate, "tls.key": certificates.server.key, "ca.crt": root});
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
    let selector = |role: &str| json!({"application": "spilo", "cluster-name": options.cluster, "spilo-role": role});
    let service = |name: String, role: &str, selector: Option<Value>| {
        let mut labels = labels(options);
        labels["spilo-role"] = role.into();
        let port = json!({"name": "postgresql", "port": POSTGRES_PORT, "targetPort": POSTGRES_PORT, "protocol": "TCP"});
        let mut spec = json!({"type": "ClusterIP", "ports": [port]});
        if let Some(selector) = selector {
            spec["selector"] = selector;
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec})
    };
    let leader = (options.dcs == Dcs::ConfigMaps).then(|| selector("master"));
    [
        service(options.cluster.clone(), "master", leader),
        service(format!("{}-repl", options.cluster), "replica", Some(selector("replica"))),
    ]
}

fn container(options: &SourceOptions, certificates: &Certificates) -> Value {
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let from_secret = |name: &str, role: &str| {
        let reference = json!({"name": secret_name(&options.cluster, role), "key": "password"});
        json!({"name": name, "valueFrom": {"secretKeyRef": reference}})
    };
    let mut env = vec![
        value("SCOPE", &options.cluster),
        value("PGROOT", "/home/postgres/pgdata/pgroot"),
        json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}),
        json!({"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}}),
        value("PGUSER_SUPERUSER", "postgres"),
        value("KUBERNETES_SCOPE_LABEL", "cluster-name"),
        value("KUBERNETES_ROLE_LABEL", "spilo-role"),
        value("PGUSER_STANDBY", "standby"),
        from_secret("PGPASSWORD_SUPERUSER", "postgres"),
        from_secret("PGPASSWORD_STANDBY", "standby"),
        value("PGVERSION", "17"),
        value("KUBERNETES_LABELS", r#"{"application":"spilo"}"#),
        value("DCS_ENABLE_KUBERNETES_API", "true"),
    ];
    if options.dcs == Dcs::ConfigMaps {
        env.push(value("KUBERNETES_USE_CONFIGMAPS", "true"));
    }
    if certificates.secret.is_some() {
        env.extend([
            value("SSL_CERTIFICATE_FILE", "/tls/tls.crt"),
            value("SSL_PRIVATE_KEY_FILE", "/tls/tls.key"),
            value("SSL_CA_FILE", "/tlsca/ca.crt"),
        ]);
    }
    let ports = [8008, POSTGRES_PORT, 8080].map(|port| json!({"containerPort": port, "protocol": "TCP"}));
    json!({"name": "postgres", "image": IMAGE, "env": env, "ports": ports})
}

fn pod_spec(options: &SourceOptions, certificates: &Certificates) -> Value {
    json!({"serviceAccountName": ACCOUNT, "terminationGracePeriodSeconds": 300, "containers": [container(options, certificates)]})
}

fn stateful_set(options: &SourceOptions, instances: usize, certificates: &Certificates) -> Value {
    let labels = labels(options);
    let volume = json!({
        "metadata": {"name": "pgdata", "labels": labels},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "40Gi"}}},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": options.cluster, "labels": labels},
        "spec": {
            "replicas": instances, "serviceName": options.cluster, "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": labels}, "volumeClaimTemplates": [volume],
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(options, certificates)},
        },
        "status": {"replicas": instances, "readyReplicas": instances, "availableReplicas": instances},
    })
}

/// Its role label and the annotation `status` are Patroni's to write.
fn pod(options: &SourceOptions, place: &Place, certificates: &Certificates) -> Value {
    let mut labels = labels(options);
    labels["statefulset.kubernetes.io/pod-name"] = place.name.as_str().into();
    let address = place.paper_address.to_string();
    let ready = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(|kind| json!({"type": kind, "status": "True"}));
    let state = json!({"running": {}});
    let container = json!({"name": "postgres", "image": IMAGE, "imageID": "", "ready": true, "restartCount": 0, "state": state});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": place.name, "labels": labels}, "spec": pod_spec(options, certificates),
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready, "containerStatuses": [container]},
    })
}

/// The pooler's Deployment and Service; no pgbouncer runs behind them.
fn pooler(options: &SourceOptions, suffix: &str) -> [Value; 2] {
    let name = format!("{}-pooler{suffix}", options.cluster);
    let selector = json!({"application": "db-connection-pooler", "cluster-name": options.cluster, "connection-pooler": name});
    let mut labels = selector.clone();
    labels["team"] = "mastodon".into();
    labels["spilo-role"] = if suffix.is_empty() { "master" } else { "replica" }.into();
    let container = json!({"name": "connection-pooler", "image": "registry.opensource.zalan.do/acid/pgbouncer:master-32", "ports": [{"containerPort": POSTGRES_PORT}]});
    let template = json!({"metadata": {"labels": labels}, "spec": {"serviceAccountName": ACCOUNT, "containers": [container]}});
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": 2, "selector": {"matchLabels": selector}, "template": template},
            "status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"selector": selector, "ports": [{"name": name, "port": POSTGRES_PORT}]},
        }),
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
            services(&SourceOptions { dcs, ..Default::default() })[0]["spec"]
                .get("selector")
                .is_some()
        };
        assert!(with(Dcs::ConfigMaps) && !with(Dcs::Endpoints));
    }
}
