//! The application: its Deployments and StatefulSets by name or label, their requested and ready
//! replicas, and the ConfigMap with the address of its database.

use std::collections::BTreeMap;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch},
};
use protocol::{
    network::LabelSelector,
    snapshot::kubernetes::{Kind, Replicas},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use job::kubernetes::patch_params;
use job::{
    config::App,
    error::{Context as _, Error, ErrorKind, Result},
};

/// A Deployment without its pod template, whose whole type adds half a megabyte to a program.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::Deployment")]
#[serde(default)]
struct Deployment {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

/// A StatefulSet without its pod template.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::StatefulSet")]
#[serde(default)]
struct StatefulSet {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    replicas: Option<i32>,
    selector: LabelSelector,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
    replicas: i32,
    ready_replicas: i32,
}

/// One of the application's Deployments or StatefulSets.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Requested, existing and ready pods.
    pub replicas: Replicas,
    /// Labels, annotations and owners.
    pub metadata: ObjectMeta,
    /// The labels of its pods.
    pub selector: LabelSelector,
}

/// Finds the application's workloads, by name; also returns the entries of APPS that match nothing.
///
/// # Errors
/// Config for a Deployment and a StatefulSet of the same name.
pub async fn find(
    client: &Client,
    namespace: &str,
    apps: &[App],
) -> Result<(BTreeMap<String, Workload>, Vec<String>)> {
    let named = apps.iter().filter_map(|app| match app {
        App::Name(name) => Some(by_name(client, namespace, name)),
        App::Label(_) => None,
    });
    let (named, labelled) = futures::try_join!(
        futures::future::try_join_all(named),
        by_labels(client, namespace, apps)
    )?;
    let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
    for (name, workload) in named {
        match workload {
            Some(workload) => drop(found.insert(name, workload)),
            None => missing.push(name),
        }
    }
    for workload in labelled {
        let name = workload.metadata.name.clone().unwrap_or_default();
        let kind = workload.replicas.kind;
        if found
            .insert(name.clone(), workload)
            .is_some_and(|other| other.replicas.kind != kind)
        {
            return Err(Error::config(format!(
                "both a Deployment and a StatefulSet are called {name}"
            ))
            .hint(
                "select them by a label of one of the two, or rename one: the record knows them \
                 by name",
            ));
        }
    }
    if let Some(selector) = selector(apps).filter(|_| found.is_empty()) {
        missing.push(selector);
    }
    Ok((found, missing))
}

/// The label selector of all labels in APPS; None without labels.
pub fn selector(apps: &[App]) -> Option<String> {
    let words = apps.iter().filter_map(|app| match app {
        App::Label(label) => Some(label.as_str()),
        App::Name(_) => None,
    });
    let all = words.collect::<Vec<_>>().join(",");
    (!all.is_empty()).then_some(all)
}

async fn by_name(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(String, Option<Workload>)> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    if let Some(found) = job::kubernetes::get(&deployments, name).await? {
        return Ok((name.to_owned(), Some(from_deployment(found))));
    }
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    match job::kubernetes::get(&sets, name).await {
        Ok(found) => Ok((name.to_owned(), found.map(from_stateful_set))),
        // Most applications have no StatefulSets, and the Role does not allow to read them then.
        Err(error) if error.kind() == ErrorKind::Config => Ok((name.to_owned(), None)),
        Err(error) => Err(error),
    }
}

async fn by_labels(client: &Client, namespace: &str, apps: &[App]) -> Result<Vec<Workload>> {
    let Some(selector) = selector(apps) else {
        return Ok(Vec::new());
    };
    let (deployments, sets) = futures::try_join!(
        list::<Deployment>(client, namespace, &selector),
        list::<StatefulSet>(client, namespace, &selector)
    )?;
    Ok(deployments
        .into_iter()
        .map(from_deployment)
        .chain(sets.into_iter().map(from_stateful_set))
        .collect())
}

async fn list<K>(client: &Client, namespace: &str, selector: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default().labels(selector)).await;
    Ok(found
        .context(format!("listing {} with {selector}", K::plural(&())))?
        .items)
}

fn from_deployment(found: Deployment) -> Workload {
    workload(Kind::Deployment, found.metadata, &found.spec, &found.status)
}

fn from_stateful_set(found: StatefulSet) -> Workload {
    workload(
        Kind::StatefulSet,
        found.metadata,
        &found.spec,
        &found.status,
    )
}

fn workload(kind: Kind, metadata: ObjectMeta, spec: &Spec, status: &Status) -> Workload {
    Workload {
        replicas: Replicas {
            kind,
            wanted: spec.replicas.unwrap_or(1),
            ready: status.ready_replicas,
            existing: status.replicas,
            followed: status.observed_generation >= metadata.generation.unwrap_or_default(),
            version: metadata.resource_version.clone().unwrap_or_default(),
        },
        metadata,
        selector: spec.selector.clone(),
    }
}

/// Sets `spec.replicas` of several workloads at once, by the scale subresource, unless they have
/// changed since they were `observed`.
///
/// The resourceVersion of the observation is part of the request, so that a delayed one cannot stop
/// an application that another program has started since.
///
/// # Errors
/// Also a conflict with another writer; the other workloads may have been scaled nevertheless.
pub async fn scale(
    client: &Client,
    namespace: &str,
    wanted: &BTreeMap<String, i32>,
    observed: &BTreeMap<String, Replicas>,
) -> Result<()> {
    let known = wanted
        .iter()
        .filter_map(|(name, replicas)| Some((name, replicas, observed.get(name)?)));
    let each = known
        .filter(|(_, replicas, before)| before.wanted != **replicas)
        .map(|(name, replicas, before)| async move {
            let change = json!({
                "metadata": {"resourceVersion": before.version},
                "spec": {"replicas": replicas},
            });
            let scaled = match before.kind {
                Kind::Deployment => scale_one::<Deployment>(client, namespace, name, &change).await,
                Kind::StatefulSet => {
                    scale_one::<StatefulSet>(client, namespace, name, &change).await
                }
            };
            scaled.context(format!("scaling {name} to {replicas}"))
        });
    // Every workload is tried: a conflict at one must not delay the others until the next
    // observation.
    futures::future::join_all(each).await.into_iter().collect()
}

async fn scale_one<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    change: &serde_json::Value,
) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    Ok(api
        .patch_scale(name, &patch_params(), &Patch::Merge(change))
        .await
        .map(drop)?)
}

/// Returns the ConfigMap if it can be changed.
///
/// # Errors
/// Config for an immutable one, which must be found before the point of no return.
pub fn changeable(map: ConfigMap) -> Result<ConfigMap> {
    match map.immutable {
        Some(true) => Err(Error::config(format!(
            "the ConfigMap {} is immutable: the cutover cannot change it",
            map.name_any()
        ))
        .hint(
            "create it again without `immutable`, or repoint the Services instead (ROUTE=service)",
        )),
        _ => Ok(map),
    }
}

/// Finds the application's ConfigMap, also when kustomize has appended a hash to its name.
///
/// # Errors
/// Config when no ConfigMap matches, or more than one.
pub async fn find_config(client: &Client, namespace: &str, name: &str) -> Result<ConfigMap> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    if let Some(map) = job::kubernetes::get(&api, name).await? {
        return Ok(map);
    }
    let list = api
        .list(&ListParams::default())
        .await
        .context(format!("looking for the ConfigMap {name}"))?;
    let mut hashed: Vec<ConfigMap> = list
        .items
        .into_iter()
        .filter(|map| is_hashed(&map.name_any(), name))
        .collect();
    match hashed.len() {
        1 => Ok(hashed.remove(0)),
        0 => Err(
            Error::config(format!("the ConfigMap {name} does not exist"))
                .hint("correct APP_CONFIGMAP in the ConfigMap replica-migration"),
        ),
        _ => {
            let names: Vec<String> = hashed.iter().map(ResourceExt::name_any).collect();
            Err(Error::config(format!(
                "more than one ConfigMap could be {name}: {}",
                names.join(", ")
            ))
            .hint("name the one that the Deployments use in APP_CONFIGMAP"))
        }
    }
}

/// `name-` and ten characters of kustomize's hash, which has only these letters and digits.
fn is_hashed(found: &str, name: &str) -> bool {
    found
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|hash| {
            hash.len() == 10 && hash.chars().all(|c| "bcdfghkmt24567892".contains(c))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_name_is_recognised_and_a_longer_name_is_not() {
        assert!(is_hashed(
            "mastodon-database-5f7h9k2mbt",
            "mastodon-database"
        ));
        assert!(!is_hashed(
            "mastodon-database-connection",
            "mastodon-database"
        ));
        assert!(!is_hashed("mastodon-database", "mastodon-database"));
    }
}
