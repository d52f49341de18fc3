//! Names of client sessions by which an operator finds them: pod, role and application name.

use std::collections::BTreeMap;

use job::pods::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use protocol::snapshot::source::ClientSession;

/// Pods by their address, read again when an address is unknown.
#[derive(Default)]
pub struct Pods(BTreeMap<String, String>);

impl Pods {
    /// `pod role application` of each session; an address that no pod of the namespace has stands
    /// for itself.
    pub async fn named(
        &mut self,
        client: &Client,
        namespace: &str,
        sessions: &[ClientSession],
    ) -> Vec<String> {
        let unknown = |session: &ClientSession| {
            session
                .address
                .as_ref()
                .is_some_and(|address| !self.0.contains_key(address))
        };
        if sessions.iter().any(unknown) {
            self.read(client, namespace, sessions).await;
        }
        sessions.iter().map(|session| self.name(session)).collect()
    }

    async fn read(&mut self, client: &Client, namespace: &str, sessions: &[ClientSession]) {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        // The names are optional: without them the addresses are reported.
        if let Ok(list) = api.list(&ListParams::default()).await {
            let address = |pod: &Pod| Some((pod.status.pod_ip.clone()?, pod.name_any()));
            self.0.extend(list.iter().filter_map(address));
        }
        for address in sessions
            .iter()
            .filter_map(|session| session.address.clone())
        {
            self.0.entry(address.clone()).or_insert(address);
        }
    }

    fn name(&self, session: &ClientSession) -> String {
        let address = session.address.as_deref().unwrap_or("local");
        let pod = self.0.get(address).map_or(address, String::as_str);
        format!("{pod} {} {}", session.role, session.application_name)
    }
}
