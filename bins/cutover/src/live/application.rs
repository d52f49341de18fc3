//! The application in one look: its workloads and its ConfigMap.

use std::collections::{BTreeMap, BTreeSet};

use job::{
    context::Run,
    error::{Error, Result},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use platform::kubernetes::workloads::{self, Workload};
use protocol::{
    route::Route,
    snapshot::kubernetes::{Kind, Replicas},
};

use crate::settings::Settings;
use protocol::{
    controllers::{
        detection::{ChangedObject, Metadata},
        suspension::Object,
    },
    record::{AppConfig, Record},
    snapshot::Snapshot,
};

/// What was seen of the application.
pub struct Application {
    /// Its workloads.
    pub replicas: BTreeMap<String, Replicas>,
    /// Words of APPS that no workload answers to.
    pub missing: Vec<String>,
    /// Its ConfigMap, or why there is none: that matters by one of the two ways only.
    pub config: Result<AppConfig>,
    /// The objects that the cut changes by the ConfigMap's way.
    pub changed: Vec<ChangedObject>,
}

impl Application {
    /// As at the last look, while the application has no say.
    pub fn as_before(last: &Snapshot) -> Self {
        Self {
            replicas: last.apps.clone(),
            missing: Vec::new(),
            config: Ok(last.config.clone()),
            changed: Vec::new(),
        }
    }

    /// Looks at it.
    ///
    /// # Errors
    /// The API's about workloads.
    pub async fn see(run: &Run, settings: &Settings, record: &Record) -> Result<Self> {
        let recorded = record
            .started
            .as_ref()
            .map(|start| start.config.name.as_str());
        let name = recorded
            .filter(|name| !name.is_empty())
            .unwrap_or(&settings.app_configmap);
        let (found, map) = futures::join!(
            workloads::find(&run.client, &run.namespace, &settings.apps.0),
            workloads::find_config(&run.client, &run.namespace, name)
        );
        let map = match record.started {
            None => map.and_then(workloads::changeable),
            Some(_) => map,
        };
        let (mut found, missing) = found?;
        // What has appeared since the counts were recorded is not part of this cut.
        if let Some(start) = &record.started {
            found.retain(|name, _| start.replicas.contains_key(name));
        }
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
        // What was recorded must be seen to come back, and what the settings say by now to be
        // there.
        let recorded = record
            .started
            .iter()
            .flat_map(|start| start.config.values.keys());
        let keys: BTreeSet<&String> = settings
            .app_config_target
            .0
            .keys()
            .chain(recorded)
            .collect();
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
        })
    }

    /// The ConfigMap, where the route needs it.
    ///
    /// # Errors
    /// There is none, or it may not be read.
    pub fn config_for(&mut self, route: Route) -> Result<AppConfig> {
        match (
            route,
            std::mem::replace(&mut self.config, Ok(AppConfig::default())),
        ) {
            (Route::Config, config) => config,
            (Route::Service, config) => Ok(config.unwrap_or_default()),
        }
    }

    /// APPS names what is there, where the route needs it.
    ///
    /// # Errors
    /// It does not.
    pub fn complete_for(&self, route: Route) -> Result<()> {
        match (route, &self.missing[..]) {
            (Route::Service, _) | (Route::Config, []) => Ok(()),
            (Route::Config, missing) => Err(Error::config(format!(
                "the Deployment {} does not \
                exist",
                missing.join(", ")
            ))
            .hint(
                "correct APPS in the ConfigMap replica-migration; StatefulSets take \
                    manifests/components/statefulsets",
            )),
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
