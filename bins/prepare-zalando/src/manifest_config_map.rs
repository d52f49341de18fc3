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

/// The commands that hand the manifest over: as a file, so that it is read before it is applied,
/// and with its digest, so that it is the text of this program.
pub fn commands(namespace: &str, settings: &Settings, text: &str) -> Vec<String> {
    let (map, file) = (settings.manifest_map(), settings.manifest_key());
    let key = file.replace('.', "\\.");
    let digest = manifest::digest(text);
    vec![
        format!(
            "kubectl get configmap {map} -n {namespace} -o jsonpath='{{.data.{key}}}' > {file}"
        ),
        format!("echo '{digest}  {file}' | sha256sum --check"),
        format!("kubectl diff -n {namespace} -f {file}; kubectl apply -n {namespace} -f {file}"),
    ]
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
    fn the_commands_save_compare_and_apply_one_file() {
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(
            commands("mastodon", &fixture::settings(), "hello"),
            [
                "kubectl get configmap database-cluster-replica -n mastodon -o \
                 jsonpath='{.data.database-cluster-replica\\.yaml}' > \
                 database-cluster-replica.yaml"
                    .to_owned(),
                format!("echo '{digest}  database-cluster-replica.yaml' | sha256sum --check"),
                "kubectl diff -n mastodon -f database-cluster-replica.yaml; kubectl apply -n \
                 mastodon -f database-cluster-replica.yaml"
                    .to_owned(),
            ]
        );
    }
}
