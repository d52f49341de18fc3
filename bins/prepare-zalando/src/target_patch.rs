//! What the user adds to the rendered Cluster: a JSON merge patch (RFC 7386) in YAML, in the
//! ConfigMap that TARGET_PATCH names, so that monitoring, backups or tolerations are said once and
//! stay when prepare-zalando renders the manifest again.

use job::{
    context::JobContext,
    error::{Error, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::{Map, Value};

use crate::{parameters::HOT_STANDBY, settings::Settings};

/// The key of the patch in its ConfigMap.
const KEY: &str = "target-patch.yaml";
/// The value of TARGET_PATCH that does not have to exist.
pub const DEFAULT: &str = "target-patch";
/// Fields that a patch must not change, and why.
#[rustfmt::skip]
const PROTECTED: &[(&[&str], &str)] = &[
    (&["apiVersion"], "the manifest is written for this version"),
    (&["kind"], "the patch is for the Cluster"),
    (&["metadata", "name"], "set TARGET_CLUSTER"),
    (&["metadata", "namespace"], "the target is in the source's namespace"),
    (&["metadata", "annotations", "cnpg.io/podPatch"], "without it the copy does not start"),
    (&["spec", "instances"], "scale after the cutover, or scale the Cluster when it streams"),
    (&["spec", "replica"], "the cutover changes it when nothing is missing"),
    (&["spec", "bootstrap"], "it is how the target is copied"),
    (&["spec", "externalClusters"], "it is how the target follows the source"),
    (&["spec", "enableSuperuserAccess"], "later steps log in as the superuser"),
    (&["spec", "superuserSecret"], "later steps log in as the superuser"),
    (&["status"], "CloudNativePG writes it"),
];
/// A list of these is replaced as a whole, and must repeat the lines that the manifest has there.
const PG_HBA: [&str; 3] = ["spec", "postgresql", "pg_hba"];
const PARAMETERS: [&str; 3] = ["spec", "postgresql", "parameters"];

/// The patch; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetPatch(Map<String, Value>);

/// Reads the patch. Without the ConfigMap of the default name there is none.
///
/// # Errors
/// Config where another ConfigMap is named and missing, and for a patch that is not one or that
/// changes what the migration needs.
pub async fn read(run: &JobContext, settings: &Settings) -> Result<TargetPatch> {
    let name = settings.target_patch.as_str();
    let maps: Api<ConfigMap> = Api::namespaced(run.client.clone(), &run.namespace);
    let Some(map) = kubernetes::get(&maps, name).await? else {
        if name == DEFAULT {
            return Ok(TargetPatch::default());
        }
        return Err(
            Error::config(format!("TARGET_PATCH: the ConfigMap {name} does not exist")).hint(
                format!("create it with the key {KEY}, or unset TARGET_PATCH"),
            ),
        );
    };
    let data = map.data.unwrap_or_default();
    let wrong = |reason: String| {
        Error::config(format!("TARGET_PATCH: configmap {name}, {KEY}: {reason}"))
            .hint("correct it, and run this step again; nothing was changed")
    };
    let Some(text) = data.get(KEY) else {
        let found: Vec<&str> = data.keys().map(String::as_str).collect();
        let found = found.join(", ");
        return Err(wrong(format!("there is no such key, only: {found}")));
    };
    let patch = text.parse().map_err(wrong)?;
    run.report.info(format!(
        "target patch: configmap {name} changes {}",
        TargetPatch::paths(&patch).join(", ")
    ));
    Ok(patch)
}

impl std::str::FromStr for TargetPatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed: Value = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        let patch = match parsed {
            Value::Object(patch) => Self(patch),
            Value::Null => Self::default(),
            _ => return Err("it is not a mapping of the Cluster's fields".into()),
        };
        patch.refuse_protected()?;
        Ok(patch)
    }
}

impl TargetPatch {
    /// The fields of the Cluster.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The fields that it changes, to two levels.
    fn paths(&self) -> Vec<String> {
        let below = |(key, value): (&String, &Value)| match value {
            Value::Object(fields) => fields
                .keys()
                .map(|field| format!("{key}.{field}"))
                .collect(),
            _ => vec![key.clone()],
        };
        self.0.iter().flat_map(below).collect()
    }

    fn refuse_protected(&self) -> Result<(), String> {
        let hot_standby = HOT_STANDBY.map(|name| {
            let path: Vec<&str> = PARAMETERS.into_iter().chain([name]).collect();
            (path, "a standby needs at least the source's value")
        });
        let fields = PROTECTED.iter().map(|(path, why)| (path.to_vec(), *why));
        for (path, why) in fields.chain(hot_standby) {
            if self.touches(&path) {
                return Err(format!("it must not change {}: {why}", path.join(".")));
            }
        }
        Ok(())
    }

    /// Whether the field or all of what it is in is changed.
    fn touches(&self, path: &[&str]) -> bool {
        let mut fields = &self.0;
        for key in path {
            match fields.get(*key) {
                None => return false,
                Some(Value::Object(below)) => fields = below,
                Some(_) => return true,
            }
        }
        true
    }

    /// Refuses a patch whose pg_hba lacks lines of the rendered one.
    ///
    /// # Errors
    /// The lines that are missing.
    pub fn keeps_pg_hba(&self, rendered: &Value) -> Result<(), String> {
        if !self.touches(&PG_HBA) {
            return Ok(());
        }
        let lines = |cluster: &Value| -> Vec<String> {
            let list = cluster.pointer("/spec/postgresql/pg_hba");
            let list = list.and_then(Value::as_array).cloned().unwrap_or_default();
            let texts = list.iter().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        let wanted = lines(&Value::Object(self.0.clone()));
        let missing: Vec<String> = lines(rendered)
            .into_iter()
            .filter(|line| !wanted.contains(line))
            .map(|line| format!("{line:?}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "spec.postgresql.pg_hba replaces the list of the manifest, and must repeat {}",
            missing.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_the_migration_needs_are_refused_by_name() {
        for (text, path) in [
            ("spec: {replica: {enabled: false}}", "spec.replica"),
            ("spec: {bootstrap: null}", "spec.bootstrap"),
            ("spec: {externalClusters: []}", "spec.externalClusters"),
            ("spec: {instances: 3}", "spec.instances"),
            (
                "metadata: {annotations: {cnpg.io/podPatch: '[]'}}",
                "podPatch",
            ),
            ("metadata: null", "metadata.name"),
            ("spec: null", "spec.instances"),
            ("metadata: {annotations: null}", "cnpg.io/podPatch"),
            (
                "spec: {postgresql: {parameters: {max_connections: '10'}}}",
                "max_connections",
            ),
            ("spec: {postgresql: {parameters: null}}", "max_connections"),
            ("kind: Pooler", "kind"),
        ] {
            let error = text.parse::<TargetPatch>().unwrap_err();
            assert!(
                error.contains("must not change") && error.contains(path),
                "{error}"
            );
        }
        for text in ["- a", "spec: [", "text"] {
            assert!(text.parse::<TargetPatch>().is_err(), "{text}");
        }
        let patch: TargetPatch = "spec: {affinity: {nodeSelector: {a: b}}, monitoring: {}}"
            .parse()
            .unwrap();
        assert_eq!(patch.paths(), ["spec.affinity", "spec.monitoring"]);
        assert_eq!("".parse(), Ok(TargetPatch::default()));
    }

    #[test]
    fn a_list_of_pg_hba_repeats_the_lines_of_the_manifest() {
        let rendered = json!({"spec": {"postgresql": {"pg_hba": ["hostssl a", "hostssl b"]}}});
        let keeps = |lines: &str| {
            let text = format!("spec: {{postgresql: {{pg_hba: {lines}}}}}");
            text.parse::<TargetPatch>().unwrap().keeps_pg_hba(&rendered)
        };
        assert_eq!(keeps("[hostssl c, hostssl a, hostssl b]"), Ok(()));
        let error = keeps("[hostssl b]").unwrap_err();
        assert!(error.contains("repeat \"hostssl a\""), "{error}");
        assert!(keeps("null").is_err());
        assert_eq!(TargetPatch::default().keeps_pg_hba(&rendered), Ok(()));
    }
}
