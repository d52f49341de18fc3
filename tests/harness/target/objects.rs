//! The Kubernetes objects that CNPG creates for a Cluster (pkg/specs), as far as
//! others read them.

use anyhow::{Context, Result};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, PodSpec},
};
use kube::{Resource, ResourceExt};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::{Value, json};

use super::cluster::{Cluster, POD_PATCH};
use crate::authority::{Authority, Pair};

/// Mount path of the data volume.
pub const DATA_MOUNT: &str = "/var/lib/postgresql/data";
/// Mount path of the scratch volume.
pub const SCRATCH_MOUNT: &str = "/controller";

/// An instance's name: its pod and volume claim, and the prefix of its Job.
pub fn instance_name(cluster: &str, number: u32) -> String {
    format!("{cluster}-{number}")
}

/// The suffix of the Job that makes the first instance, or a further one.
pub fn job_role(number: u32) -> &'static str {
    if number == 1 { "pgbasebackup" } else { "join" }
}

fn metadata(cluster: &Cluster, name: &str, mut labels: Value) -> Value {
    labels["cnpg.io/cluster"] = json!(cluster.name_any());
    labels["app.kubernetes.io/managed-by"] = json!("cloudnative-pg");
    json!({
        "name": name, "namespace": cluster.namespace(), "labels": labels,
        "ownerReferences": cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
    })
}

/// Services `-rw`, `-ro`, `-r` (pkg/specs/services.go). `-rw` selects the designated primary in
/// replica mode, too.
pub fn services(cluster: &Cluster) -> Vec<Value> {
    let name = cluster.name_any();
    let selectors = [
        (
            "rw",
            json!({"cnpg.io/cluster": name, "cnpg.io/instanceRole": "primary"}),
        ),
        (
            "ro",
            json!({"cnpg.io/cluster": name, "cnpg.io/instanceRole": "replica"}),
        ),
        (
            "r",
            json!({"cnpg.io/cluster": name, "cnpg.io/podRole": "instance"}),
        ),
    ];
    let service = |(suffix, selector): (&str, Value)| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": metadata(cluster, &format!("{name}-{suffix}"), json!({})),
            "spec": {
                "type": "ClusterIP", "selector": selector,
                "ports": [{"name": "postgres", "port": 5432, "targetPort": 5432, "protocol": "TCP"}]
            },
        })
    };
    selectors.into_iter().map(service).collect()
}

/// The Secrets `-ca`, `-server`, `-replication` with a fresh PKI; the server's names are those of
/// the Services.
///
/// # Errors
/// The certificate library refuses.
pub fn pki(cluster: &Cluster) -> Result<Vec<Value>> {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let ca = Authority::root(&name)?;
    let names: Vec<String> = ["rw", "r", "ro"]
        .iter()
        .flat_map(|suffix| service_names(&format!("{name}-{suffix}"), &namespace))
        .collect();
    let server = ca.server(&format!("{name}-rw"), &names, &[])?;
    let replication = client_certificate(&ca, "streaming_replica")?;
    let opaque = secret(
        cluster,
        &format!("{name}-ca"),
        "Opaque",
        json!({"ca.crt": ca.certificate(), "ca.key": ca.key()}),
    );
    let tls = |suffix: &str, pair: Pair| {
        secret(
            cluster,
            &format!("{name}-{suffix}"),
            "kubernetes.io/tls",
            json!({"tls.crt": pair.certificate, "tls.key": pair.key}),
        )
    };
    Ok(vec![
        opaque,
        tls("server", server),
        tls("replication", replication),
    ])
}

/// All DNS names of a Service (`GetClusterAltDNSNames`).
fn service_names(service: &str, namespace: &str) -> [String; 4] {
    [
        "",
        &format!(".{namespace}"),
        &format!(".{namespace}.svc"),
        &format!(".{namespace}.svc.cluster.local"),
    ]
    .map(|suffix| format!("{service}{suffix}"))
}

fn client_certificate(ca: &Authority, user: &str) -> Result<Pair> {
    let mut params = CertificateParams::new(Vec::new()).context("naming a client")?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, user);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    ca.sign(params)
}

fn secret(cluster: &Cluster, name: &str, kind: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": kind,
        "metadata": metadata(cluster, name, json!({"cnpg.io/reload": "true"})), "stringData": data
    })
}

/// A basic-auth Secret with a generated password (pkg/specs/secrets.go): `<c>-app` or
/// `<c>-superuser`.
pub fn credentials(
    cluster: &Cluster,
    name: &str,
    user: &str,
    database: &str,
    password: &str,
) -> Value {
    let host = format!("{}-rw", cluster.name_any());
    let namespace = cluster.namespace().unwrap_or_default();
    let data = json!({
        "username": user, "user": user, "password": password, "dbname": database, "host": host,
        "port": "5432",
        "pgpass": format!("{host}:5432:{database}:{user}:{password}\n"),
        "uri": format!("postgresql://{user}:{password}@{host}.{namespace}:5432/{database}"),
    });
    secret(cluster, name, "kubernetes.io/basic-auth", data)
}

/// Reads a key of a Secret's data as text.
pub fn text(
    data: Option<&std::collections::BTreeMap<String, ByteString>>,
    key: &str,
) -> Option<String> {
    data?
        .get(key)
        .map(|value| String::from_utf8_lossy(&value.0).into_owned())
}

/// The Job that makes an instance (pkg/specs/jobs.go); its pod is not created.
pub fn job(cluster: &Cluster, instance: &str, role: &str) -> Value {
    let name = format!("{instance}-{role}");
    let labels = json!({"cnpg.io/instanceName": instance, "cnpg.io/jobRole": role});
    let container = json!({
        "name": role, "image": cluster.spec.image_name,
        "command": ["/controller/manager", "instance", role]
    });
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": metadata(cluster, &name, labels.clone()),
        "spec": {
            "template": {
                "metadata": metadata(cluster, &name, labels),
                "spec": {"restartPolicy": "Never", "containers": [container]}
            }
        },
    })
}

/// The instance's pod with the annotation `cnpg.io/podPatch` applied (pkg/specs/pods.go), without
/// probes, resources and the operator's own init container's effect.
///
/// # Errors
/// The annotation is not a JSON patch for this pod; CNPG's webhook refuses such a Cluster.
pub fn instance_pod(cluster: &Cluster, name: &str, role: &str) -> Result<Pod> {
    let labels = json!({
        "cnpg.io/instanceName": name, "cnpg.io/podRole": "instance",
        "cnpg.io/instanceRole": role, "role": role,
        "app.kubernetes.io/component": "database",
    });
    let mounts = json!([
        {"name": "pgdata", "mountPath": DATA_MOUNT}, {"name": "scratch-data", "mountPath": "/run"},
        {"name": "scratch-data", "mountPath": SCRATCH_MOUNT}
    ]);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata(cluster, name, labels),
        "spec": {
            "nodeName": "node0", "hostname": name,
            "securityContext": {
                "runAsUser": 26, "runAsGroup": 26, "fsGroup": 26, "runAsNonRoot": true
            },
            "initContainers": [{
                "name": BOOTSTRAP, "image": "ghcr.io/cloudnative-pg/cloudnative-pg:1.30.0",
                "command": ["/manager", "bootstrap", "/controller/manager"], "volumeMounts": mounts
            }],
            "containers": [{
                "name": "postgres", "image": cluster.spec.image_name,
                "command": ["/controller/manager", "instance", "run"],
                "ports": [{"name": "postgresql", "containerPort": 5432}], "volumeMounts": mounts
            }],
            "volumes": [
                {"name": "pgdata", "persistentVolumeClaim": {"claimName": name}},
                {"name": "scratch-data", "emptyDir": {}}
            ],
        },
    });
    if let Some(patch) = cluster.annotations().get(POD_PATCH) {
        let patch: json_patch::Patch =
            serde_json::from_str(patch).with_context(|| format!("the annotation {POD_PATCH}"))?;
        json_patch::patch(&mut pod, &patch)
            .with_context(|| format!("applying the annotation {POD_PATCH}"))?;
    }
    serde_json::from_value(pod).context("the patched pod")
}

const BOOTSTRAP: &str = "bootstrap-controller";

/// The init containers that were added to the operator's own.
pub fn added_init_containers(
    spec: &PodSpec,
) -> impl Iterator<Item = &k8s_openapi::api::core::v1::Container> {
    spec.init_containers
        .iter()
        .flatten()
        .filter(|container| container.name != BOOTSTRAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(annotations: Value) -> Cluster {
        let object = json!({"apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
            "spec": {"imageName": "i"}, "metadata":
            {"name": "database", "namespace": "mastodon", "uid": "u", "annotations": annotations}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_pods_patch_adds_an_init_container() {
        let patch =
            r#"[{"op":"add","path":"/spec/initContainers/-","value":{"name":"adopt-pgdata"}}]"#;
        let pod = |annotations| instance_pod(&cluster(annotations), "database-1", "primary");
        let unpatched = pod(json!({})).unwrap();
        let pod = pod(json!({POD_PATCH: patch})).unwrap();
        let added: Vec<_> = added_init_containers(pod.spec.as_ref().unwrap())
            .map(|container| container.name.clone())
            .collect();
        assert_eq!(added, ["adopt-pgdata"]);
        assert_eq!(
            added_init_containers(unpatched.spec.as_ref().unwrap()).count(),
            0
        );
    }

    #[test]
    fn a_patch_that_does_not_fit_is_an_error() {
        let patch = r#"[{"op":"replace","path":"/spec/nowhere/0","value":1}]"#;
        let cluster = cluster(json!({POD_PATCH: patch}));
        assert!(instance_pod(&cluster, "database-1", "primary").is_err());
    }

    #[test]
    fn the_servers_certificate_carries_the_services_names() {
        let secrets = pki(&cluster(json!({}))).unwrap();
        let pem = secrets[1]["stringData"]["tls.crt"].as_str().unwrap();
        let certificate = openssl::x509::X509::from_pem(pem.as_bytes()).unwrap();
        let names = certificate.subject_alt_names().unwrap();
        assert!(
            names
                .iter()
                .any(|name| name.dnsname() == Some("database-rw.mastodon.svc"))
        );
        assert_eq!(names.len(), 12);
    }
}
