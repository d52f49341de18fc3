//! Asks the API server whether it would accept the manifest, before anything is made: schema,
//! policies and CloudNativePG's own webhook are asked by a server-side dry run (Kubernetes
//! documentation, *Dry-run*).

use job::{
    context::JobContext,
    error::{Context as _, Error, ErrorKind, Result},
    kubernetes,
};
use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use serde::Deserialize as _;

/// Sends every object of the manifest as a dry run.
///
/// # Errors
/// Refused where the API server refuses one of them; else those of the API.
pub async fn admitted(run: &JobContext, manifest: &str) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(manifest) {
        let object = DynamicObject::deserialize(document)
            .map_err(|error| Error::transient("reading the manifest").caused_by(error))?;
        try_object(run, &object).await?;
    }
    run.report
        .info("a dry run shows that the API server accepts the manifest");
    Ok(())
}

async fn try_object(run: &JobContext, object: &DynamicObject) -> Result<()> {
    let types = object.types.clone().unwrap_or_default();
    let name = object.metadata.name.clone().unwrap_or_default();
    let (group, version) = types.api_version.split_once('/').unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
    let api: Api<DynamicObject> =
        Api::namespaced_with(run.client.clone(), &run.namespace, &resource);
    let tried = kubernetes::try_apply(&api, &name, object).await;
    let kind = types.kind.to_lowercase();
    tried
        .context(format!("the manifest, {kind}"))
        .map_err(|error| match error.kind() {
            ErrorKind::Refused => error.hint(
                "change what the API server names, in TARGET_PATCH or the settings of \
                 prepare-zalando; nothing was changed",
            ),
            _ => error,
        })
}
