//! Imitates the Zalando operator 1.15: its reactions to changes of the `postgresql` resource
//! (docs/operators/zalando.md). Each change and its reaction:
//!
//! - `spec.postgresql.parameters`, `spec.patroni.slots`: PATCH /config; a restart by Patroni where
//!   a parameter needs one
//! - `spec.patroni.pg_hba`: a rolling update: the replica's pod is recreated, a switchover, then
//!   the old leader's pod
//! - annotation `acid.zalan.do/controller`: none while it is set, and none when it is removed
//!
//! The status becomes `Updating` and then `Running`. Not imitated: all other fields of the
//! resource, and the resync every 30 minutes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::StreamExt;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    runtime::{WatchStreamExt, watcher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{Member, Source, rest, workloads};
use crate::control_plane::ControlPlane;

const CONTROLLER: &str = "acid.zalan.do/controller";
/// Patroni checks for pending restarts right after a PATCH; a member that reports none within this
/// time needs none.
const PENDING_RESTART_SECONDS: u64 = 3;

/// The operator of one source; it stops on drop.
pub struct Operator {
    task: JoinHandle<()>,
    syncs: watch::Receiver<u32>,
}

/// The fields that the imitation reacts to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Spec {
    postgresql: Parameters,
    patroni: Patroni,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Parameters {
    parameters: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Patroni {
    pg_hba: Vec<String>,
    slots: BTreeMap<String, BTreeMap<String, String>>,
}

/// A reaction to a change.
#[derive(Debug, PartialEq)]
enum Action {
    /// PATCH /config with this body.
    Patch(Value),
    /// Recreate all pods with this pg_hba list.
    Roll(Vec<String>),
}

impl Operator {
    /// Starts following the source's resource.
    ///
    /// # Errors
    /// The resource cannot be read.
    pub async fn follow(plane: &ControlPlane, source: Arc<Source>) -> Result<Self> {
        let resources = resources(plane.admin(), &source);
        let first = resources
            .get(&source.options().cluster)
            .await
            .context("reading the postgresql resource")?;
        let (sender, syncs) = watch::channel(0);
        let task = tokio::spawn(run(plane.admin(), source, spec(&first), sender));
        Ok(Self { task, syncs })
    }

    /// The number of changes that were handled completely.
    pub fn syncs(&self) -> u32 {
        *self.syncs.borrow()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn resources(client: Client, source: &Source) -> Api<DynamicObject> {
    // The kind is not in camel case, and its plural is irregular.
    let kind = GroupVersionKind::gvk("acid.zalan.do", "v1", "postgresql");
    Api::namespaced_with(
        client,
        &source.options().namespace,
        &ApiResource::from_gvk_with_plural(&kind, "postgresqls"),
    )
}

fn spec(resource: &DynamicObject) -> Spec {
    serde_json::from_value(resource.data["spec"].clone()).unwrap_or_default()
}

async fn run(client: Client, source: Arc<Source>, mut known: Spec, sender: watch::Sender<u32>) {
    let resources = resources(client.clone(), &source);
    let only =
        watcher::Config::default().fields(&format!("metadata.name={}", source.options().cluster));
    let mut events = Box::pin(
        watcher(resources.clone(), only)
            .default_backoff()
            .applied_objects(),
    );
    while let Some(event) = events.next().await {
        // A broken watch restarts on its own.
        let Ok(resource) = event else { continue };
        let wanted = spec(&resource);
        let actions = actions(
            &known,
            &wanted,
            resource.annotations().contains_key(CONTROLLER),
        );
        known = wanted;
        if actions.is_empty() {
            continue;
        }
        set_status(&resources, &source, "Updating").await;
        let mut outcome = Ok(());
        for action in actions {
            outcome = outcome.and(perform(&client, &source, action).await);
        }
        if let Err(error) = &outcome {
            eprintln!("zalando operator: {error:#}");
        }
        set_status(
            &resources,
            &source,
            if outcome.is_ok() {
                "Running"
            } else {
                "UpdateFailed"
            },
        )
        .await;
        sender.send_modify(|syncs| *syncs += 1);
    }
}

/// The reactions to a change of the spec. A removed parameter causes none: the operator compares
/// only the keys that it wants.
fn actions(known: &Spec, wanted: &Spec, is_suspended: bool) -> Vec<Action> {
    let mut actions = Vec::new();
    if is_suspended {
        return actions;
    }
    let mut patch = json!({});
    if known.postgresql != wanted.postgresql {
        patch["postgresql"] = json!({"parameters": wanted.postgresql.parameters});
    }
    if known.patroni.slots != wanted.patroni.slots {
        let mut slots = json!(wanted.patroni.slots);
        known
            .patroni
            .slots
            .keys()
            .filter(|name| !wanted.patroni.slots.contains_key(*name))
            .for_each(|name| slots[name] = Value::Null);
        patch["slots"] = slots;
    }
    if patch != json!({}) {
        actions.push(Action::Patch(patch));
    }
    if known.patroni.pg_hba != wanted.patroni.pg_hba {
        actions.push(Action::Roll(wanted.patroni.pg_hba.clone()));
    }
    actions
}

async fn perform(client: &Client, source: &Source, action: Action) -> Result<()> {
    match action {
        Action::Patch(patch) => {
            source.patch_configuration(&patch).await?;
            restart_pending(source).await
        }
        Action::Roll(pg_hba) => {
            let replica = source.replica().await?;
            recreate_pod(client, source, replica, &pg_hba).await?;
            let leader = source.leader().await?;
            source.switchover().await?;
            recreate_pod(client, source, leader, &pg_hba).await
        }
    }
}

/// POST /restart to every member that reports a pending restart, the leader last.
async fn restart_pending(source: &Source) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(PENDING_RESTART_SECONDS)).await;
    let leader = source.leader().await?.name();
    let mut members: Vec<&Member> = source.members().iter().collect();
    members.sort_by_key(|member| member.name() == leader);
    for member in members {
        let state = rest::get(&format!("{}/patroni", member.rest_url())).await?;
        if state["pending_restart"] == true {
            let body = json!({"restart_pending": true});
            rest::demand(
                Method::POST,
                &format!("{}/restart", member.rest_url()),
                &body,
            )
            .await?;
        }
    }
    source.healthy().await
}

/// Deletes a member's pod and recreates it with another environment.
async fn recreate_pod(
    client: &Client,
    source: &Source,
    member: &Member,
    pg_hba: &[String],
) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &source.options().namespace);
    member.stop().await?;
    pods.delete(member.name(), &DeleteParams::default().grace_period(0))
        .await
        .context("deleting a pod")?;
    let pod = workloads::pod(source.options(), member.layout(), pg_hba);
    let made: Pod = serde_json::from_value(pod.clone())?;
    pods.create(&PostParams::default(), &made)
        .await
        .context("recreating a pod")?;
    let status = json!({"status": pod["status"]});
    pods.patch_status(
        member.name(),
        &PatchParams::default(),
        &Patch::Merge(status),
    )
    .await
    .context("writing a pod's status")?;
    source.configure(member, pg_hba)?;
    member.start()?;
    source.healthy().await
}

async fn set_status(resources: &Api<DynamicObject>, source: &Source, word: &str) {
    let patch = json!({"status": {"PostgresClusterStatus": word}});
    let outcome = resources
        .patch_status(
            &source.options().cluster,
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await;
    if let Err(error) = outcome {
        eprintln!("zalando operator: writing the status {word}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn parameters_are_patched_and_pg_hba_rolls() {
        let new = wanted(
            r#"{"teamId": "t", "patroni": {"pg_hba": ["a"]},
                "postgresql": {"version": "17", "parameters": {"wal_keep_size": "1GB"}}}"#,
        );
        let patch = json!({"postgresql": {"parameters": {"wal_keep_size": "1GB"}}});
        assert_eq!(
            actions(&Spec::default(), &new, false),
            [Action::Patch(patch), Action::Roll(vec!["a".into()])]
        );
        assert_eq!(actions(&new, &new, false), []);
    }

    #[test]
    fn a_removed_slot_is_nulled() {
        let old = wanted(r#"{"patroni": {"slots": {"s": {"type": "physical"}}}}"#);
        assert_eq!(
            actions(&old, &Spec::default(), false),
            [Action::Patch(json!({"slots": {"s": null}}))]
        );
    }

    #[test]
    fn a_suspended_resource_is_left_alone() {
        let new = wanted(r#"{"patroni": {"pg_hba": ["a"]}}"#);
        assert_eq!(actions(&Spec::default(), &new, true), []);
    }
}
