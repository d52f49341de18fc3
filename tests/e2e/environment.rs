//! The namespace of a run: what must be there before, and what is removed after.

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
/// Operators take down one thing after the other.
const DOWN: Duration = Duration::from_secs(300);

/// Both operators, a default storage class, and a namespace that nobody has.
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
                "a run wants a namespace of its own; if nobody needs it any more: kubectl delete \
            namespace {namespace}"
            )
        })?;
    until("the namespace's ServiceAccount", DOWN, async || {
        Ok(kubectl.query(&["get", "sa", "default"]).await.ok())
    })
    .await?;
    Ok(())
}

/// How things stand, for whoever has to find out why a run failed.
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
        Ok(()) => println!("how things stood: {}", file.display()),
        Err(error) => println!("{}: {error}", file.display()),
    }
}

/// Takes everything away. What is not there any more, or never was, is no reason to stop.
pub async fn remove(kubectl: &Kubectl) {
    println!(
        "\nremoving the namespace {} and all in it",
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
        // The cutover has frozen it, and a frozen operator would leave what it has made.
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
    // The resource goes at once, and the operator takes down what belongs to it afterwards.
    let gone = until("the Zalando operator's end of it", DOWN, async || {
        let left = kubectl
            .query(&["get", "statefulsets", "-o", "name"])
            .await?;
        Ok(left.is_empty().then_some(()))
    });
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
        println!("  {error:#}\n  something is left: kubectl get namespace {namespace}");
    }
}
