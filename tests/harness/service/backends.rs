//! The backends of each Service, read from stores that follow the namespace's objects.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use futures::{FutureExt, StreamExt, stream::SelectAll};
use k8s_openapi::{
    api::{
        core::v1::{Endpoints, Pod, Service, ServicePort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{Store, store::Writer},
        watcher,
    },
};

use super::slices;
use crate::instance::Instance;

pub(super) type Changes = futures::stream::BoxStream<'static, ()>;

/// A store that follows a kind, and a stream that yields at each change.
fn reflected<K>(api: Api<K>) -> (Store<K>, Changes)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let writer = Writer::<K>::default();
    let store = writer.as_reader();
    let events = reflector::reflector(
        writer,
        watcher(api, watcher::Config::default()).default_backoff(),
    );
    (store, events.map(|_| ()).boxed())
}

/// The namespace's Services and the objects that their backends come from.
pub(super) struct Cluster {
    services: Store<Service>,
    pods: Store<Pod>,
    endpoints: Store<Endpoints>,
    slices: Store<EndpointSlice>,
}

impl Cluster {
    /// The stores, and a stream that must be polled to update them; it yields at each change.
    pub(super) fn follow(client: &Client, namespace: &str) -> (Self, SelectAll<Changes>) {
        let (services, services_changed) = reflected(Api::namespaced(client.clone(), namespace));
        let (pods, pods_changed) = reflected(Api::namespaced(client.clone(), namespace));
        let (endpoints, endpoints_changed) = reflected(Api::namespaced(client.clone(), namespace));
        let mut changes = SelectAll::new();
        let (slices, slices_changed) = reflected(Api::namespaced(client.clone(), namespace));
        changes.extend([
            services_changed,
            pods_changed,
            endpoints_changed,
            slices_changed,
        ]);
        let this = Self {
            services,
            pods,
            endpoints,
            slices,
        };
        (this, changes)
    }

    /// True once the first list of each kind has arrived.
    pub(super) fn complete(&self) -> bool {
        let listed = [
            self.services.wait_until_ready().now_or_never(),
            self.pods.wait_until_ready().now_or_never(),
            self.endpoints.wait_until_ready().now_or_never(),
            self.slices.wait_until_ready().now_or_never(),
        ];
        listed.iter().all(Option::is_some)
    }

    /// All Services.
    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.services.state()
    }

    /// The current backends of one port of a Service.
    pub(super) fn backends(&self, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
        let mut backends = match selector(service) {
            Some(selector) => self.selected(selector, port),
            None => self.listed(&service.name_any(), port),
        };
        backends.sort_unstable();
        backends.dedup();
        backends
    }

    /// The addresses that a Service's selector matches; None without a selector.
    pub(super) fn selected_by(&self, service: &Service) -> Option<Vec<SocketAddr>> {
        let port = service.spec.as_ref()?.ports.as_ref()?.first()?;
        selector(service).map(|selector| self.selected(selector, port))
    }

    fn selected(&self, selector: &BTreeMap<String, String>, port: &ServicePort) -> Vec<SocketAddr> {
        let pods = self.pods.state();
        let matching = pods.iter().filter(|pod| {
            selector
                .iter()
                .all(|(key, value)| pod.labels().get(key) == Some(value))
        });
        matching
            .filter(|pod| is_ready(pod))
            .filter_map(|pod| pod_backend(pod, port))
            .collect()
    }

    fn listed(&self, name: &str, port: &ServicePort) -> Vec<SocketAddr> {
        let endpoints = self.endpoints.state();
        let subsets = endpoints
            .iter()
            .filter(|e| e.name_any() == name)
            .flat_map(|e| e.subsets.clone().unwrap_or_default());
        let mut backends = Vec::new();
        for subset in subsets {
            let number = subset
                .ports
                .iter()
                .flatten()
                .find(|p| p.name == port.name || subset.ports.iter().flatten().count() == 1);
            let Some(number) = number.and_then(|p| u16::try_from(p.port).ok()) else {
                continue;
            };
            let ips = subset
                .addresses
                .iter()
                .flatten()
                .filter_map(|address| address.ip.parse().ok());
            backends
                .extend(ips.map(|ip| SocketAddr::from((Instance::loopback_address(ip), number))));
        }
        // EndpointSlices left behind by an earlier selector count as well.
        let slices = self.slices.state();
        let left = slices.iter().filter(|slice| {
            slice
                .labels()
                .get(slices::SERVICE)
                .is_some_and(|service| service == name)
        });
        backends.extend(left.flat_map(|slice| slices::backends(slice)));
        backends
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn pod_backend(pod: &Pod, port: &ServicePort) -> Option<SocketAddr> {
    let ip = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
    let number = match &port.target_port {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.as_ref()?.containers.iter();
            containers
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name))?
                .container_port
        }
        None => port.port,
    };
    Some(SocketAddr::from((
        Instance::loopback_address(ip),
        u16::try_from(number).ok()?,
    )))
}
