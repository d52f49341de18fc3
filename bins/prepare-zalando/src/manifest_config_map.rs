//! Stores the manifest in a ConfigMap, from which the user applies it.

use job::{context::JobContext, error::Result, kubernetes};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use platform::kubernetes::manifest;

use crate::{secrets::Outcome, settings::Settings};

/// What [`write()`] would do.
pub async fn compare(run: &JobContext, settings: &Settings, text: &str) -> Result<Outcome> {
    let found = kubernetes::get(&maps(run), &settings.manifest_map()).await?;
    Ok(compared(found.as_ref(), settings, text))
}

/// Creates or changes the ConfigMap, unless it holds this text and the digest of it.
pub async fn write(run: &JobContext, settings: &Settings, text: &str) -> Result<Outcome> {
    let outcome = compare(run, settings, text).await?;
    if outcome != Outcome::Unchanged {
        let map = manifest::config_map(&settings.target_cluster, text);
        kubernetes::apply(&maps(run), &settings.manifest_map(), &map).await?;
    }
    Ok(outcome)
}

/// The command that applies the manifest.
pub fn apply_command(namespace: &str, settings: &Settings) -> String {
    let key = settings.manifest_key().replace('.', "\\.");
    format!(
        "kubectl get configmap {} -n {namespace} -o jsonpath='{{.data.{key}}}' | kubectl apply -f \
         -",
        settings.manifest_map()
    )
}

fn maps(run: &JobContext) -> Api<ConfigMap> {
    Api::namespaced(run.client.clone(), &run.namespace)
}

fn compared(found: Option<&ConfigMap>, settings: &Settings, text: &str) -> Outcome {
    match found {
        None => Outcome::Created,
        Some(map) if manifest::holds(map, &settings.target_cluster, text) => Outcome::Unchanged,
        Some(_) => Outcome::Changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_command_escapes_the_dot_of_the_key_for_jsonpath() {
        assert_eq!(
            apply_command("mastodon", &fixture::settings()),
            "kubectl get configmap database-cluster-replica -n mastodon -o \
             jsonpath='{.data.database-cluster-replica\\.yaml}' | kubectl apply -f -"
        );
    }
}
