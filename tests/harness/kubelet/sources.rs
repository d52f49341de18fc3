//! The Secrets and ConfigMaps that a pod refers to, as they are at its start.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret};
use kube::{Api, Client};

/// The data of one object.
pub(super) type Data = BTreeMap<String, Vec<u8>>;

/// The data of every existing object that the pod refers to, by name.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) secrets: BTreeMap<String, Data>,
    pub(super) config_maps: BTreeMap<String, Data>,
}

impl Sources {
    pub(super) async fn read(client: &Client, namespace: &str, pod: &PodSpec) -> Result<Self> {
        let (mut secrets, mut config_maps) = (BTreeSet::new(), BTreeSet::new());
        names(pod, &mut secrets, &mut config_maps);
        let mut sources = Self::default();
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        for name in secrets {
            let found = api
                .get_opt(&name)
                .await
                .with_context(|| format!("reading the Secret {name}"))?;
            if let Some(secret) = found {
                let data = secret
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.0))
                    .collect();
                sources.secrets.insert(name, data);
            }
        }
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        for name in config_maps {
            let found = api
                .get_opt(&name)
                .await
                .with_context(|| format!("reading the ConfigMap {name}"))?;
            if let Some(map) = found {
                let texts = map
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.into_bytes()));
                let bytes = map
                    .binary_data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.0));
                sources
                    .config_maps
                    .insert(name, texts.chain(bytes).collect());
            }
        }
        Ok(sources)
    }
}

fn names(pod: &PodSpec, secrets: &mut BTreeSet<String>, config_maps: &mut BTreeSet<String>) {
    for container in &pod.containers {
        for from in container.env_from.iter().flatten() {
            secrets.extend(
                from.secret_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
            config_maps.extend(
                from.config_map_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
        }
        for from in container
            .env
            .iter()
            .flatten()
            .filter_map(|variable| variable.value_from.as_ref())
        {
            secrets.extend(
                from.secret_key_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
            config_maps.extend(
                from.config_map_key_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
        }
    }
    for volume in pod.volumes.iter().flatten() {
        secrets.extend(
            volume
                .secret
                .iter()
                .filter_map(|secret| secret.secret_name.clone()),
        );
        config_maps.extend(volume.config_map.iter().map(|map| map.name.clone()));
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            secrets.extend(source.secret.iter().map(|secret| secret.name.clone()));
            config_maps.extend(source.config_map.iter().map(|map| map.name.clone()));
        }
    }
}
