//! The Kubernetes API: the client, how we apply and patch, and the few fields of each resource that are read or written.

pub mod cnpg;
pub mod patroni;
pub mod poolers;
pub mod services;
pub mod source_tls;
pub mod workloads;
pub mod zalando;

use std::time::Duration;

use kube::{
    Api, Client, Config, Resource,
    api::{Patch, PatchParams},
    config::KubeConfigOptions,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Context as _, Error, Result, is_not_found};

/// The field manager of everything that the programs write.
pub const FIELD_MANAGER: &str = "replica-migration";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No call of ours is a watch that stays quiet for longer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A client as this Job's ServiceAccount, and the namespace that the Job runs in.
///
/// # Errors
/// Config when there is neither a kubeconfig nor a mounted ServiceAccount.
pub async fn client() -> Result<(Client, String)> {
    let unusable = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Error::config("finding the kubernetes api")
            .caused_by(cause)
            .hint("run this as a Job of manifests/, or set KUBECONFIG")
    };
    let mut config = match std::env::var_os("KUBECONFIG") {
        Some(_) => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|e| unusable(e.into()))?,
        None => Config::infer().await.map_err(|e| unusable(e.into()))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config)?, namespace))
}

/// Reads one object; None when it does not exist.
///
/// # Errors
/// The API's, with the object's kind and name.
pub async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        // A 404 for the resource type itself ("the server could not find the requested resource") is not a missing object.
        Err(error) if is_not_found(&error) && !is_unknown_type(&error) => Ok(None),
        Err(error) if is_unknown_type(&error) => Err(Error::config(format!(
            "the api server does not know the resource {}",
            K::plural(&())
        ))
        .hint("is the operator's CRD installed in this cluster?")),
        Err(error) => Err(error).context(format!("reading {} {name}", K::kind(&()))),
    }
}

fn is_unknown_type(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.details.as_ref().is_none_or(|d| d.name.is_empty()))
}

/// Creates or updates an object that is ours, by server-side apply: the same call twice changes nothing.
///
/// # Errors
/// The API's, with the object's kind and name.
pub async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))
        .await
        .context(format!("applying {} {name}", K::kind(&())))
}

/// Changes single fields of somebody else's object by a JSON merge patch.
///
/// # Errors
/// The API's, with the object's kind and name.
pub async fn merge<K>(api: &Api<K>, name: &str, change: serde_json::Value) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(&change))
        .await
        .context(format!("patching {} {name}", K::kind(&())))
}
