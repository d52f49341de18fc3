//! Who still names the source: its Services, or Secrets that go with it.

use serde_json::Value;

/// The names that go with the source.
pub struct Names {
    cluster: String,
    namespace: String,
}

/// Something that a deletion would take away from somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// Where it stands: `.spec.template.spec.containers[0].env[1].value`.
    pub path: String,
    /// The host or Secret.
    pub name: String,
}

/// Of the leader, of the standbys, of Patroni, and of the poolers (facts of the Zalando operator,
/// Services).
const SERVICES: [&str; 5] = ["", "-repl", "-config", "-pooler", "-pooler-repl"];
/// The operator's default of secret_name_template.
const SECRET: &str = "credentials.postgresql.acid.zalan.do";

impl Names {
    pub fn new(cluster: &str, namespace: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// The Services' names.
    pub fn services(&self) -> [String; 5] {
        SERVICES.map(|suffix| format!("{}{suffix}", self.cluster))
    }

    /// The host or Secret that a word is, if it is one that goes.
    fn goes(&self, word: &str) -> Option<String> {
        let secret = format!(".{}.{SECRET}", self.cluster);
        if word.ends_with(&secret) {
            return Some(word.to_owned());
        }
        let (name, rest) = word.split_once('.').unwrap_or((word, ""));
        let namespace = rest.split('.').next().unwrap_or_default();
        let here = rest.is_empty() || namespace == self.namespace;
        (here && self.services().iter().any(|service| service == name)).then(|| name.to_owned())
    }

    /// All mentions in a part of an object.
    pub fn in_object(&self, object: &Value) -> Vec<Mention> {
        let mut found = Vec::new();
        self.look(object, String::new(), &mut found);
        found
    }

    fn look(&self, value: &Value, path: String, found: &mut Vec<Mention>) {
        match value {
            Value::String(text) => {
                // A host stands in an address, in a list, in a URL, or alone.
                let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || ".-_".contains(c)));
                let names = words.filter_map(|word| self.goes(word.trim_end_matches('.')));
                let mut names: Vec<String> = names.collect();
                names.dedup();
                found.extend(names.into_iter().map(|name| Mention {
                    path: path.clone(),
                    name,
                }));
            }
            Value::Array(list) => {
                for (index, inner) in list.iter().enumerate() {
                    self.look(inner, format!("{path}[{index}]"), found);
                }
            }
            Value::Object(fields) => {
                for (key, inner) in fields {
                    self.look(inner, format!("{path}.{key}"), found);
                }
            }
            _ => {}
        }
    }
}

/// What the Cluster needed for its beginning, and does not use any more after the cut.
pub fn is_history(mention: &Mention) -> bool {
    [".externalClusters", ".bootstrap", ".replica"]
        .iter()
        .any(|part| mention.path.starts_with(part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(object: &Value) -> Vec<(String, String)> {
        let mentions = Names::new("pg", "shop").in_object(object);
        mentions
            .into_iter()
            .map(|mention| (mention.path, mention.name))
            .collect()
    }

    #[test]
    fn hosts_are_found_in_every_form_and_only_whole() {
        let object = json!({"data": {
            "A": "pg-pooler", "B": "postgres://u:p@pg.shop.svc:5432/db?x=1", "C": "pg-repl.shop.svc.cluster.local.,other",
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
    fn secrets_of_the_operator_are_found_where_a_pod_or_a_cluster_takes_them() {
        let name = "shop.pg.credentials.postgresql.acid.zalan.do";
        let object = json!({"env": [{"valueFrom": {"secretKeyRef": {"name": name}}}], "other": "shop.pg2.credentials.postgresql.acid.zalan.do"});
        assert_eq!(
            found(&object),
            [(
                ".env[0].valueFrom.secretKeyRef.name".to_owned(),
                name.to_owned()
            )]
        );
    }

    #[test]
    fn what_only_the_beginning_needed_is_history() {
        let at = |path: &str| Mention {
            path: path.into(),
            name: "pg".into(),
        };
        assert!(is_history(&at(".externalClusters[0].password.name")));
        assert!(!is_history(&at(".superuserSecret.name")));
    }
}
