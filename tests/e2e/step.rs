//! Runs a step as README describes: a Job from its CronJob, its log, and its result.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    kubectl::{Kubectl, until},
    settings::Settings,
};

/// Limit for a pod to start, image pull and the Job's back-off included.
const STARTS: Duration = Duration::from_secs(180);
/// The most pods that a Job may start.
const PODS_MAX: usize = 5;

/// The result of a Job.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// The Job's name.
    pub job: String,
    /// Complete or Failed, with the reason.
    pub condition: String,
    /// Exit code and termination message of each pod that still exists, in order of start.
    pub pods: Vec<(i64, Value)>,
    /// The log lines of all pods.
    pub lines: Vec<String>,
    /// The pod that the test killed.
    pub killed: Option<String>,
}

impl Ended {
    /// Why the step does not count as done.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.condition != "Complete" {
            failures.push(format!("the Job {} is {}", self.job, self.condition));
        }
        match self.pods.last() {
            Some((0, word)) if word["verdict"] == "done" => {}
            Some((code, word)) => failures.push(format!(
                "{}: exit code {code}, termination message {word}",
                self.job
            )),
            None => failures.push(format!("{} left no pod", self.job)),
        }
        failures
    }

    /// The termination message of the last pod.
    pub fn termination_json(&self) -> &Value {
        self.pods.last().map_or(&Value::Null, |(_, word)| word)
    }
}

/// Runs a step as the Job `job`; with `kill` its pod is killed once.
pub async fn run(
    kubectl: &Kubectl,
    step: &str,
    job: &str,
    kill: Option<&Settings>,
) -> Result<Ended> {
    let from = format!("--from=cronjob/replica-migration-{step}");
    kubectl.run_shown(&["create", "job", job, &from]).await?;
    let mut ended = Ended {
        job: job.to_owned(),
        ..Ended::default()
    };
    let mut followed: Vec<String> = Vec::new();
    let mut killing: Option<JoinHandle<Result<()>>> = None;
    println!("\n$ kubectl -n {} logs -f job/{job}", kubectl.namespace);
    for _ in 0..PODS_MAX {
        let next = until(&format!("a pod of {job}, or its end"), STARTS, async || {
            next(kubectl, job, &followed).await
        })
        .await?;
        let Next::Pod(pod) = next else { break };
        if !followed.is_empty() {
            println!("  (another pod: {pod})");
        }
        let on_line = |line: &str| {
            println!("  {line}");
            ended.lines.push(line.to_owned());
            if let Some(settings) = kill
                && killing.is_none()
                && settings
                    .kill
                    .as_ref()
                    .is_some_and(|at| line.contains(at.as_str()))
            {
                killing = Some(tokio::spawn(end(
                    kubectl.clone(),
                    settings.kill_with.clone(),
                    pod.clone(),
                )));
                ended.killed = Some(pod.clone());
            }
        };
        kubectl.follow(&["logs", "-f", &pod], on_line).await?;
        followed.push(pod);
    }
    if let Some(killing) = killing {
        killing.await?.context("ending the pod")?;
    }
    ended.condition = until(&format!("the end of the Job {job}"), STARTS, async || {
        condition(kubectl, job).await
    })
    .await?;
    ended.pods = pods(kubectl, job).await?;
    Ok(ended)
}

/// Runs a step that must succeed.
pub async fn done(kubectl: &Kubectl, step: &str, job: &str) -> Result<Ended> {
    let ended = run(kubectl, step, job, None).await?;
    anyhow::ensure!(
        ended.failures().is_empty(),
        "{}",
        ended.failures().join("; ")
    );
    Ok(ended)
}

enum Next {
    Pod(String),
    Ended,
}

/// The next pod to follow, once its container has started.
async fn next(kubectl: &Kubectl, job: &str, followed: &[String]) -> Result<Option<Next>> {
    let list = list(kubectl, job).await?;
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = format!(
            "pod/{}",
            pod["metadata"]["name"].as_str().unwrap_or_default()
        );
        let begun = pod["status"]["containerStatuses"][0]["state"]
            .as_object()
            .is_some_and(|state| !state.contains_key("waiting"));
        if begun && !followed.contains(&name) {
            return Ok(Some(Next::Pod(name)));
        }
    }
    Ok(condition(kubectl, job).await?.map(|_| Next::Ended))
}

async fn condition(kubectl: &Kubectl, job: &str) -> Result<Option<String>> {
    let object = kubectl.json(&["get", "job", job]).await?;
    let conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let mut ends = conditions.filter(|condition| {
        condition["status"] == "True"
            && (condition["type"] == "Complete" || condition["type"] == "Failed")
    });
    Ok(ends.next().map(|condition| {
        match (condition["type"].as_str(), condition["message"].as_str()) {
            (Some("Complete"), _) => "Complete".to_owned(),
            (kind, message) => format!(
                "{}: {}",
                kind.unwrap_or_default(),
                message.unwrap_or_default()
            ),
        }
    }))
}

async fn list(kubectl: &Kubectl, job: &str) -> Result<Value> {
    let label = format!("batch.kubernetes.io/job-name={job}");
    kubectl
        .json(&[
            "get",
            "pods",
            "-l",
            &label,
            "--sort-by=.metadata.creationTimestamp",
        ])
        .await
}

async fn pods(kubectl: &Kubectl, job: &str) -> Result<Vec<(i64, Value)>> {
    let list = list(kubectl, job).await?;
    let ends = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            let message = state["message"].as_str().unwrap_or_default();
            // For a killed program the message is the end of its log.
            let word =
                serde_json::from_str(message).unwrap_or_else(|_| Value::String(message.to_owned()));
            Some((state["exitCode"].as_i64()?, word))
        });
    Ok(ends.collect())
}

/// Kills a pod: its object is deleted immediately, and the node stops its containers when it learns
/// of that.
async fn end(kubectl: Kubectl, with: Option<String>, pod: String) -> Result<()> {
    let Some(program) = with else {
        return kubectl
            .run_shown(&["delete", &pod, "--force", "--grace-period=0"])
            .await
            .map(drop);
    };
    let name = pod.trim_start_matches("pod/");
    call(&program, &[&kubectl.namespace, name])
        .await
        .context("E2E_KILL_WITH")
}

/// Runs a program that a variable names.
///
/// # Errors
/// It cannot be started, or it fails.
pub async fn call(program: &str, arguments: &[&str]) -> Result<()> {
    println!("\n$ {program} {}", arguments.join(" "));
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .status()
        .await;
    let status = status.with_context(|| program.to_owned())?;
    anyhow::ensure!(status.success(), "{program}: {status}");
    Ok(())
}
