//! The two Poolers, as much like the operator's own as CloudNativePG allows.

use crate::{facts::Facts, settings::Settings, yaml::Yaml};

pub(super) fn both(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    pooler(yaml, facts, settings, &settings.pooler_rw(), "rw");
    pooler(yaml, facts, settings, &settings.pooler_ro(), "r");
}

fn pooler(yaml: &mut Yaml, facts: &Facts, settings: &Settings, name: &str, kind: &str) {
    let pooler = &facts.resource.pooler;
    yaml.line(0, "---");
    yaml.line(0, "apiVersion: postgresql.cnpg.io/v1");
    yaml.line(0, "kind: Pooler");
    yaml.line(0, "metadata:");
    yaml.entry(1, "name", name);
    yaml.entry(1, "namespace", &facts.namespace);
    yaml.line(0, "spec:");
    yaml.line(1, "cluster:");
    yaml.entry(2, "name", &settings.target_cluster);
    if kind == "r" {
        yaml.comment(
            1,
            "r, every instance: with a single one, ro has nobody to ask. Change it to ro when \
             there are replicas.",
        );
    }
    yaml.entry(1, "type", kind);
    yaml.line(1, &format!("instances: {}", pooler.instances));
    yaml.line(1, "pgbouncer:");
    yaml.entry(2, "poolMode", &pooler.mode);
    yaml.line(2, "parameters:");
    yaml.comment(
        3,
        "Seconds that clients wait after a failed login to the server: the restart after the \
         promotion is shorter than the default, 15.",
    );
    yaml.text(3, "server_login_retry", "1");
    yaml.comment(
        3,
        "The old pooler's: pgbouncer's own defaults, 100 clients and 20 connections per user and \
         database, would be too few.",
    );
    yaml.text(3, "max_client_conn", "10000");
    let connections = (pooler.max_db_connections / pooler.instances.max(1)).max(1);
    yaml.text(3, "max_db_connections", &connections.to_string());
    yaml.text(3, "default_pool_size", &connections.div_ceil(2).to_string());
    yaml.text(3, "max_prepared_statements", "200");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{example, facts::Pooler};
    use serde::Deserialize as _;

    #[test]
    fn connections_are_shared_among_the_pods_as_the_operator_shares_them() {
        let mut facts = example::facts();
        facts.resource.pooler = Pooler {
            mode: "session".into(),
            instances: 3,
            max_db_connections: 90,
        };
        let mut yaml = Yaml::default();
        both(&mut yaml, &facts, &example::settings());
        let documents: Vec<serde_yaml_ng::Value> =
            serde_yaml_ng::Deserializer::from_str(&yaml.into_text())
                .filter_map(|document| serde_yaml_ng::Value::deserialize(document).ok())
                .filter(|document| !document.is_null())
                .collect();
        assert_eq!(documents.len(), 2);
        for (document, kind) in documents.iter().zip(["rw", "r"]) {
            let spec = &document["spec"];
            assert_eq!(
                (spec["type"].as_str(), spec["instances"].as_u64()),
                (Some(kind), Some(3))
            );
            assert_eq!(spec["pgbouncer"]["poolMode"], "session");
            assert_eq!(spec["pgbouncer"]["parameters"]["server_login_retry"], "1");
            assert_eq!(spec["pgbouncer"]["parameters"]["max_db_connections"], "30");
            assert_eq!(spec["pgbouncer"]["parameters"]["default_pool_size"], "15");
        }
    }
}
