//! Deployment controller and kubelet in one: follows `spec.replicas` and the pod template, creates
//! Pod objects, runs each pod's clients, and reports status as Kubernetes does: a terminating pod
//! no longer counts in the status but works until it has stopped.
//!
//! Not imitated: ReplicaSets, surge and unavailability limits (new pods start first; old ones are
//! deleted once all new ones are ready), probes, restarts of failed containers.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{
    Epoch, PART_OF,
    pod::ApplicationPod,
    writer::{Identity, Log},
};
use crate::{retry::until_answered, service::Services};

/// What the controller's parts share.
#[derive(Clone)]
pub(super) struct Shared {
    pub client: Client,
    pub namespace: String,
    pub services: Arc<Services>,
    pub log: Log,
    pub epoch: Epoch,
    pub writers_per_pod: u32,
    /// True at the end of the run: clients that still wait for an answer are aborted.
    pub over: watch::Receiver<bool>,
}

/// What a pod's task reports to the controller.
pub(super) enum PodEvent {
    /// Deployment and pod: the pod is ready.
    Ready(String, String),
    /// Deployment and pod: the pod's object is deleted.
    Gone(String, String),
}

struct PodState {
    slot: u32,
    template: String,
    ready: bool,
    /// Dropping the sender is the pod's SIGTERM.
    alive: Option<mpsc::Sender<()>>,
}

#[derive(Default)]
struct ManagedDeployment {
    object: Option<Deployment>,
    pods: BTreeMap<String, PodState>,
    identities: BTreeMap<u32, Vec<Identity>>,
    made: u32,
}

/// Runs until it is dropped; the pods end with it.
pub(super) async fn run(shared: Shared) {
    let api: Api<Deployment> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let labelled =
        watcher::Config::default().labels(&format!("app.kubernetes.io/part-of={PART_OF}"));
    let mut changes = watcher(api, labelled).default_backoff().boxed();
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut managed_deployments: BTreeMap<String, ManagedDeployment> = BTreeMap::new();
    loop {
        let name = tokio::select! {
            change = changes.try_next() => match change {
                Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                    let name = object.name_any();
                    managed_deployments.entry(name.clone()).or_default().object = Some(object);
                    name
                }
                Ok(Some(watcher::Event::Delete(object))) => {
                    let name = object.name_any();
                    if let Some(managed) = managed_deployments.get_mut(&name) {
                        managed.object = None;
                        managed.pods.values_mut().for_each(|pod| pod.alive = None);
                    }
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => return,
                // The watcher reconnects on its own.
                Err(_) => continue,
            },
            Some(event) = events.recv() => match event {
                PodEvent::Ready(name, pod) => {
                    let managed = managed_deployments.get_mut(&name);
                    if let Some(pod) = managed.and_then(|managed| managed.pods.get_mut(&pod)) {
                        pod.ready = true;
                    }
                    name
                }
                PodEvent::Gone(name, pod) => {
                    if let Some(managed) = managed_deployments.get_mut(&name) {
                        managed.pods.remove(&pod);
                    }
                    name
                }
            },
        };
        if let Some(managed) = managed_deployments.get_mut(&name)
            && let Err(error) = managed.reconcile(&shared, &sender).await
        {
            eprintln!("deployment {name}: {error:#}");
        }
    }
}

impl ManagedDeployment {
    async fn reconcile(
        &mut self,
        shared: &Shared,
        sender: &mpsc::UnboundedSender<PodEvent>,
    ) -> Result<()> {
        let Some(object) = self.object.clone() else {
            return Ok(());
        };
        let wanted = object
            .spec
            .replicas
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1);
        let template = template_hash(&object);
        for slot in 0..wanted {
            let runs = self
                .pods
                .values()
                .any(|pod| pod.alive.is_some() && pod.slot == slot && pod.template == template);
            if !runs {
                self.start(shared, &object, slot, &template, sender).await?;
            }
        }
        let renewed = self
            .pods
            .values()
            .filter(|pod| pod.alive.is_some() && pod.template == template && pod.slot < wanted)
            .all(|pod| pod.ready);
        for pod in self.pods.values_mut() {
            if pod.slot >= wanted || (pod.template != template && renewed) {
                pod.alive = None;
            }
        }
        self.report(shared, &object, &template).await
    }

    async fn start(
        &mut self,
        shared: &Shared,
        object: &Deployment,
        slot: u32,
        template: &str,
        sender: &mpsc::UnboundedSender<PodEvent>,
    ) -> Result<()> {
        self.made += 1;
        let identities = self.identities.entry(slot).or_insert_with(|| {
            let clients = 0..shared.writers_per_pod;
            clients
                .map(|writer| Identity::new(format!("{}/{slot}/{writer}", object.name_any())))
                .collect()
        });
        let pod = ApplicationPod::create(
            shared.clone(),
            object,
            template,
            self.made,
            slot,
            identities.clone(),
        )
        .await?;
        let (alive, ended) = mpsc::channel(1);
        let state = PodState {
            slot,
            template: template.to_owned(),
            ready: false,
            alive: Some(alive),
        };
        self.pods.insert(pod.name(), state);
        tokio::spawn(pod.live(ended, object.name_any(), sender.clone()));
        Ok(())
    }

    async fn report(&self, shared: &Shared, object: &Deployment, template: &str) -> Result<()> {
        let living = || self.pods.values().filter(|pod| pod.alive.is_some());
        let (replicas, ready) = (living().count(), living().filter(|pod| pod.ready).count());
        let wanted = object.spec.replicas.unwrap_or(1);
        let enough = i32::try_from(ready).is_ok_and(|ready| ready >= wanted);
        let now = jiff::Timestamp::now().to_string();
        let status = json!({"status": {
            "observedGeneration": object.metadata.generation,
            "replicas": replicas,
            "updatedReplicas": living().filter(|pod| pod.template == template).count(),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": usize::try_from(wanted).unwrap_or(0).saturating_sub(ready),
            "conditions": [{
                "type": "Available", "status": if enough { "True" } else { "False" },
                "lastTransitionTime": now, "lastUpdateTime": now,
                "reason": if enough { "MinimumReplicasAvailable" } else {
                    "MinimumReplicasUnavailable"
                },
            }],
        }});
        let api: Api<Deployment> = Api::namespaced(shared.client.clone(), &shared.namespace);
        let (name, params, status) = (
            object.name_any(),
            PatchParams::default(),
            Patch::Merge(status),
        );
        match until_answered(|| api.patch_status(&name, &params, &status)).await {
            // Deleted in the meantime; the watch reports it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            written => written.map(drop).context("writing the status"),
        }
    }
}

fn template_hash(object: &Deployment) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(&object.spec.template)
        .unwrap_or_default()
        .hash(&mut hasher);
    format!("{:x}", hasher.finish())[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u"},
            "spec": {
                "selector": {},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": image}]}
                }
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_change_of_the_template_changes_the_hash() {
        assert_eq!(
            template_hash(&deployment("a")),
            template_hash(&deployment("a"))
        );
        assert_ne!(
            template_hash(&deployment("a")),
            template_hash(&deployment("b"))
        );
    }
}
