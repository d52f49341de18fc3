//! The test application: six Deployments that write to the ledger through the pooler, one unmanaged
//! writer connected directly to the leader, and with ROUTE=service one reader behind the standbys'
//! pooler.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use harness::{application::DEPLOYMENTS, route::Route};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    kubectl::{Kubectl, until},
    settings::Settings,
    source::SOURCE,
};

/// The writer that is not part of the application: no ConfigMap or label points to it.
pub const UNMANAGED: &str = "unmanaged";
/// The Deployment that only reads, through the standbys' pooler.
pub const READER: &str = "reader";
const PART_OF: &str = "app.kubernetes.io/part-of=mastodon";
const UP: Duration = Duration::from_secs(180);
/// How long to wait for the last line of a client that was asked to end.
const STOP: Duration = Duration::from_secs(90);

/// The running application and the log lines of its clients.
pub struct Application {
    kubectl: Kubectl,
    /// Log lines in order of arrival. For a pod that is gone there is no other source.
    followed_lines: Arc<Mutex<Vec<String>>>,
    listening: JoinHandle<()>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Starts it and waits until every client has a session.
pub async fn up(kubectl: &Kubectl, settings: &Settings) -> Result<Application> {
    println!("\nthe application: six Deployments through {SOURCE}-pooler, and an unmanaged writer");
    let config = json!({
        "DB_HOST": format!("{SOURCE}-pooler"), "REPLICA_DB_HOST": format!("{SOURCE}-pooler-repl"),
        "DB_PORT": "5432", "DB_NAME": "mastodon", "DB_USER": "mastodon",
    });
    let map = |name: &str, data: Value| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data
        })
    };
    let mut objects = vec![
        map("mastodon-database", config),
        map("writer", json!({"writer.sh": include_str!("writer.sh")})),
    ];
    objects.extend(DEPLOYMENTS.map(|(name, replicas)| deployment(name, replicas, settings, &[])));
    objects.push(deployment(UNMANAGED, 1, settings, &[("DB_HOST", SOURCE)]));
    let mut names: Vec<&str> = DEPLOYMENTS
        .map(|(name, _)| name)
        .into_iter()
        .chain([UNMANAGED])
        .collect();
    if settings.route == Route::Service {
        // With ROUTE=config nothing redirects this client: it would keep reading from the source.
        objects.push(deployment(
            READER,
            1,
            settings,
            &[
                ("DB_HOST", "mastodon-postgresql-pooler-repl"),
                ("MODE", "read_row"),
            ],
        ));
        names.push(READER);
    }
    kubectl.apply(&objects).await?;
    for name in names {
        let deployment = format!("deployment/{name}");
        kubectl
            .wait(&["rollout", "status", &deployment], UP)
            .await
            .with_context(|| format!("{name} gets no session"))?;
    }
    let followed_lines = Arc::new(Mutex::new(Vec::new()));
    Ok(Application {
        listening: listen(kubectl.clone(), Arc::clone(&followed_lines)),
        kubectl: kubectl.clone(),
        followed_lines,
    })
}

fn deployment(name: &str, replicas: u32, settings: &Settings, env: &[(&str, &str)]) -> Value {
    let secret = json!({
        "secretKeyRef": {
            "name": format!("mastodon.{SOURCE}.credentials.postgresql.acid.zalan.do"),
            "key": "password"
        }
    });
    let mut variables = vec![
        json!({"name": "CLIENT", "value": name}),
        json!({"name": "DB_PASS", "valueFrom": secret}),
    ];
    variables.extend(
        env.iter()
            .map(|(name, value)| json!({"name": name, "value": value})),
    );
    let labels = json!({"app": name, "app.kubernetes.io/part-of": "mastodon"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "containers": [{
                        "name": "app", "image": settings.writer_image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["bash", "/app/writer.sh"],
                        "envFrom": [{"configMapRef": {"name": "mastodon-database"}}],
                        "env": variables,
                        "readinessProbe": {
                            "exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1
                        },
                        "resources": {"requests": {"cpu": "5m", "memory": "20Mi"}},
                        "volumeMounts": [
                            {"name": "app", "mountPath": "/app"},
                            {"name": "tmp", "mountPath": "/tmp"}
                        ],
                    }],
                    "volumes": [
                        {"name": "app", "configMap": {"name": "writer"}},
                        {"name": "tmp", "emptyDir": {}}
                    ],
                },
            },
        },
    })
}

/// Follows the logs of the running pods, which are lost when the pods are scaled down.
fn listen(kubectl: Kubectl, followed_lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let follow = [
            "logs",
            "-f",
            "-l",
            PART_OF,
            "--tail=-1",
            "--max-log-requests=20",
        ];
        let ended = kubectl
            .follow(&follow, |line| {
                followed_lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line.to_owned())
            })
            .await;
        if let Err(error) = ended {
            println!("following the clients' logs ended: {error:#}");
        }
    })
}

impl Application {
    /// Waits until `count` more writes have been acknowledged.
    pub async fn acknowledges(&self, count: usize) -> Result<()> {
        let output = || {
            let followed_lines = self
                .followed_lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            followed_lines
                .iter()
                .filter(|line| line.contains(" ack "))
                .count()
        };
        let wanted = output() + count;
        until(
            &format!("{count} more acknowledged writes"),
            UP,
            async || Ok((output() >= wanted).then_some(())),
        )
        .await
    }

    /// Ends all clients and returns every log line: for running pods from the pod itself, for pods
    /// that are gone from the followed log.
    pub async fn stop(self) -> Result<Vec<String>> {
        let running = [
            "get",
            "pods",
            "-l",
            PART_OF,
            "--field-selector=status.phase=Running",
        ];
        let found = self.kubectl.json(&running).await?;
        let found = found["items"].as_array().context("a list of pods")?.iter();
        // A pod that is being deleted still runs, and may be gone at the next call.
        let staying = found.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let pods: Vec<&str> = staying
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        for pod in &pods {
            self.kubectl
                .query(&["exec", pod, "--", "bash", "-c", "kill -USR1 1"])
                .await?;
        }
        let mut lines = Vec::new();
        for pod in &pods {
            let what = format!("the last line of {pod}");
            let output = until(&what, STOP, async || {
                let output = self.kubectl.query(&["logs", pod, "--tail=-1"]).await?;
                Ok(output
                    .lines()
                    .last()
                    .is_some_and(|line| line.contains(" end "))
                    .then_some(output))
            });
            lines.extend(output.await?.lines().map(str::to_owned));
        }
        let is_of_running_pod =
            |line: &String| pods.iter().any(|pod| Some(*pod) == line.split(' ').next());
        let followed_lines = self
            .followed_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        lines.extend(
            followed_lines
                .into_iter()
                .filter(|line| !is_of_running_pod(line)),
        );
        Ok(lines)
    }
}
