//! The CustomResourceDefinitions of both operators and of the Prometheus operator: the original
//! ones if `shared/crds` exists beside the checkout, otherwise permissive ones that accept every
//! field.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use kube::Client;
use serde_json::{Value, json};

/// Group, plural, kind and list kind of what the programs read or write.
const RESOURCES: [(&str, &str, &str, &str); 7] = [
    ("postgresql.cnpg.io", "clusters", "Cluster", "ClusterList"),
    ("postgresql.cnpg.io", "poolers", "Pooler", "PoolerList"),
    ("postgresql.cnpg.io", "backups", "Backup", "BackupList"),
    (
        "postgresql.cnpg.io",
        "scheduledbackups",
        "ScheduledBackup",
        "ScheduledBackupList",
    ),
    (
        "acid.zalan.do",
        "postgresqls",
        "postgresql",
        "postgresqlList",
    ),
    (
        "monitoring.coreos.com",
        "podmonitors",
        "PodMonitor",
        "PodMonitorList",
    ),
    (
        "monitoring.coreos.com",
        "prometheusrules",
        "PrometheusRule",
        "PrometheusRuleList",
    ),
];
const ESTABLISHED_SECONDS_MAX: u64 = 30;
const URL: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Installs all of them and waits until they are served.
pub(super) async fn install(admin: &Client) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/crds");
    let bodies = RESOURCES.map(|resource| definition(&folder, resource));
    futures::future::try_join_all(bodies.into_iter().map(|body| create(admin, body))).await?;
    futures::future::try_join_all(
        RESOURCES.map(|(group, plural, ..)| served(admin, group, "v1", plural)),
    )
    .await?;
    Ok(())
}

/// The definition as text; JSON is valid YAML.
fn definition(folder: &Path, (group, plural, kind, list): (&str, &str, &str, &str)) -> String {
    let file: PathBuf = folder.join(format!("{group}_{plural}.yaml"));
    fs::read_to_string(file)
        .map(|text| with_18(&text))
        .unwrap_or_else(|_| permissive(group, plural, kind, list).to_string())
}

/// A definition of the operator 1.15 with the version that 2.0 accepts, too.
fn with_18(text: &str) -> String {
    let last = "                      - \"17\"\n";
    text.replace(last, &format!("{last}{}", last.replace("17", "18")))
}

/// A definition that accepts every field, with the status subresource as in the original.
fn permissive(group: &str, plural: &str, kind: &str, list: &str) -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let properties = json!({"spec": anything, "status": anything});
    let scale =
        json!({"specReplicasPath": ".spec.instances", "statusReplicasPath": ".status.instances"});
    let subresources = if group != "postgresql.cnpg.io" {
        json!({"status": {}})
    } else {
        json!({"status": {}, "scale": scale})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {
                "kind": kind, "listKind": list, "plural": plural, "singular": kind.to_lowercase()
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": subresources,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
            }],
        },
    })
}

/// The API server parses YAML itself, faster than a debug build of the harness would.
async fn create(admin: &Client, body: String) -> Result<()> {
    let request = http::Request::post(URL)
        .header("content-type", "application/yaml")
        .body(body.into_bytes())?;
    admin
        .request::<Value>(request)
        .await
        .context("installing a custom resource definition")?;
    Ok(())
}

/// Waits until objects of the kind can be listed: the condition Established becomes true a moment
/// earlier.
pub(crate) async fn served(admin: &Client, group: &str, version: &str, plural: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(ESTABLISHED_SECONDS_MAX);
    loop {
        let list = http::Request::get(format!("/apis/{group}/{version}/{plural}?limit=1"))
            .body(Vec::new())?;
        match admin.request::<Value>(list).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("{plural}.{group} is not served: {error}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
