//! The application in one observation: its workloads and its ConfigMap.

use std::collections::{BTreeMap, BTreeSet};

use job::error::{ErrorKind, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, ResourceExt as _};
use protocol::{
    controllers::{
        detection::{ChangedObject, Metadata},
        suspension::Object,
    },
    decision::Limits,
    failure::Failure,
    network::LabelSelector,
    record::{AppConfig, Start},
    route::Route,
    snapshot::{
        Snapshot,
        kubernetes::{Kind, Replicas},
    },
};

use super::Subject;
use crate::kubernetes::workloads::{self, Workload};

/// What was observed of the application.
pub struct Application {
    /// Its workloads.
    pub replicas: BTreeMap<String, Replicas>,
    /// Words of APPS that no workload matches.
    pub missing: Vec<String>,
    /// Its ConfigMap, or why there is none: that matters by one of the two ways only.
    pub config: Result<AppConfig>,
    /// The objects that a cutover by the ConfigMap changes.
    pub changed: Vec<ChangedObject>,
    /// The selectors of its workloads' pods.
    pub selectors: Vec<LabelSelector>,
}

impl Application {
    /// As last observed, while nothing of it changes.
    pub fn as_before(last: &Snapshot) -> Self {
        Self {
            replicas: last.apps.clone(),
            missing: Vec::new(),
            config: Ok(last.config.clone()),
            changed: Vec::new(),
            selectors: Vec::new(),
        }
    }

    /// Reads it; `start` is the recorded start, if there is one.
    pub async fn observe(
        client: &Client,
        namespace: &str,
        subject: &Subject,
        start: Option<&Start>,
        limits: &Limits,
    ) -> Result<Self> {
        let recorded = start.map(|start| start.config.name.as_str());
        let name = recorded
            .filter(|name| !name.is_empty())
            .unwrap_or(&subject.app_configmap);
        let (found, map) = futures::join!(
            workloads::find(client, namespace, &subject.apps),
            workloads::find_config(client, namespace, name)
        );
        let map = match start {
            None => map.and_then(workloads::changeable),
            Some(_) => map,
        };
        let (mut found, missing) = found?;
        // What has appeared since the counts were recorded is not part of this cutover.
        if let Some(start) = start {
            found.retain(|name, _| start.replicas.contains_key(name));
        }
        let selectors = found.values().map(|found| found.selector.clone()).collect();
        let mut changed: Vec<ChangedObject> = found
            .iter()
            .map(|(name, workload)| changed_workload(name, workload))
            .collect();
        if let Ok(map) = &map {
            changed.push(ChangedObject {
                object: Object::of("", "v1", "ConfigMap", "configmaps", &map.name_any()),
                metadata: managed_by(&map.metadata),
                for_good: true,
            });
        }
        // The recorded keys show whether a rollback is complete, those of the settings whether the
        // application points to the target.
        let recorded = start.iter().flat_map(|start| start.config.values.keys());
        let keys: BTreeSet<&String> = limits.config.keys().chain(recorded).collect();
        Ok(Self {
            replicas: found
                .into_iter()
                .map(|(name, workload)| (name, workload.replicas))
                .collect(),
            missing,
            config: map.map(|map| {
                let data = map.data.clone().unwrap_or_default();
                AppConfig {
                    name: map.name_any(),
                    values: keys
                        .into_iter()
                        .map(|key| (key.clone(), data.get(key).cloned()))
                        .collect(),
                }
            }),
            changed,
            selectors,
        })
    }

    /// The ConfigMap where the route needs it, and why it cannot be used: before the start that is
    /// for a check to judge (`judged`), after it an error.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn config_for(
        &mut self,
        route: Route,
        judged: bool,
    ) -> Result<(AppConfig, Option<Failure>)> {
        let config = std::mem::replace(&mut self.config, Ok(AppConfig::default()));
        match config {
            Ok(config) => Ok((config, None)),
            Err(_) if route == Route::Service => Ok((AppConfig::default(), None)),
            Err(error) if judged && error.kind() == ErrorKind::Config => {
                Ok((AppConfig::default(), Some(error.into())))
            }
            Err(error) => Err(error),
        }
    }
}

fn changed_workload(name: &str, workload: &Workload) -> ChangedObject {
    let (kind, plural) = match workload.replicas.kind {
        Kind::Deployment => ("Deployment", "deployments"),
        Kind::StatefulSet => ("StatefulSet", "statefulsets"),
    };
    ChangedObject {
        object: Object::of("apps", "v1", kind, plural, name),
        metadata: managed_by(&workload.metadata),
        for_good: false,
    }
}

/// The part of an object's metadata that tells which controllers manage it.
pub fn managed_by(metadata: &ObjectMeta) -> Metadata {
    serde_json::to_value(metadata)
        .and_then(serde_json::from_value)
        .unwrap_or_default()
}
