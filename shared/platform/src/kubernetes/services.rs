//! Where the source's Services lead, and how they are turned to the target and back.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{core::v1, discovery},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams},
};
use protocol::snapshot::kubernetes::{Selector, ServiceState};
use serde::Deserialize;
use serde_json::json;

use job::error::{Context as _, Error, Result};

/// A Service, as far as it is read here; the whole types make the programs larger.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::Service")]
#[serde(default)]
struct Service {
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    selector: Selector,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    port: i32,
    target_port: Option<IntOrString>,
}

/// An EndpointSlice, of which only the name matters here.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "discovery::v1::EndpointSlice")]
struct EndpointSlice {
    metadata: ObjectMeta,
}

/// The slices that Kubernetes makes for a Service with a selector.
const BY_SELECTOR: &str = "endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io";

/// The Services that the Zalando operator makes for a cluster, and what shall stand behind them:
/// the new primary, and any instance that answers. Replicas come later, and until then reads go to
/// the primary, too (docs/operators/cloudnative-pg.md#services).
pub fn turned(source: &str, target: &str) -> BTreeMap<String, Selector> {
    let selector = |key: &str, value: &str| {
        let cluster = ("cnpg.io/cluster".to_owned(), target.to_owned());
        Selector::from([cluster, (key.to_owned(), value.to_owned())])
    };
    BTreeMap::from([
        (
            source.to_owned(),
            selector("cnpg.io/instanceRole", "primary"),
        ),
        (
            format!("{source}-repl"),
            selector("cnpg.io/podRole", "instance"),
        ),
    ])
}

/// Reads these Services; one that does not exist is not in the answer.
///
/// # Errors
/// The API's.
pub async fn read(
    client: &Client,
    namespace: &str,
    names: &[String],
    with_leftovers: bool,
) -> Result<BTreeMap<String, ServiceState>> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let each = names.iter().map(|name| {
        let api = &api;
        async move {
            let Some(service) = job::kubernetes::get(api, name).await? else {
                return Ok(None);
            };
            let mut seen = seen(&service);
            if with_leftovers && seen.selector.is_none() {
                seen.leftovers = slices(client, namespace, name).await?;
            }
            Ok::<_, Error>(Some((name.clone(), seen)))
        }
    });
    Ok(futures::future::try_join_all(each)
        .await?
        .into_iter()
        .flatten()
        .collect())
}

fn seen(service: &Service) -> ServiceState {
    let target = |port: &Port| match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        // CloudNativePG's name for its port, and Zalando's.
        Some(IntOrString::String(name)) if name == "postgresql" => Some(5432),
        Some(IntOrString::String(_)) => None,
    };
    ServiceState {
        selector: Some(service.spec.selector.clone()).filter(|selector| !selector.is_empty()),
        port: match &service.spec.ports[..] {
            [port] => target(port),
            _ => None,
        },
        leftovers: Vec::new(),
    }
}

/// Gives a Service this selector, and no other label of the one before.
///
/// # Errors
/// The API's.
pub async fn select(
    client: &Client,
    namespace: &str,
    name: &str,
    selector: Option<&Selector>,
) -> Result<()> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let before = api
        .get(name)
        .await
        .context(format!("reading Service {name}"))?;
    let before = before.spec.selector;
    // In a merge patch null removes: the whole selector, or each label that the new one has not.
    let labels = selector.map(|wanted| {
        let gone = before
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .map(|key| (key.clone(), None));
        let there = wanted
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())));
        gone.chain(there).collect::<BTreeMap<_, Option<String>>>()
    });
    job::kubernetes::merge(&api, name, json!({"spec": {"selector": labels}}))
        .await
        .map(drop)
}

/// Asks whether [`select`] would be let through.
///
/// # Errors
/// The API's.
pub async fn try_select(
    client: &Client,
    namespace: &str,
    name: &str,
    selector: &Selector,
) -> Result<()> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    job::kubernetes::try_merge(&api, name, json!({"spec": {"selector": selector}})).await
}

/// Removes what a selector has left behind (docs/operators/zalando.md#endpointslices).
///
/// # Errors
/// The API's.
pub async fn remove_slices(client: &Client, namespace: &str, service: &str) -> Result<()> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    // By label: their names are made up by Kubernetes, so no Role can name them.
    let removed = api
        .delete_collection(&DeleteParams::default(), &of_service(service))
        .await;
    removed
        .context(format!("removing the EndpointSlices of {service}"))
        .map(drop)
}

async fn slices(client: &Client, namespace: &str, service: &str) -> Result<Vec<String>> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&of_service(service)).await;
    let list = list.context(format!("listing the EndpointSlices of {service}"))?;
    Ok(list.iter().map(ResourceExt::name_any).collect())
}

fn of_service(service: &str) -> ListParams {
    ListParams::default().labels(&format!(
        "kubernetes.io/service-name={service},{BY_SELECTOR}"
    ))
}
