//! Command lines, keys and credentials of etcd and kube-apiserver.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::json;

use super::HOST;
use crate::{authority::Authority, instance::Instance, setup::Setup};

const PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;

/// Logs only the metadata of requests by ServiceAccounts.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: \
    [RequestReceived]\nrules:\n\
    - {level: Metadata, userGroups: ['system:serviceaccounts']}\n- {level: None}\n";

pub(super) fn url(instance: &Instance) -> String {
    format!("https://{}:{PORT}", instance.address(HOST))
}

pub(super) fn etcd(setup: &Setup, instance: &Instance, directory: &Path) -> Command {
    let mut command = setup.server(&setup.etcd);
    let (clients, peers) = (
        etcd_url(instance),
        format!("http://{}:{}", instance.address(HOST), ETCD_PORT + 1),
    );
    command
        .args(["--name", "default", "--log-level", "warn"])
        .arg("--data-dir")
        .arg(directory.join("etcd"));
    command.args([
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-peer-urls",
        &peers,
    ]);
    command.args([
        "--initial-advertise-peer-urls",
        &peers,
        "--initial-cluster",
        &format!("default={peers}"),
    ]);
    // Durability is not needed for a throw-away store.
    command.arg("--unsafe-no-fsync");
    command
}

fn etcd_url(instance: &Instance) -> String {
    format!("http://{}:{ETCD_PORT}", instance.address(HOST))
}

pub(super) fn api_server(setup: &Setup, instance: &Instance, directory: &Path) -> Command {
    let mut command = setup.server(&setup.kube_apiserver);
    let file = |name: &str| directory.join(name).display().to_string();
    let address = instance.address(HOST).to_string();
    // A loopback address must not be advertised; nothing uses this one.
    let advertised = instance.kubernetes_address(HOST).to_string();
    for (flag, value) in [
        ("etcd-servers", etcd_url(instance)),
        ("bind-address", address),
        ("secure-port", PORT.to_string()),
        ("advertise-address", advertised),
        ("endpoint-reconciler-type", "none".into()),
        ("service-cluster-ip-range", instance.cluster_ips()),
        ("authorization-mode", "RBAC".into()),
        ("token-auth-file", file("tokens.csv")),
        ("tls-cert-file", file("server.crt")),
        ("tls-private-key-file", file("server.key")),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local".into(),
        ),
        ("service-account-key-file", file("accounts.pub")),
        ("service-account-signing-key-file", file("accounts.key")),
        ("audit-policy-file", file("audit-policy.yaml")),
        ("audit-log-path", file("audit.log")),
        ("audit-log-mode", "blocking".into()),
        ("allow-privileged", "true".into()),
    ] {
        command.arg(format!("--{flag}={value}"));
    }
    command
}

/// Writes keys, certificates and the audit policy; returns the CA's certificate.
pub(super) fn write_credentials(
    setup: &Setup,
    instance: &Instance,
    directory: &Path,
) -> Result<String> {
    let authority = Authority::root("harness control plane")?;
    let names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default.svc"]
        .map(String::from)
        .into();
    let server = authority.server("kube-apiserver", &names, &[instance.address(HOST).into()])?;
    let accounts =
        rcgen::KeyPair::generate().context("generating the key of the ServiceAccounts' tokens")?;
    for (name, text) in [
        ("server.crt", server.certificate.as_str()),
        ("server.key", &server.key),
        ("accounts.key", &accounts.serialize_pem()),
        ("accounts.pub", &accounts.public_key_pem()),
        ("audit-policy.yaml", AUDIT_POLICY),
    ] {
        setup.user.write_private(&directory.join(name), text)?;
    }
    Ok(authority.certificate().to_owned())
}

pub(super) fn random_token() -> Result<String> {
    let mut bytes = [0; 24];
    openssl::rand::rand_bytes(&mut bytes).context("reading random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Patroni uses the context `local` outside of a cluster.
pub(super) fn kubeconfig(url: &str, authority: &str, token: &str, namespace: &str) -> String {
    let authority = openssl::base64::encode_block(authority.as_bytes());
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "local",
        "clusters": [{
            "name": "local", "cluster": {"server": url, "certificate-authority-data": authority}
        }],
        "users": [{"name": "local", "user": {"token": token}}],
        "contexts": [{
            "name": "local",
            "context": {"cluster": "local", "user": "local", "namespace": namespace}
        }],
    })
    .to_string()
}
