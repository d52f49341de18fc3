//! The ConfigMap that holds the rendered manifest of the target, with the SHA-256 of its text. What
//! a text means, and what becomes of it after the promotion, is in [`protocol::manifest`].

use job::{
    error::{Context as _, Error, Result, is_conflict},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ObjectMeta, Patch},
};
use openssl::sha::sha256;
use protocol::{
    manifest::{self, SHA256_ANNOTATION},
    record::labels,
    snapshot::kubernetes::StoredManifest,
};
use serde_json::{Value, json};

use crate::hex;

/// The ConfigMap with this text, as one of these programs writes it.
pub fn config_map(target: &str, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(manifest::map_name(target)),
            labels: Some(labels()),
            annotations: Some([(SHA256_ANNOTATION.to_owned(), digest(text))].into()),
            ..ObjectMeta::default()
        },
        data: Some([(manifest::key(target), text.to_owned())].into()),
        ..ConfigMap::default()
    }
}

/// Whether a ConfigMap holds this text, and the digest of it.
pub fn holds(map: &ConfigMap, target: &str, text: &str) -> bool {
    stored(map, target) == Some(text) && is_untouched(map, target)
}

/// Reads what is stored for this target.
pub async fn read(client: &Client, namespace: &str, target: &str) -> Result<StoredManifest> {
    let found = kubernetes::get(&maps(client, namespace), &manifest::map_name(target)).await?;
    Ok(judge(found.as_ref(), target))
}

/// Sets `spec.replica.enabled: false` in the stored text. A text that is not to be rewritten stays.
///
/// # Errors
/// Transient when it has been changed since it was read.
pub async fn rewrite(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps = maps(client, namespace);
    let Some(change) = change(&maps, target).await? else {
        return Ok(());
    };
    let name = manifest::map_name(target);
    match maps
        .patch(&name, &kubernetes::patch_params(), &Patch::Merge(change))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Err(Error::transient(format!(
            "the ConfigMap {name} has just been changed"
        ))),
        Err(error) => Err(error).context(format!("rewriting the ConfigMap {name}")),
    }
}

/// Asks the API server whether it would accept [`rewrite`]; nothing changes.
pub async fn try_rewrite(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps = maps(client, namespace);
    match change(&maps, target).await? {
        Some(change) => kubernetes::try_merge(&maps, &manifest::map_name(target), change).await,
        None => Ok(()),
    }
}

/// The merge patch that rewrites the text, if the ConfigMap is still as it was read; None where
/// there is nothing to rewrite.
async fn change(maps: &Api<ConfigMap>, target: &str) -> Result<Option<Value>> {
    let found = kubernetes::get(maps, &manifest::map_name(target)).await?;
    if judge(found.as_ref(), target) != StoredManifest::Follows {
        return Ok(None);
    }
    let text = found.as_ref().and_then(|map| stored(map, target));
    Ok(text.and_then(manifest::promoted).map(|text| {
        json!({
            "metadata": {
                "annotations": {SHA256_ANNOTATION: digest(&text)},
                "resourceVersion": found.as_ref().and_then(ConfigMap::resource_version),
            },
            "data": {manifest::key(target): text},
        })
    }))
}

fn maps(client: &Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), namespace)
}

fn judge(map: Option<&ConfigMap>, target: &str) -> StoredManifest {
    let text = map.and_then(|map| stored(map, target));
    manifest::judge(text, map.is_some_and(|map| is_untouched(map, target)))
}

fn stored<'a>(map: &'a ConfigMap, target: &str) -> Option<&'a str> {
    let data = map.data.as_ref()?;
    data.get(&manifest::key(target)).map(String::as_str)
}

/// The text is the one that its writer has noted the digest of.
fn is_untouched(map: &ConfigMap, target: &str) -> bool {
    let noted = map.annotations().get(SHA256_ANNOTATION);
    noted.is_some() && noted == stored(map, target).map(digest).as_ref()
}

/// The SHA-256 of a text, in hexadecimal digits.
pub fn digest(text: &str) -> String {
    hex::encode(&sha256(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "spec:\n  replica:\n    enabled: true\n";

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        assert_eq!(
            digest("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_map_is_untouched_until_its_text_is_edited() {
        let mut map = config_map("database", TEXT);
        assert_eq!(map.name_any(), "database-cluster-replica");
        assert!(holds(&map, "database", TEXT));
        assert_eq!(judge(Some(&map), "database"), StoredManifest::Follows);
        let edited = TEXT.replace("spec:", "# mine\nspec:");
        map.data = Some([(manifest::key("database"), edited.clone())].into());
        assert!(!holds(&map, "database", &edited));
        assert_eq!(judge(Some(&map), "database"), StoredManifest::Edited);
        // As version 0.1 wrote it.
        let mut map = config_map("database", TEXT);
        map.metadata.annotations = None;
        assert!(!holds(&map, "database", TEXT));
        assert_eq!(judge(Some(&map), "database"), StoredManifest::Edited);
        assert_eq!(judge(None, "database"), StoredManifest::Missing);
    }
}
