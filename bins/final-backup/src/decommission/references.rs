//! Finds references to the source in Kubernetes objects: to its Services, and to the Secrets that
//! are deleted with it.

use serde_json::Value;

/// The names that are deleted with the source.
pub struct SourceNames {
    cluster: String,
    namespace: String,
}

/// A reference to a Service or Secret that is deleted with the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Path in the object: `.spec.template.spec.containers[0].env[1].value`.
    pub path: String,
    /// The host or Secret.
    pub name: String,
}

/// Suffixes of the Zalando operator's Services: of the leader, of the standbys, of Patroni, and of
/// the poolers (docs/operators/zalando.md).
const SERVICES: [&str; 5] = ["", "-repl", "-config", "-pooler", "-pooler-repl"];
/// End of a Secret's name by the operator's default secret_name_template.
const SECRET: &str = "credentials.postgresql.acid.zalan.do";

impl SourceNames {
    /// The names of a cluster in a namespace.
    pub fn new(cluster: &str, namespace: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// Names of the Services.
    pub fn services(&self) -> [String; 5] {
        SERVICES.map(|suffix| format!("{}{suffix}", self.cluster))
    }

    /// The host or Secret that a word names, if it is deleted with the source.
    fn referenced(&self, word: &str) -> Option<String> {
        let secret = format!(".{}.{SECRET}", self.cluster);
        if word.ends_with(&secret) {
            return Some(word.to_owned());
        }
        let (name, rest) = word.split_once('.').unwrap_or((word, ""));
        let namespace = rest.split('.').next().unwrap_or_default();
        let same_namespace = rest.is_empty() || namespace == self.namespace;
        (same_namespace && self.services().iter().any(|service| service == name))
            .then(|| name.to_owned())
    }

    /// All references in a part of an object.
    pub fn find_in(&self, object: &Value) -> Vec<Reference> {
        let mut found = Vec::new();
        self.search(object, String::new(), &mut found);
        found
    }

    fn search(&self, value: &Value, path: String, found: &mut Vec<Reference>) {
        match value {
            Value::String(text) => {
                // A host may be in an address, in a list, in a URL, or the whole text.
                let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || ".-_".contains(c)));
                let names = words.filter_map(|word| self.referenced(word.trim_end_matches('.')));
                let mut names: Vec<String> = names.collect();
                names.dedup();
                found.extend(names.into_iter().map(|name| Reference {
                    path: path.clone(),
                    name,
                }));
            }
            Value::Array(list) => {
                for (index, inner) in list.iter().enumerate() {
                    self.search(inner, format!("{path}[{index}]"), found);
                }
            }
            Value::Object(fields) => {
                for (key, inner) in fields {
                    self.search(inner, format!("{path}.{key}"), found);
                }
            }
            _ => {}
        }
    }
}

/// Whether the Cluster needed the reference only for its bootstrap and replication, and does not
/// use it after the cutover.
pub fn is_bootstrap_only(reference: &Reference) -> bool {
    [".externalClusters", ".bootstrap", ".replica"]
        .iter()
        .any(|part| reference.path.starts_with(part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(object: &Value) -> Vec<(String, String)> {
        let references = SourceNames::new("pg", "shop").find_in(object);
        references
            .into_iter()
            .map(|reference| (reference.path, reference.name))
            .collect()
    }

    #[test]
    fn hosts_are_found_in_every_form_but_only_as_whole_names() {
        let object = json!({"data": {
            "A": "pg-pooler",
            "B": "postgres://u:p@pg.shop.svc:5432/db?x=1",
            "C": "pg-repl.shop.svc.cluster.local.,other",
            "no": ["pg-2", "my-pg", "pg.other.svc", "spg", "pg_x", "http://pg-poolers"],
        }});
        let wanted = [
            (".data.A", "pg-pooler"),
            (".data.B", "pg"),
            (".data.C", "pg-repl"),
        ];
        assert_eq!(
            found(&object),
            wanted.map(|(path, name)| (path.to_owned(), name.to_owned()))
        );
    }

    #[test]
    fn references_to_secrets_of_the_operator_are_found() {
        let name = "shop.pg.credentials.postgresql.acid.zalan.do";
        let object = json!({
            "env": [{"valueFrom": {"secretKeyRef": {"name": name}}}],
            "other": "shop.pg2.credentials.postgresql.acid.zalan.do",
        });
        assert_eq!(
            found(&object),
            [(
                ".env[0].valueFrom.secretKeyRef.name".to_owned(),
                name.to_owned()
            )]
        );
    }

    #[test]
    fn external_clusters_are_needed_only_for_the_bootstrap() {
        let at = |path: &str| Reference {
            path: path.into(),
            name: "pg".into(),
        };
        assert!(is_bootstrap_only(&at(".externalClusters[0].password.name")));
        assert!(!is_bootstrap_only(&at(".superuserSecret.name")));
    }
}
