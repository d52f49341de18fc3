//! Imitates kube-proxy and the cluster's DNS on one machine: every Service of the namespace gets a
//! TCP listener, and its name resolves to an address.
//!
//! Backends are determined as in Kubernetes: with a selector, the ready Pods that match; without
//! one, the addresses of the Endpoints object of the same name (which Patroni writes) and of
//! EndpointSlices that an earlier selector left behind. Kubernetes objects hold addresses that
//! represent loopback ones ([`Instance::kubernetes_address`]). A Service listens at its cluster IP,
//! which the API server takes from the instance's network ([`Instance::cluster_ips`]). As with
//! kube-proxy, a change of backends closes no existing connection, and a Service without backends
//! refuses new ones. Unlike kube-proxy, changes take effect at once (kube-proxy: within a second),
//! unless they are [slow](Services::set_slow), and every port of a Service has one target port. The
//! programs and clients share one view of the Services, as if they ran on one node; each pod of a
//! pooler has a view of its own, so that slow changes reach each at another time.

mod backends;
mod delay;
pub mod forwarder;
pub mod pgbouncer;
pub mod pooler;
mod slices;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{Client, ResourceExt};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::instance::Instance;
use backends::Cluster;
use delay::Backends;
use forwarder::Forwarder;
use slices::Slices;

/// Host number where nothing listens.
const REFUSING_HOST: u8 = 253;
/// Limit for the first lists of all kinds.
const FIRST_LISTS: Duration = Duration::from_secs(20);

/// All Services of one namespace; forwarding ends on drop.
pub struct Services {
    namespace: String,
    refusing_address: Ipv4Addr,
    addresses: watch::Receiver<Addresses>,
    ports: watch::Receiver<Ports>,
    slow: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Addresses by Service name.
type Addresses = BTreeMap<String, Ipv4Addr>;

/// The backends of each port of a Service.
type Ports = BTreeMap<SocketAddr, Vec<SocketAddr>>;

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("namespace", &self.namespace)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Services {
    /// Starts following the namespace; returns after the first lists.
    ///
    /// # Errors
    /// The API server cannot be reached or refuses to list Services, Pods or Endpoints.
    pub async fn follow(client: Client, instance: Arc<Instance>, namespace: &str) -> Result<Self> {
        let (sender, addresses) = watch::channel(Addresses::new());
        let (wanted, ports) = watch::channel(Ports::new());
        let (ready, is_ready) = oneshot::channel();
        let slow = Arc::new(AtomicBool::new(false));
        let refusing_address = instance.address(REFUSING_HOST);
        let proxy = Proxy {
            addresses: sender,
            wanted,
            ports: BTreeMap::new(),
            slow: Arc::clone(&slow),
        };
        let task = tokio::spawn(proxy.follow(client, namespace.to_owned(), ready));
        timeout(FIRST_LISTS, is_ready)
            .await
            .context("listing services, pods and endpoints took too long")??;
        Ok(Self {
            namespace: namespace.to_owned(),
            refusing_address,
            addresses,
            ports,
            slow,
            task,
        })
    }

    /// What one port of a Service leads to in the view of one node.
    fn view(&self, port: SocketAddr) -> View {
        View {
            port,
            ports: self.ports.clone(),
            slow: Arc::clone(&self.slow),
        }
    }

    /// With `slow`, a change of backends takes effect 0.3 to 1.1 s late, and for a second more new
    /// connections may reach a server of before or of after it.
    pub fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// The namespace whose Services these are.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The address that the cluster's DNS would return for a Service's `name`, `name.namespace`,
    /// `name.namespace.svc` or full name; None if there is no such Service.
    pub fn resolve(&self, host: &str) -> Option<IpAddr> {
        let name = service_name(host, &self.namespace)?;
        self.addresses
            .borrow()
            .get(name)
            .map(|address| IpAddr::V4(*address))
    }

    /// An address where every connection is refused, for names without a Service: a real resolver
    /// would send a query to the network.
    pub fn refusing_address(&self) -> IpAddr {
        self.refusing_address.into()
    }

    /// Waits until the Service can be resolved.
    ///
    /// # Errors
    /// The Service does not appear within `limit`.
    pub async fn wait_for(&self, host: &str, limit: Duration) -> Result<IpAddr> {
        let name = service_name(host, &self.namespace)
            .with_context(|| format!("{host} is no name of the namespace {}", self.namespace))?;
        let mut addresses = self.addresses.clone();
        let known = timeout(
            limit,
            addresses.wait_for(|addresses| addresses.contains_key(name)),
        )
        .await;
        known.with_context(|| format!("waiting for the service {host}"))??;
        self.resolve(host).context("the service went away at once")
    }
}

impl Services {
    /// The Service's address once it differs from `known`, as a resolver that asks repeatedly would
    /// see it.
    pub async fn address_changed(&self, host: &str, known: Option<IpAddr>) -> Option<IpAddr> {
        let mut addresses = self.addresses.clone();
        while self.resolve(host) == known {
            if addresses.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        self.resolve(host)
    }
}

/// The Service's name from the forms that a pod's resolver accepts.
fn service_name<'a>(host: &'a str, namespace: &str) -> Option<&'a str> {
    let (name, rest) = host
        .trim_end_matches('.')
        .split_once('.')
        .unwrap_or((host, ""));
    let accepted = [
        "".into(),
        namespace.to_owned(),
        format!("{namespace}.svc"),
        format!("{namespace}.svc.cluster.local"),
    ];
    accepted.iter().any(|form| form == rest).then_some(name)
}

/// A listener and its backends.
struct Port {
    backends: Backends,
    _forwarder: Forwarder,
}

/// One node's view of one port of a Service.
struct View {
    port: SocketAddr,
    ports: watch::Receiver<Ports>,
    slow: Arc<AtomicBool>,
}

impl View {
    /// Follows the port's backends until the Services end.
    async fn follow(mut self, mut backends: Backends) {
        loop {
            let wanted = self.ports.borrow_and_update().get(&self.port).cloned();
            backends.set(
                wanted.unwrap_or_default(),
                self.slow.load(Ordering::Relaxed),
            );
            if self.ports.changed().await.is_err() {
                return;
            }
        }
    }
}

struct Proxy {
    addresses: watch::Sender<Addresses>,
    /// What each port leads to, before any delay.
    wanted: watch::Sender<Ports>,
    ports: BTreeMap<SocketAddr, Port>,
    /// Whether changes of backends take effect late.
    slow: Arc<AtomicBool>,
}

impl Proxy {
    async fn follow(mut self, client: Client, namespace: String, ready: oneshot::Sender<()>) {
        let (cluster, mut changes) = Cluster::follow(&client, &namespace);
        let mut slices = Slices::new(&client, &namespace);
        let mut ready = Some(ready);
        while changes.next().await.is_some() {
            self.apply(&cluster);
            for service in cluster.services() {
                // The API server may be unreachable; the next change writes again.
                let _ = slices
                    .write(
                        &service.name_any(),
                        cluster.selected_by(&service).as_deref(),
                    )
                    .await;
            }
            if cluster.complete()
                && let Some(ready) = ready.take()
            {
                let _ = ready.send(());
            }
        }
    }

    fn apply(&mut self, cluster: &Cluster) {
        let mut addresses = Addresses::new();
        let mut wanted = BTreeMap::new();
        for service in &cluster.services() {
            let Some(address) = cluster_ip(service) else {
                continue;
            };
            addresses.insert(service.name_any(), address);
            for port in service
                .spec
                .iter()
                .flat_map(|spec| spec.ports.iter().flatten())
            {
                if let Ok(number) = u16::try_from(port.port) {
                    wanted.insert(
                        SocketAddr::from((address, number)),
                        cluster.backends(service, port),
                    );
                }
            }
        }
        self.wanted.send_replace(wanted.clone());
        let slow = self.slow.load(Ordering::Relaxed);
        self.ports.retain(|address, _| wanted.contains_key(address));
        for (address, backends) in wanted {
            let port = self.ports.entry(address).or_insert_with(|| {
                let (backends, receiver) = Backends::new();
                Port {
                    backends,
                    _forwarder: Forwarder::start(address, receiver),
                }
            });
            port.backends.set(backends, slow);
        }
        self.addresses.send_replace(addresses);
    }
}

/// Headless Services and aliases have no address.
fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    let spec = service.spec.as_ref()?;
    spec.cluster_ip.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_pod_can_resolve() {
        for host in [
            "db",
            "db.mastodon",
            "db.mastodon.svc",
            "db.mastodon.svc.cluster.local",
            "db.mastodon.svc.cluster.local.",
        ] {
            assert_eq!(service_name(host, "mastodon"), Some("db"), "{host}");
        }
        for host in ["db.other", "db.mastodon.example.org", "db.svc"] {
            assert_eq!(service_name(host, "mastodon"), None, "{host}");
        }
    }
}
