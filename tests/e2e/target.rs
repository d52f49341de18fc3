//! The target: applies the manifest that prepare-zalando rendered.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{kubectl::Kubectl, settings::Settings};

/// The CNPG Cluster.
pub const TARGET: &str = "database";
const RENDERED: &str = r"jsonpath={.data.database-cluster-replica\.yaml}";
const LIMIT: Duration = Duration::from_secs(60);

/// The third step of README's quick start.
pub async fn apply_rendered(kubectl: &Kubectl, settings: &Settings) -> Result<()> {
    let (get, apply) = (
        ["get", "cm", "database-cluster-replica", "-o", RENDERED],
        ["apply", "-f", "-"],
    );
    let namespace = &kubectl.namespace;
    println!(
        "\n$ kubectl -n {namespace} {} | kubectl -n {namespace} {}",
        get.join(" "),
        apply.join(" ")
    );
    let mut text = kubectl.query(&get).await?;
    if settings.skip_wal_archiving {
        println!("  (with the annotation cnpg.io/skipWalArchiving: enabled)");
        text = without_archive(&text)?;
    }
    for line in kubectl.run_with_input(&apply, &text, LIMIT).await?.lines() {
        println!("  {line}");
    }
    Ok(())
}

/// Adds the annotation of a Cluster that has no WAL archive.
fn without_archive(rendered: &str) -> Result<String> {
    let documents = serde_yaml_ng::Deserializer::from_str(rendered).map(|document| {
        let mut object =
            Value::deserialize(document).context("the rendered manifest is not YAML")?;
        if object["kind"] == "Cluster" {
            object["metadata"]["annotations"]["cnpg.io/skipWalArchiving"] = "enabled".into();
        }
        anyhow::Ok(object.to_string())
    });
    Ok(documents.collect::<Result<Vec<_>>>()?.join("\n---\n"))
}

/// The addresses of the target's instances.
pub async fn instances(kubectl: &Kubectl) -> Result<BTreeSet<String>> {
    let pods = kubectl
        .json(&[
            "get",
            "pods",
            "-l",
            "cnpg.io/cluster=database,cnpg.io/podRole=instance",
        ])
        .await?;
    let addresses = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["status"]["podIP"].as_str());
    Ok(addresses.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_annotations_are_kept() {
        let rendered = "kind: Cluster\nmetadata:\n  annotations:\n    cnpg.io/podPatch: \
            x\n---\nkind: Pooler\nmetadata: {}\n";
        let changed = without_archive(rendered).unwrap();
        let documents: Vec<Value> = changed
            .split("\n---\n")
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        let annotations = &documents[0]["metadata"]["annotations"];
        assert_eq!(
            (
                &annotations["cnpg.io/podPatch"],
                &annotations["cnpg.io/skipWalArchiving"]
            ),
            (&"x".into(), &"enabled".into())
        );
        assert_eq!(documents[1]["metadata"], serde_json::json!({}));
    }
}
