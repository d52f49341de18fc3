//! Imitates Kubernetes' EndpointSlice controller: it writes a slice for every Service with a
//! selector and leaves the slice behind when the selector is removed; kube-proxy keeps sending
//! traffic to it (docs/operators/cloudnative-pg.md).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::Result;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::instance::Instance;

const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label that names the Service of a slice.
pub(super) const SERVICE: &str = "kubernetes.io/service-name";

/// Writes the slices of one namespace.
pub(super) struct Slices {
    api: Api<EndpointSlice>,
    written: BTreeMap<String, BTreeSet<SocketAddr>>,
}

impl Slices {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            written: BTreeMap::new(),
        }
    }

    /// Updates a Service's slice. Without a selector the slice is neither written nor removed.
    pub(super) async fn write(
        &mut self,
        service: &str,
        selected: Option<&[SocketAddr]>,
    ) -> Result<()> {
        let Some(backends) = selected else {
            self.written.remove(service);
            return Ok(());
        };
        let backends: BTreeSet<SocketAddr> = backends.iter().copied().collect();
        if self.written.get(service) == Some(&backends) {
            return Ok(());
        }
        let endpoints: Vec<_> = backends
            .iter()
            .map(|backend| {
                json!({
                    "addresses": [kubernetes_address(backend.ip()).to_string()],
                    "conditions": {"ready": true}
                })
            })
            .collect();
        let port = backends.iter().next().map_or(5432, SocketAddr::port);
        let name = format!("{service}-slice");
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": name,
                "labels": {SERVICE: service, "endpointslice.kubernetes.io/managed-by": MANAGER}
            },
            "endpoints": endpoints,
            "ports": [{"name": "postgresql", "port": port, "protocol": "TCP"}],
        });
        let apply = PatchParams::apply(MANAGER).force();
        self.api.patch(&name, &apply, &Patch::Apply(slice)).await?;
        self.written.insert(service.to_owned(), backends);
        Ok(())
    }
}

/// The addresses in a slice.
pub(super) fn backends(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let port = slice
        .ports
        .iter()
        .flatten()
        .find_map(|port| u16::try_from(port.port?).ok());
    let ips = slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|endpoint| &endpoint.addresses);
    let real = ips
        .filter_map(|ip| ip.parse().ok())
        .map(Instance::loopback_address);
    real.map(|ip| SocketAddr::from((ip, port.unwrap_or(5432))))
        .collect()
}

/// Loopback addresses are refused in EndpointSlices.
fn kubernetes_address(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => Instance::kubernetes_address_of(ip),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
