//! The environment of a run: prerequisites, the namespace, and its removal.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::kubectl::{Kubectl, until};

const KINDS: [(&str, &str); 2] = [
    (
        "postgresqls.acid.zalan.do",
        "the Zalando postgres-operator: https://github.com/zalando/postgres-operator",
    ),
    (
        "clusters.postgresql.cnpg.io",
        "CloudNativePG: https://cloudnative-pg.io/docs/current/installation_upgrade",
    ),
];
/// Limit for the operators to delete what they manage.
const DOWN: Duration = Duration::from_secs(300);

/// Checks for both operators and a default storage class, and creates the namespace.
pub async fn create(kubectl: &Kubectl) -> Result<()> {
    let version = kubectl
        .query(&["version"])
        .await
        .context("no cluster answers; set KUBECONFIG")?;
    println!("{}", version.trim().replace('\n', ", "));
    for (kind, operator) in KINDS {
        let found = kubectl.query(&["get", "crd", kind, "-o", "name"]).await;
        found.with_context(|| format!("the kind {kind} is missing; install {operator}"))?;
    }
    let classes = kubectl.json(&["get", "storageclass"]).await?;
    let is_default = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";
    let mut classes = classes["items"].as_array().into_iter().flatten();
    if !classes.any(|class| {
        class
            .pointer(is_default)
            .is_some_and(|value| value == "true")
    }) {
        bail!(
            "there is no default storage class; mark one: kubectl annotate storageclass NAME \
             storageclass.kubernetes.io/is-default-class=true"
        );
    }
    let namespace = &kubectl.namespace;
    kubectl
        .query(&["create", "namespace", namespace])
        .await
        .with_context(|| {
            format!(
                "a run needs a namespace of its own; if this one is left over: kubectl delete \
            namespace {namespace}"
            )
        })?;
    until("the namespace's ServiceAccount", DOWN, async || {
        Ok(kubectl.query(&["get", "sa", "default"]).await.ok())
    })
    .await?;
    Ok(())
}

/// Saves the state of the namespace, to find out why a run failed.
pub async fn keep_state(kubectl: &Kubectl, folder: &Path) {
    let questions: [&[&str]; 4] = [
        &[
            "get",
            "all,postgresqls,clusters.postgresql.cnpg.io,poolers.postgresql.cnpg.io,endpoints,pvc",
            "-o",
            "wide",
        ],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &["get", "cm", "cutover-database", "-o", "yaml"],
        &[
            "logs",
            "-l",
            "cnpg.io/cluster=database",
            "--all-containers",
            "--tail=300",
            "--prefix",
        ],
    ];
    let mut text = String::new();
    for question in questions {
        let answer = kubectl
            .query(question)
            .await
            .unwrap_or_else(|error| format!("{error:#}"));
        text.push_str(&format!("$ kubectl {}\n{answer}\n", question.join(" ")));
    }
    let file = folder.join("state.txt");
    match fs::write(&file, text) {
        Ok(()) => println!("state of the namespace: {}", file.display()),
        Err(error) => println!("{}: {error}", file.display()),
    }
}

/// Removes the namespace. Errors are printed, because part of it may never have existed.
pub async fn remove(kubectl: &Kubectl) {
    println!(
        "\nremoving the namespace {} and everything in it",
        kubectl.namespace
    );
    let commands: [&[&str]; 4] = [
        &["delete", "deployments,jobs", "--all", "--wait=false"],
        &[
            "delete",
            "poolers.postgresql.cnpg.io,clusters.postgresql.cnpg.io",
            "--all",
            "--timeout=120s",
        ],
        // The cutover suspended the operator for this resource; it would leave everything it
        // created.
        &[
            "annotate",
            "postgresqls",
            "--all",
            "acid.zalan.do/controller-",
        ],
        &["delete", "postgresqls", "--all", "--timeout=120s"],
    ];
    for command in commands {
        if let Err(error) = kubectl.run_with_input(command, "", DOWN).await {
            println!("  {error:#}");
        }
    }
    // The resource is deleted immediately; the operator deletes what belongs to it afterwards.
    let gone = until(
        "the Zalando operator to delete the cluster",
        DOWN,
        async || {
            let left = kubectl
                .query(&["get", "statefulsets", "-o", "name"])
                .await?;
            Ok(left.is_empty().then_some(()))
        },
    );
    if let Err(error) = gone.await {
        println!("  {error:#}");
    }
    let namespace = &kubectl.namespace;
    if let Err(error) = kubectl
        .run_with_input(
            &["delete", "namespace", namespace, "--timeout=240s"],
            "",
            DOWN,
        )
        .await
    {
        println!("  {error:#}\n  the namespace is not removed: kubectl get namespace {namespace}");
    }
}
