//! Keeps the manifest in a ConfigMap, from which the operator of the migration applies it.

use job::{context::Run, error::Result, kubernetes};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ObjectMeta};
use protocol::record::labels;

use crate::{secrets::Written, settings::Settings};

/// Says what [`write`] would do.
///
/// # Errors
/// The API's.
pub async fn compare(run: &Run, settings: &Settings, text: &str) -> Result<Written> {
    let found = kubernetes::get(&maps(run), &settings.manifest_map()).await?;
    Ok(judge(found.as_ref(), settings, text))
}

/// Makes sure that the ConfigMap holds this text.
///
/// # Errors
/// The API's.
pub async fn write(run: &Run, settings: &Settings, text: &str) -> Result<Written> {
    let written = compare(run, settings, text).await?;
    if written != Written::Unchanged {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(settings.manifest_map()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some([(settings.manifest_key(), text.to_owned())].into()),
            ..ConfigMap::default()
        };
        kubernetes::apply(&maps(run), &settings.manifest_map(), &map).await?;
    }
    Ok(written)
}

/// The command that applies it.
pub fn next_command(namespace: &str, settings: &Settings) -> String {
    let key = settings.manifest_key().replace('.', "\\.");
    format!(
        "kubectl get configmap {} -n {namespace} -o jsonpath='{{.data.{key}}}' | kubectl apply -f \
         -",
        settings.manifest_map()
    )
}

fn maps(run: &Run) -> Api<ConfigMap> {
    Api::namespaced(run.client.clone(), &run.namespace)
}

fn judge(found: Option<&ConfigMap>, settings: &Settings, text: &str) -> Written {
    match found.map(|map| {
        map.data
            .as_ref()
            .and_then(|data| data.get(&settings.manifest_key()))
    }) {
        None => Written::Created,
        Some(Some(held)) if held == text => Written::Unchanged,
        Some(_) => Written::Changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn the_dot_of_the_key_is_escaped_for_jsonpath() {
        assert_eq!(
            next_command("mastodon", &example::settings()),
            r"kubectl get configmap database-cluster-replica -n mastodon -o jsonpath='{.data.database-cluster-replica\.yaml}' | kubectl apply -f -"
        );
    }
}
