//! Names that no Service has yet when a pod asks for them.
//!
//! A program resolves a name again at each attempt, so in a cluster a Service that is made later is
//! found. Here it is given an address once: one where connections are refused until the Service is
//! there, and that leads to it from then on.

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

/// Host numbers in the instance's network that stand for such names.
const HOSTS: std::ops::RangeInclusive<u8> = 200..=239;

/// A name and a port.
type HostPort = (String, u16);

/// The addresses given so far; they lead nowhere any more when this is dropped.
#[derive(Default)]
pub(super) struct PendingServices(Mutex<BTreeMap<HostPort, Placeholder>>);

struct Placeholder {
    address: IpAddr,
    task: JoinHandle<()>,
}

impl PendingServices {
    /// The address of the Service, or one that will lead to it.
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
            .context("too many names that no Service has")?;
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
    // A name outside of the namespace never gets a Service: refused for ever.
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
