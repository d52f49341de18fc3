//! The application: Deployments by name, their wanted and ready replicas, and the ConfigMap that tells them where the database is.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::FIELD_MANAGER;
use crate::{
    config::Name,
    error::{Context as _, Error, Result},
};

/// A Deployment as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// `spec.replicas`.
    pub wanted: i32,
    /// `status.readyReplicas`.
    pub ready: i32,
    /// `status.replicas`: pods that exist, also those that are ending.
    pub existing: i32,
    /// `metadata.resourceVersion`, for a change that must not hit what has moved since.
    pub version: String,
}

/// Reads the application's Deployments.
///
/// # Errors
/// Config for a Deployment that does not exist.
pub async fn replicas(client: &Client, namespace: &str, apps: &[Name]) -> Result<BTreeMap<String, Replicas>> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let each = apps.iter().map(|name| {
        let api = &api;
        async move {
            let found = super::get(api, name).await?.ok_or_else(|| {
                Error::config(format!("the Deployment {name} does not exist")).hint("correct APPS in the ConfigMap replica-migration")
            })?;
            let status = found.status.unwrap_or_default();
            let replicas = Replicas {
                wanted: found.spec.replicas.unwrap_or(1),
                ready: status.ready_replicas.unwrap_or(0),
                existing: status.replicas.unwrap_or(0),
                version: found.metadata.resource_version.unwrap_or_default(),
            };
            Ok((name.to_string(), replicas))
        }
    });
    futures::future::try_join_all(each).await.map(|pairs| pairs.into_iter().collect())
}

/// Sets `spec.replicas` of many Deployments at once, through the scale subresource only, where they still are as `seen`.
///
/// The version makes a scaling that comes late harmless: it must not stop an application that another has started since.
///
/// # Errors
/// The API's, a conflict among them; some may have been scaled all the same.
pub async fn scale(client: &Client, namespace: &str, wanted: &BTreeMap<String, i32>, seen: &BTreeMap<String, Replicas>) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let moving = wanted.iter().filter_map(|(name, replicas)| Some((name, replicas, seen.get(name)?)));
    let each = moving
        .filter(|(_, replicas, seen)| seen.wanted != **replicas)
        .map(|(name, replicas, seen)| {
            let (api, params) = (&api, &params);
            async move {
                let change = json!({"metadata": {"resourceVersion": seen.version}, "spec": {"replicas": replicas}});
                api.patch_scale(name, params, &Patch::Merge(&change))
                    .await
                    .context(format!("scaling {name} to {replicas}"))
                    .map(drop)
            }
        });
    // All of them are tried: one that moved must not keep the others waiting for the next look.
    futures::future::join_all(each).await.into_iter().collect()
}

/// Finds the application's ConfigMap, also when kustomize has put a hash behind its name.
///
/// # Errors
/// Config when there is none, or more than one that could be it.
pub async fn find_config(client: &Client, namespace: &str, name: &str) -> Result<ConfigMap> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    if let Some(map) = super::get(&api, name).await? {
        return Ok(map);
    }
    let list = api
        .list(&ListParams::default())
        .await
        .context(format!("looking for the ConfigMap {name}"))?;
    let mut hashed: Vec<ConfigMap> = list.items.into_iter().filter(|map| is_hashed(&map.name_any(), name)).collect();
    match hashed.len() {
        1 => Ok(hashed.remove(0)),
        0 => {
            Err(Error::config(format!("the ConfigMap {name} does not exist"))
                .hint("correct APP_CONFIGMAP in the ConfigMap replica-migration"))
        }
        _ => {
            let names: Vec<String> = hashed.iter().map(ResourceExt::name_any).collect();
            Err(
                Error::config(format!("more than one ConfigMap could be {name}: {}", names.join(", ")))
                    .hint("name the one that the Deployments use in APP_CONFIGMAP"),
            )
        }
    }
}

/// `name-` and kustomize's ten characters (its hash uses only these letters and digits).
fn is_hashed(found: &str, name: &str) -> bool {
    found
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|hash| hash.len() == 10 && hash.chars().all(|c| "bcdfghkmt24567892".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_name_is_recognised_and_a_longer_name_is_not() {
        assert!(is_hashed("mastodon-database-5f7h9k2mbt", "mastodon-database"));
        assert!(!is_hashed("mastodon-database-connection", "mastodon-database"));
        assert!(!is_hashed("mastodon-database", "mastodon-database"));
    }
}
