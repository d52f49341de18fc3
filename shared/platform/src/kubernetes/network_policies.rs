//! NetworkPolicies of networking.k8s.io/v1. The policies of network plugins of their own, such as
//! CiliumNetworkPolicy, are not read.

use k8s_openapi::{api::networking::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams};
use protocol::network::{Policy, PolicySpec};
use serde::Deserialize;

use job::error::{Context as _, Result};

#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::NetworkPolicy")]
#[serde(default)]
struct NetworkPolicy {
    metadata: ObjectMeta,
    spec: PolicySpec,
}

/// The policies of a namespace.
///
/// # Errors
/// Those of the API server; Config when the Role does not allow to list them.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Policy>> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default()).await;
    let found = found.context("listing the NetworkPolicies")?;
    let policy = |policy: NetworkPolicy| Policy {
        name: policy.name_any(),
        spec: policy.spec,
    };
    Ok(found.items.into_iter().map(policy).collect())
}
