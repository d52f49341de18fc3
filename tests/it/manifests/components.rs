//! Each component makes the changes that its comment describes, and no others.

use std::{collections::BTreeSet, fs};

use harness::{
    manifests::{self, access::grants, of_kind},
    setup::Setup,
};
use serde_json::Value;

use super::names;

/// The folders of `manifests/components`.
pub(super) fn all() -> Vec<String> {
    let folders = fs::read_dir(manifests::folder().join("components")).unwrap();
    let mut names: Vec<String> = folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The example's overlay with one more component.
pub(super) fn with(component: &str) -> String {
    const OWN: &str = "components: [../../components/names]";
    let overlay = names::example_overlay();
    assert!(overlay.contains(OWN), "{overlay}");
    let both = format!("components: [../../components/names, ../../components/{component}]");
    if component == "names" {
        overlay
    } else {
        overlay.replace(OWN, &both)
    }
}

/// The example's objects with one more component.
pub(super) async fn rendered(component: &str) -> Vec<Value> {
    names::render_with(&with(component)).await
}

#[tokio::test]
async fn a_component_changes_only_its_own_objects() {
    let example = super::example().await;
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    for component in all() {
        let objects = rendered(&component).await;
        let changed: BTreeSet<String> = example
            .iter()
            .filter(|object| !objects.contains(object))
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect();
        let added: BTreeSet<String> = objects
            .iter()
            .filter(|object| !example.iter().any(|before| name(before) == name(object)))
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect();
        let [changes, adds]: [&[&str]; 2] = match component.as_str() {
            "names" => [&[], &[]],
            "backup-volume" => [&["ConfigMap", "CronJob", "Job"], &["PersistentVolumeClaim"]],
            "cron-jobs" => [&[], &["Role", "RoleBinding"]],
            "flux" => [&["Role"], &["Role", "RoleBinding"]],
            "hashed-config" | "keda" | "selector" | "statefulsets" => [&["Role"], &[]],
            "decommission" => [&[], &["ClusterRole", "ClusterRoleBinding"]],
            "keep-promoted" => [
                &[],
                &[
                    "ValidatingAdmissionPolicy",
                    "ValidatingAdmissionPolicyBinding",
                ],
            ],
            "priority-class" => [&["CronJob", "Job"], &["PriorityClass"]],
            "prometheus-rules" => [&[], &["ConfigMap", "PodMonitor", "PrometheusRule"]],
            "s3" => [&["CronJob", "Job"], &[]],
            other => panic!("no expectation for {other}"),
        };
        let texts =
            |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(
            (texts(&changed), texts(&added)),
            (changes.join(" "), adds.join(" ")),
            "{component}"
        );
    }
}

#[tokio::test]
async fn every_pod_gets_the_priority() {
    let objects = rendered("priority-class").await;
    let class = super::named(&objects, "PriorityClass", "replica-migration");
    assert!(class["value"].as_i64().unwrap() > 0);
    for step in super::STEPS {
        for spec in super::specs(&objects, step) {
            assert_eq!(
                spec["template"]["spec"]["priorityClassName"], "replica-migration",
                "{step}"
            );
        }
    }
    assert_eq!(of_kind(&objects, "PriorityClass").count(), 1);
}

/// After a failed cutover, rollback resumes what cutover has paused, with its own permissions.
#[tokio::test]
async fn rollback_may_resume_whatever_cutover_may_pause() {
    let argo = manifests::folder().join("gitops/argo");
    let argo = manifests::render(Setup::ready().await.unwrap(), &argo).unwrap();
    let [cutover, rollback] = ["cutover", "rollback"].map(|step| patches(&argo, step));
    assert!(
        !cutover.is_empty() && cutover == rollback,
        "{cutover:?} {rollback:?}"
    );
    for component in all() {
        let objects = rendered(&component).await;
        let [cutover, rollback] = ["cutover", "rollback"].map(|step| patches(&objects, step));
        // A rollback writes neither the replica counts nor the manifest of a promoted target, and
        // only for Flux is the Cluster annotated.
        let only_cutover: &[&str] = match component.as_str() {
            "flux" => &[
                "configmaps cutover-replica-counts",
                "configmaps database-cluster-replica",
            ],
            _ => &[
                "clusters database",
                "configmaps cutover-replica-counts",
                "configmaps database-cluster-replica",
            ],
        };
        let found: Vec<&String> = cutover.difference(&rollback).collect();
        assert_eq!(found, only_cutover, "{component}");
    }
}

fn patches(objects: &[Value], step: &str) -> BTreeSet<String> {
    let account = format!("replica-migration-{step}");
    let grants = grants(objects).unwrap().into_iter();
    let patches = grants.filter(|grant| grant.verb == "patch" && grant.account == account);
    patches
        .map(|grant| {
            format!(
                "{} {}",
                grant.resource,
                grant.name.as_deref().unwrap_or("(any name)")
            )
        })
        .collect()
}
