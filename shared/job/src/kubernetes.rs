//! Calls of the Kubernetes API: read, apply, patch, and try a patch. The errors of these functions
//! are the API's, with kind and name of the object in front.

use kube::{
    Api, Resource,
    api::{DynamicObject, Patch, PatchParams},
    core::Status,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Context as _, Error, ErrorKind, Result, is_not_found};

/// The field manager of all writes of these programs.
pub const FIELD_MANAGER: &str = "replica-migration";

/// Reads one object; None when it does not exist.
///
/// # Errors
/// Config when the API server does not know the resource type.
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

/// Reads an object that the setting `setting` names.
///
/// # Errors
/// Config when the object does not exist, with the setting to correct; as [`get`].
pub async fn required<K>(api: &Api<K>, name: &str, setting: &str) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    get(api, name).await?.ok_or_else(|| {
        missing_object(api, name).hint(format!(
            "correct {setting} in the ConfigMap replica-migration"
        ))
    })
}

/// The error for an object that does not exist; the caller adds the hint.
pub fn missing_object<K: Resource<DynamicType = ()>>(api: &Api<K>, name: &str) -> Error {
    Error::config(format!(
        "the {} {name} does not exist in namespace {}",
        K::kind(&()),
        api.namespace().unwrap_or_default()
    ))
}

fn is_unknown_type(error: &kube::Error) -> bool {
    let names_no_object = |status: &Status| {
        let details = status.details.as_ref();
        details.is_none_or(|details| details.name.is_empty())
    };
    matches!(error, kube::Error::Api(status) if status.code == 404 && names_no_object(status))
}

/// Creates or updates an object of these programs by server-side apply. Repeating a call changes
/// nothing.
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

/// Changes single fields of an object that another program manages, by a JSON merge patch.
pub async fn merge<K>(api: &Api<K>, name: &str, change: serde_json::Value) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    api.patch(name, &patch_params(), &Patch::Merge(&change))
        .await
        .context(format!("patching {} {name}", K::kind(&())))
}

/// Asks the API server whether it would accept [`merge`]: permissions, schema and admission
/// webhooks are checked, nothing is stored (Kubernetes documentation, *Server-side dry-run*).
///
/// # Errors
/// The API server would refuse the patch. A webhook that does not support dry runs is not an error:
/// whether it would accept the patch is then unknown.
pub async fn try_merge<K>(api: &Api<K>, name: &str, change: serde_json::Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let params = PatchParams {
        dry_run: true,
        ..patch_params()
    };
    accepted(api.patch(name, &params, &Patch::Merge(&change)).await)
        .context(format!("trying to patch {} {name}", K::kind(&())))
}

/// Asks the API server whether it would accept this object by server-side apply, whether it exists
/// or not, as [`try_merge`] does.
///
/// # Errors
/// The API server would refuse the object.
pub async fn try_apply(api: &Api<DynamicObject>, name: &str, object: &DynamicObject) -> Result<()> {
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply(FIELD_MANAGER).force()
    };
    let tried = accepted(api.patch(name, &params, &Patch::Apply(object)).await);
    tried
        .map_err(|error| {
            // A value of another type than the schema's gets the status 500.
            let mistyped = error
                .to_string()
                .contains("failed to create typed patch object");
            let error = Error::from(error);
            if mistyped {
                error.of_kind(ErrorKind::Refused)
            } else {
                error
            }
        })
        .context(format!("trying to apply {name}"))
}

/// Whether a dry run was accepted; yes where a webhook does not support one.
fn accepted<K>(tried: kube::Result<K>) -> kube::Result<()> {
    match tried {
        Err(kube::Error::Api(status)) if status.message.contains("does not support dry run") => {
            Ok(())
        }
        tried => tried.map(drop),
    }
}

/// Parameters of a patch by [`FIELD_MANAGER`].
pub fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    }
}
