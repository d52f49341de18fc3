//! The operator's StatefulSet, pods and poolers. No kubelet runs: the pods' status is written here.

use serde_json::{Value, json};

use super::{
    member::MemberLayout,
    objects::{ACCOUNT, labels, secret_name},
    options::{Dcs, SourceOptions, Tls},
    patroni::{POSTGRES_PORT, initdb},
};

const IMAGE: &str = "ghcr.io/zalando/spilo-17:4.0-p2";

fn container(options: &SourceOptions, pg_hba: &[String]) -> Value {
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let from_secret = |name: &str, role: &str| {
        let reference = json!({"name": secret_name(&options.cluster, role), "key": "password"});
        json!({"name": name, "valueFrom": {"secretKeyRef": reference}})
    };
    let mut env = vec![
        value("SCOPE", &options.cluster),
        value("PGROOT", "/home/postgres/pgdata/pgroot"),
        json!({
            "name": "POD_IP",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}
        }),
        json!({
            "name": "POD_NAMESPACE",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
        }),
        value("PGUSER_SUPERUSER", "postgres"),
        value("KUBERNETES_SCOPE_LABEL", "cluster-name"),
        value("KUBERNETES_ROLE_LABEL", "spilo-role"),
        value("PGUSER_STANDBY", "standby"),
        from_secret("PGPASSWORD_SUPERUSER", "postgres"),
        from_secret("PGPASSWORD_STANDBY", "standby"),
        value("PGVERSION", &options.postgres.to_string()),
        value("KUBERNETES_LABELS", r#"{"application":"spilo"}"#),
        value("SPILO_CONFIGURATION", &spilo_configuration(options, pg_hba)),
        value("DCS_ENABLE_KUBERNETES_API", "true"),
    ];
    if options.dcs == Dcs::ConfigMaps {
        env.push(value("KUBERNETES_USE_CONFIGMAPS", "true"));
    }
    if options.tls != Tls::SelfSigned {
        env.extend([
            value("SSL_CERTIFICATE_FILE", "/tls/tls.crt"),
            value("SSL_PRIVATE_KEY_FILE", "/tls/tls.key"),
            value("SSL_CA_FILE", "/tlsca/ca.crt"),
        ]);
    }
    let ports =
        [8008, POSTGRES_PORT, 8080].map(|port| json!({"containerPort": port, "protocol": "TCP"}));
    json!({"name": "postgres", "image": IMAGE, "env": env, "ports": ports})
}

/// SPILO_CONFIGURATION; it contains pg_hba only if the resource does.
fn spilo_configuration(options: &SourceOptions, pg_hba: &[String]) -> String {
    let postgresql = if pg_hba.is_empty() {
        json!({})
    } else {
        json!({"pg_hba": pg_hba})
    };
    json!({"postgresql": postgresql, "bootstrap": {"initdb": initdb(options), "dcs": {}}})
        .to_string()
}

fn pod_spec(options: &SourceOptions, pg_hba: &[String]) -> Value {
    json!({
        "serviceAccountName": ACCOUNT, "terminationGracePeriodSeconds": 300,
        "containers": [container(options, pg_hba)]
    })
}

pub(super) fn stateful_set(options: &SourceOptions, instances: usize) -> Value {
    let labels = labels(options);
    let volume = json!({
        "metadata": {"name": "pgdata", "labels": labels},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "40Gi"}}},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": options.cluster, "labels": labels},
        "spec": {
            "replicas": instances, "serviceName": options.cluster,
            "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": labels}, "volumeClaimTemplates": [volume],
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(options, &[])},
        },
        "status": {
            "replicas": instances, "readyReplicas": instances, "availableReplicas": instances
        },
    })
}

/// A member's volume claim, as the StatefulSet controller creates it, bound to a volume of that
/// name.
pub(super) fn claim(options: &SourceOptions, layout: &MemberLayout) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": format!("pgdata-{}", layout.name), "labels": labels(options)},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "40Gi"}},
            "volumeName": format!("pv-{}", layout.name),
        },
    })
}

/// A member's pod. Patroni writes its role label and its annotation `status`.
pub(super) fn pod(options: &SourceOptions, layout: &MemberLayout, pg_hba: &[String]) -> Value {
    let mut labels = labels(options);
    labels["statefulset.kubernetes.io/pod-name"] = layout.name.as_str().into();
    let address = layout.kubernetes_address.to_string();
    let ready = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": "True"}));
    let state = json!({"running": {}});
    let container = json!({
        "name": "postgres", "image": IMAGE, "imageID": "", "ready": true, "restartCount": 0,
        "state": state
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": layout.name, "labels": labels},
        "spec": pod_spec(options, pg_hba),
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready,
            "containerStatuses": [container]
        },
    })
}

/// The pooler's Deployment and Service; its pods are [`crate::service::pgbouncer`]s.
pub(super) fn pooler(options: &SourceOptions, suffix: &str) -> [Value; 2] {
    let name = format!("{}-pooler{suffix}", options.cluster);
    let selector = json!({
        "application": "db-connection-pooler", "cluster-name": options.cluster,
        "connection-pooler": name
    });
    let mut labels = selector.clone();
    labels["team"] = "mastodon".into();
    labels["spilo-role"] = if suffix.is_empty() {
        "master"
    } else {
        "replica"
    }
    .into();
    let container = json!({
        "name": "connection-pooler",
        "image": "registry.opensource.zalan.do/acid/pgbouncer:master-32",
        "ports": [{"containerPort": POSTGRES_PORT}]
    });
    let template = json!({
        "metadata": {"labels": labels},
        "spec": {"serviceAccountName": ACCOUNT, "containers": [container]}
    });
    [
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": 2, "selector": {"matchLabels": selector}, "template": template},
            "status": {
                "replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
            "spec": {"selector": selector, "ports": [{"name": name, "port": POSTGRES_PORT}]},
        }),
    ]
}
