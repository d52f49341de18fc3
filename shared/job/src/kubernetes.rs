//! The Kubernetes API: the client, how we apply and patch, and the few fields of each resource that
//! are read or written.

use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Context as _, Error, Result, is_not_found};

/// The field manager of everything that the programs write.
pub const FIELD_MANAGER: &str = "replica-migration";

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
        // A 404 for the resource type itself ("the server could not find the requested resource")
        // is not a missing object.
        Err(error) if is_not_found(&error) && !is_unknown_type(&error) => Ok(None),
        Err(error) if is_unknown_type(&error) => Err(Error::config(format!(
            "the api server does not know the resource {}",
            K::plural(&())
        ))
        .hint("is the operator's CRD installed in this cluster?")),
        Err(error) => Err(error).context(format!("reading {} {name}", K::kind(&()))),
    }
}

/// Reads an object that a setting names.
///
/// # Errors
/// As [`get`]; Config with the setting to correct when the object does not exist.
pub async fn required<K>(api: &Api<K>, name: &str, setting: &str) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    get(api, name).await?.ok_or_else(|| {
        missing(api, name).hint(format!(
            "correct {setting} in the ConfigMap replica-migration"
        ))
    })
}

/// The error for an object that does not exist; the caller adds the hint.
pub fn missing<K: Resource<DynamicType = ()>>(api: &Api<K>, name: &str) -> Error {
    Error::config(format!(
        "the {} {name} does not exist in namespace {}",
        K::kind(&()),
        api.namespace().unwrap_or_default()
    ))
}

fn is_unknown_type(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.details.as_ref().is_none_or(|d| d.name.is_empty()))
}

/// Creates or updates an object that is ours, by server-side apply: the same call twice changes
/// nothing.
///
/// # Errors
/// The API's, with the object's kind and name.
pub async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    api.patch(
        name,
        &PatchParams::apply(FIELD_MANAGER).force(),
        &Patch::Apply(object),
    )
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
    api.patch(name, &by_us(), &Patch::Merge(&change))
        .await
        .context(format!("patching {} {name}", K::kind(&())))
}

/// Asks whether [`merge`] would be let through, by permissions, schema and admission webhooks;
/// nothing is kept (*Server-side dry run*).
///
/// # Errors
/// The API's. A webhook that takes part in no dry run is no error: nothing is known then.
pub async fn try_merge<K>(api: &Api<K>, name: &str, change: serde_json::Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams {
        dry_run: true,
        ..by_us()
    };
    match api.patch(name, &params, &Patch::Merge(&change)).await {
        Err(kube::Error::Api(status)) if status.message.contains("does not support dry run") => {
            Ok(())
        }
        tried => tried
            .map(drop)
            .context(format!("trying to patch {} {name}", K::kind(&()))),
    }
}

/// For a patch in the name of these programs.
pub fn by_us() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    }
}
