//! The source's Services: which pods they select, and how they are repointed to the target and
//! back.

use std::{collections::BTreeMap, net::SocketAddr};

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

/// A Service, with the fields that are read.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::Service")]
#[serde(default)]
struct Service {
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    /// An address; `None` for a headless Service.
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    selector: Selector,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    port: i32,
    target_port: Option<IntOrString>,
}

/// An EndpointSlice, of which only the name is read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "discovery::v1::EndpointSlice")]
struct EndpointSlice {
    metadata: ObjectMeta,
}

/// Selects the slices that Kubernetes creates for a Service with a selector.
const BY_SELECTOR: &str = "endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io";

/// The Services that the Zalando operator creates for a cluster, with the selectors that repoint
/// them to the target: the primary, and any instance that is ready. The target's replicas are
/// created after the cutover; until then the primary answers reads, too
/// (docs/operators/cloudnative-pg.md#services).
pub fn repointed(source: &str, target: &str) -> BTreeMap<String, Selector> {
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

/// Reads the Services of these names; one that does not exist is missing in the result. With
/// `with_leftovers`, the EndpointSlices that a removed selector has left are read, too.
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
            let mut state = state(&service);
            if with_leftovers && state.selector.is_none() {
                state.leftovers = slices(client, namespace, name).await?;
            }
            Ok::<_, Error>(Some((name.clone(), state)))
        }
    });
    Ok(futures::future::try_join_all(each)
        .await?
        .into_iter()
        .flatten()
        .collect())
}

fn state(service: &Service) -> ServiceState {
    let target = |port: &Port| match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        // Both operators give their port this name.
        Some(IntOrString::String(name)) if name == "postgresql" => Some(5432),
        Some(IntOrString::String(_)) => None,
    };
    let listens = |port: &Port| {
        let ip = service.spec.cluster_ip.parse().ok()?;
        Some(SocketAddr::new(ip, u16::try_from(port.port).ok()?))
    };
    ServiceState {
        selector: Some(service.spec.selector.clone()).filter(|selector| !selector.is_empty()),
        address: match &service.spec.ports[..] {
            [port] => listens(port),
            _ => None,
        },
        port: match &service.spec.ports[..] {
            [port] => target(port),
            _ => None,
        },
        leftovers: Vec::new(),
    }
}

/// Replaces the selector of a Service; None removes it.
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
    // In a merge patch null removes the whole selector, or each label that is not in the new one.
    let labels = selector.map(|wanted| {
        let removed = before
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .map(|key| (key.clone(), None));
        let kept = wanted
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())));
        removed.chain(kept).collect::<BTreeMap<_, Option<String>>>()
    });
    job::kubernetes::merge(&api, name, json!({"spec": {"selector": labels}}))
        .await
        .map(drop)
}

/// Asks the API server whether it would accept [`select`]; nothing changes.
pub async fn try_select(
    client: &Client,
    namespace: &str,
    name: &str,
    selector: &Selector,
) -> Result<()> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    job::kubernetes::try_merge(&api, name, json!({"spec": {"selector": selector}})).await
}

/// Removes the EndpointSlices that a removed selector has left
/// (docs/operators/zalando.md#endpointslices).
pub async fn remove_slices(client: &Client, namespace: &str, service: &str) -> Result<()> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    // Selected by label: Kubernetes generates their names, so no Role can name them.
    let removed = api
        .delete_collection(&DeleteParams::default(), &slices_of(service))
        .await;
    removed
        .context(format!("removing the EndpointSlices of {service}"))
        .map(drop)
}

async fn slices(client: &Client, namespace: &str, service: &str) -> Result<Vec<String>> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&slices_of(service)).await;
    let list = list.context(format!("listing the EndpointSlices of {service}"))?;
    Ok(list.iter().map(ResourceExt::name_any).collect())
}

fn slices_of(service: &str) -> ListParams {
    ListParams::default().labels(&format!(
        "kubernetes.io/service-name={service},{BY_SELECTOR}"
    ))
}
