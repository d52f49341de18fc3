//! Addresses for Service names that do not exist yet when a pod starts.
//!
//! In a cluster a program resolves a name at each attempt and finds a Service that is created
//! later. Here it gets one fixed address: connections to it are refused until the Service exists,
//! and forwarded to the Service from then on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    instance::Instance,
    service::{Services, forwarder::Forwarder},
};

/// Host numbers in the instance's network for such names.
const HOSTS: std::ops::RangeInclusive<u8> = 200..=239;

/// A host name and a port.
type HostPort = (String, u16);

/// The addresses assigned so far; forwarding ends on drop.
#[derive(Default)]
pub(super) struct PendingServices(Mutex<BTreeMap<HostPort, Placeholder>>);

struct Placeholder {
    address: IpAddr,
    task: JoinHandle<()>,
}

impl PendingServices {
    /// The address of the Service, or one that forwards to it later.
    pub(super) fn address(
        &self,
        services: &Arc<Services>,
        instance: &Instance,
        host: &str,
        port: u16,
    ) -> Result<IpAddr> {
        if let Some(known) = services.resolve(host) {
            return Ok(known);
        }
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let host_port = (host.to_owned(), port);
        if let Some(given) = given.get(&host_port) {
            return Ok(given.address);
        }
        let number = HOSTS
            .clone()
            .nth(given.len())
            .context("too many names without a Service")?;
        let address = IpAddr::from(instance.address(number));
        let task = tokio::spawn(forward(
            Arc::clone(services),
            host.to_owned(),
            SocketAddr::new(address, port),
        ));
        given.insert(host_port, Placeholder { address, task });
        Ok(address)
    }
}

impl Drop for PendingServices {
    fn drop(&mut self) {
        let given = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        given.values().for_each(|given| given.task.abort());
    }
}

async fn forward(services: Arc<Services>, host: String, from: SocketAddr) {
    let (sender, backends) = watch::channel(Vec::new());
    let _forwarder = Forwarder::start(from, backends);
    // A name outside of the namespace never gets a Service: connections stay refused.
    let mut known = None;
    loop {
        known = services.address_changed(&host, known).await;
        sender.send_replace(
            known
                .iter()
                .map(|service| SocketAddr::new(*service, from.port()))
                .collect(),
        );
    }
}
