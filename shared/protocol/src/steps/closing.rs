//! The last lines of a finished cutover: what must be changed where manifests are kept, before a
//! GitOps controller or a person applies them again.

use std::collections::BTreeMap;

use crate::{record::Record, snapshot::kubernetes::StoredManifest};

/// The lines. `target`: the Cluster; `config`: the keys and values of the application's ConfigMap
/// after the cutover.
pub fn closing(record: &Record, target: &str, config: &BTreeMap<String, String>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(manifest) = &record.manifest
        && manifest.found == StoredManifest::Edited
    {
        let map = &manifest.config_map;
        lines.push(format!(
            "the ConfigMap {map} still holds a manifest that was edited by hand: set \
             spec.replica.enabled: false in it, or delete it"
        ));
    }
    let managed = record.started.iter().flat_map(|start| &start.managed);
    let mut applied = false;
    for one in managed {
        let (object, by) = (&one.object, &one.by);
        let wanted = match object.kind.as_str() {
            "Cluster" => {
                applied = true;
                format!(
                    "spec.replica.enabled: false in {object}, which would otherwise become a \
                     standby again"
                )
            }
            _ => {
                let values = config.iter().map(|(key, value)| format!("{key}={value}"));
                let values: Vec<String> = values.collect();
                format!("{} in {object}", values.join(", "))
            }
        };
        lines.push(format!(
            "before the next sync of {by}, set in git: {wanted}"
        ));
    }
    if !applied {
        lines.push(format!(
            "wherever the manifest of Cluster {target} is kept, set spec.replica.enabled: false \
             before it is applied again: it would otherwise become a standby again"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controllers::{owners::GitOpsManaged, suspension::Object},
        record::tests::complete,
    };

    fn lines(record: &Record) -> Vec<String> {
        let config = BTreeMap::from([
            ("DB_HOST".to_owned(), "database-rw".to_owned()),
            ("DB_PORT".to_owned(), "5432".to_owned()),
        ]);
        closing(record, "database", &config)
    }

    #[test]
    fn what_is_applied_from_git_is_named_with_what_must_be_there() {
        let mut record = complete();
        let map = Object::of("", "v1", "ConfigMap", "configmaps", "settings");
        record
            .started
            .as_mut()
            .unwrap()
            .managed
            .push(GitOpsManaged {
                object: map,
                by: "Kustomization flux-system/apps".into(),
            });
        assert_eq!(
            lines(&record),
            [
                "before the next sync of Application argocd/shop, set in git: \
                 spec.replica.enabled: false in Cluster database, which would otherwise become a \
                 standby again",
                "before the next sync of Kustomization flux-system/apps, set in git: \
                 DB_HOST=database-rw, DB_PORT=5432 in ConfigMap settings",
            ]
        );
    }

    #[test]
    fn a_manifest_that_leaves_no_trace_is_remembered_too() {
        let mut record = complete();
        record.started.as_mut().unwrap().managed.clear();
        let kept = lines(&record);
        assert!(kept[0].starts_with("wherever the manifest of Cluster database is kept"));
        record.manifest.as_mut().unwrap().found = StoredManifest::Edited;
        let edited = lines(&record);
        assert!(
            edited[0].starts_with("the ConfigMap database-cluster-replica still holds"),
            "{edited:?}"
        );
        assert_eq!(edited[1..], kept);
    }
}
