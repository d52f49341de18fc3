//! The manifest of the target: a Cluster made for this source, and its two Poolers, with a comment
//! at each choice that a reader may question. `templates/cluster.yaml` is its text; this module
//! computes the values in it.
//!
//! The same facts and settings render the same text, so a second run changes nothing.

mod filters;
mod patched;

use std::collections::BTreeMap;

use askama::Template;
use job::{
    config::{ArchiveRestart, SslMode},
    error::{Error, Result},
};
use serde_json::Value;

use crate::{
    facts::Facts,
    hba::clients::Clients,
    image::Image,
    memory, parameters,
    settings::{CA_SECRET, REPLICATION_SECRET, Settings},
};

/// Between the documents of the manifest.
const SEPARATOR: &str = "\n---\n";
/// CloudNativePG's default of wal_keep_size, in MB.
const WAL_KEEP_MB_DEFAULT: u64 = 512;

/// The values of the template, in its order.
#[derive(Template)]
#[template(path = "cluster.yaml", escape = "none")]
struct ClusterManifest<'a> {
    cluster: &'a str,
    namespace: &'a str,
    source: &'a str,
    version: String,
    system_identifier: String,
    archive_restart_never: bool,
    adopt_image: &'a str,
    image: &'a str,
    storage_size: &'a str,
    storage_class: Option<&'a str>,
    /// Requests and limits of the leader's container; None when it has none.
    resources: Option<Value>,
    /// Its memory differs from the leader's.
    memory_raised: bool,
    leader_pod: &'a str,
    affinity: Option<&'a Value>,
    priority_class: Option<&'a str>,
    scheduler: Option<&'a str>,
    superuser_secret: String,
    database: &'a str,
    owner: &'a str,
    /// None when the owner has no password.
    owner_secret: Option<String>,
    host: &'a str,
    port: u16,
    replication_role: &'static str,
    /// Why the certificate allows this sslmode; the beginning of a sentence.
    sslmode_reason: &'a str,
    sslmode: &'static str,
    replication_secret: &'static str,
    /// None where nothing is verified: libpq verifies the chain in `require`, too, when it is given
    /// a CA file.
    ca_secret: Option<&'static str>,
    hot_standby: BTreeMap<&'static str, String>,
    source_stores_md5: bool,
    /// The source's value, where it logs passwords.
    log_statement: Option<&'a str>,
    /// The source's value, where CloudNativePG's default rejects clients that the source accepts.
    ssl_min_protocol_version: Option<&'a str>,
    /// With its unit; None where CloudNativePG's default suffices.
    wal_keep_size: Option<String>,
    /// Parameters of extensions that CloudNativePG manages.
    managed: BTreeMap<String, String>,
    /// Parameters that were changed at the source.
    tuning: BTreeMap<&'a str, &'a str>,
    clients: Clients,
    has_md5_passwords: bool,
    /// The source's shared_preload_libraries; None when it has none.
    preloaded_libraries: Option<String>,
    poolers: [Pooler; 2],
    pooler_pods: u32,
    pool_mode: &'a str,
    connections_per_pod: u32,
    default_pool_size: u32,
}

/// What tells the two Poolers apart.
struct Pooler {
    name: String,
    /// `rw` is the primary, `r` is every instance.
    kind: &'static str,
}

/// Renders the Cluster and its Poolers.
///
/// # Errors
/// Config for a TARGET_PATCH that leaves out lines of pg_hba. Transient when the template cannot be
/// rendered, which no value is known to cause.
pub fn render(facts: &Facts, settings: &Settings, image: &Image) -> Result<String> {
    let text = values(facts, settings, image)
        .render()
        .map_err(|error| Error::transient("rendering the Cluster manifest").caused_by(error))?;
    let text = text.trim_end().to_owned() + "\n";
    let (cluster, poolers) = text.split_at(text.find(SEPARATOR).map_or(text.len(), |at| at + 1));
    let wrong = |reason| {
        Error::config(format!("TARGET_PATCH: {reason}")).hint("correct the patch in its ConfigMap")
    };
    let patch = &facts.target_patch;
    patch.keeps_pg_hba(&parsed(cluster)?).map_err(wrong)?;
    Ok(patched::patched(cluster, patch.fields()).map_err(wrong)? + poolers)
}

/// The Cluster of a rendered manifest.
///
/// # Errors
/// Transient when it is not YAML, which no value is known to cause.
pub fn cluster(manifest: &str) -> Result<Value> {
    parsed(manifest.split(SEPARATOR).next().unwrap_or_default())
}

fn parsed(document: &str) -> Result<Value> {
    serde_yaml_ng::from_str(document)
        .map_err(|error| Error::transient("reading the rendered Cluster").caused_by(error))
}

fn values<'a>(facts: &'a Facts, settings: &'a Settings, image: &Image) -> ClusterManifest<'a> {
    let identity = facts.server.identity;
    let database = facts.database(&settings.database);
    let owner = database.map_or("postgres", |database| database.owner.as_str());
    let owner_has_password = facts.role(owner).is_some_and(|role| role.hash.is_some());
    let pooler = &facts.resource.pooler;
    // The operator shares the connections among the pods of a pooler, and so does this manifest.
    let connections_per_pod = (pooler.max_db_connections / pooler.instances.max(1)).max(1);
    ClusterManifest {
        cluster: &settings.target_cluster,
        namespace: &facts.namespace,
        source: &settings.source_cluster,
        version: format!("{}.{}", identity.major(), identity.version % 10_000),
        system_identifier: identity.system_identifier.to_string(),
        archive_restart_never: settings.archive_restart == ArchiveRestart::Never,
        adopt_image: &settings.adopt_image,
        image: &settings.target_image,
        storage_size: &settings.target_storage.text,
        storage_class: settings.target_storage_class.as_deref(),
        resources: memory::resources(facts),
        memory_raised: !memory::raised(facts).is_empty(),
        leader_pod: &facts.pod.name,
        affinity: facts.resource.affinity.as_ref(),
        priority_class: facts.resource.priority_class.as_deref(),
        scheduler: facts.resource.scheduler.as_deref(),
        superuser_secret: settings.superuser_secret(),
        database: &settings.database,
        owner,
        owner_secret: owner_has_password.then(|| settings.owner_secret()),
        host: &facts.host,
        port: facts.port,
        replication_role: settings.source_auth.role(),
        sslmode_reason: &facts.tls.reason,
        sslmode: facts.tls.sslmode.as_str(),
        replication_secret: REPLICATION_SECRET,
        ca_secret: (facts.tls.sslmode != SslMode::Require).then_some(CA_SECRET),
        hot_standby: parameters::hot_standby(facts),
        source_stores_md5: facts.setting("password_encryption") != "scram-sha-256",
        log_statement: Some(facts.setting("log_statement"))
            .filter(|value| matches!(*value, "ddl" | "mod" | "all")),
        ssl_min_protocol_version: Some(facts.setting("ssl_min_protocol_version"))
            .filter(|version| !matches!(*version, "" | "TLSv1.3")),
        wal_keep_size: wal_keep_size(facts, settings),
        managed: parameters::managed(facts, image),
        tuning: parameters::tuning(facts),
        clients: facts.clients(),
        has_md5_passwords: !facts.md5_roles().is_empty(),
        preloaded_libraries: Some(facts.setting("shared_preload_libraries").replace(',', ", "))
            .filter(|libraries| !libraries.is_empty()),
        poolers: [
            Pooler {
                name: settings.pooler_rw(),
                kind: "rw",
            },
            Pooler {
                name: settings.pooler_ro(),
                kind: "r",
            },
        ],
        pooler_pods: pooler.instances,
        pool_mode: &pooler.mode,
        connections_per_pod,
        default_pool_size: connections_per_pod.div_ceil(2),
    }
}

/// As much as the source keeps, or will keep when WAL_KEEP_MB has been applied.
fn wal_keep_size(facts: &Facts, settings: &Settings) -> Option<String> {
    let kept_mb = facts
        .number("wal_keep_size")
        .max(u64::from(settings.wal_keep_mb.unwrap_or(0)));
    (kept_mb > WAL_KEEP_MB_DEFAULT).then(|| format!("{kept_mb}MB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, settings::SourceAuth};
    use protocol::{manifest, snapshot::kubernetes::StoredManifest};
    use serde::Deserialize as _;
    use serde_json::json;
    use serde_yaml_ng::Value as Yaml;

    fn documents(facts: &Facts, settings: &Settings) -> Vec<Yaml> {
        serde_yaml_ng::Deserializer::from_str(&rendered(facts, settings))
            .map(|document| Yaml::deserialize(document).unwrap())
            .collect()
    }

    fn rendered(facts: &Facts, settings: &Settings) -> String {
        let image = Image::parse(&settings.target_image).unwrap();
        render(facts, settings, &image).unwrap()
    }

    fn parameters_of(facts: &Facts, settings: &Settings) -> Yaml {
        documents(facts, settings)[0]["spec"]["postgresql"]["parameters"].clone()
    }

    /// Texts of two sources whose values differ wherever the template has a branch.
    #[test]
    fn the_manifest_of_two_sources_is_exactly_the_expected_text() {
        for ((facts, settings), expected) in [
            (
                (fixture::facts(), fixture::settings()),
                include_str!("cluster_manifest/expected/usual.yaml"),
            ),
            (
                fixture::unusual(),
                include_str!("cluster_manifest/expected/unusual.yaml"),
            ),
        ] {
            let text = rendered(&facts, &settings);
            for (line, expected) in text.lines().zip(expected.lines()) {
                assert_eq!(line, expected);
            }
            assert_eq!(text.len(), expected.len());
        }
    }

    /// The cutover rewrites what this program stores, and nothing of it but the one field.
    #[test]
    fn the_manifest_can_be_rewritten_once_the_cluster_is_promoted() {
        for (facts, settings) in [(fixture::facts(), fixture::settings()), fixture::unusual()] {
            let text = rendered(&facts, &settings);
            assert_eq!(manifest::judge(Some(&text), true), StoredManifest::Follows);
            let promoted = manifest::promoted(&text).unwrap();
            let mut expected = documents(&facts, &settings);
            expected[0]["spec"]["replica"]["enabled"] = false.into();
            let found: Vec<Yaml> = serde_yaml_ng::Deserializer::from_str(&promoted)
                .map(|document| Yaml::deserialize(document).unwrap())
                .collect();
            assert_eq!(found, expected);
        }
    }

    /// A value that no filter has quoted could change the structure of the document.
    #[test]
    fn every_value_in_the_template_passes_a_filter() {
        let template = include_str!("../templates/cluster.yaml");
        let mut in_comment = false;
        for line in template.lines() {
            in_comment |= line.contains("{% filter comment(");
            for value in line.split("{{").skip(1) {
                let value = value.split("}}").next().unwrap();
                let filter = value.split('|').next_back().unwrap().trim();
                assert!(
                    in_comment || matches!(filter, "scalar" | "quoted" | "flow"),
                    "{value} in {line}"
                );
            }
            in_comment &= !line.contains("{% endfilter %}");
        }
        assert!(!in_comment);
    }

    #[test]
    fn no_line_of_the_manifest_is_longer_than_100_columns() {
        let text = rendered(&fixture::facts(), &fixture::settings());
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn the_manifest_is_valid_yaml_with_a_cluster_and_two_poolers() {
        let documents = documents(&fixture::facts(), &fixture::settings());
        let names: Vec<_> = documents
            .iter()
            .map(|d| {
                (
                    d["kind"].as_str().unwrap(),
                    d["metadata"]["name"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            names,
            [
                ("Cluster", "database"),
                ("Pooler", "database-pooler-rw"),
                ("Pooler", "database-pooler-ro")
            ]
        );
        let spec = &documents[0]["spec"];
        assert_eq!(spec["bootstrap"]["pg_basebackup"]["owner"], "mastodon");
        assert_eq!(
            spec["bootstrap"]["pg_basebackup"]["secret"]["name"],
            "database-owner"
        );
        assert_eq!(spec["replica"]["enabled"], true);
        assert_eq!(spec["smartShutdownTimeout"], 0);
        assert_eq!(spec["superuserSecret"]["name"], "database-superuser-source");
    }

    #[test]
    fn the_pod_patch_adds_adopt_pgdata_with_a_restricted_security_context() {
        let cluster = &documents(&fixture::facts(), &fixture::settings())[0];
        let patch: Value = serde_json::from_str(
            cluster["metadata"]["annotations"]["cnpg.io/podPatch"]
                .as_str()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(patch[0]["path"], "/spec/initContainers/-");
        let container = &patch[0]["value"];
        assert_eq!(container["command"], json!(["/adopt-pgdata"]));
        assert_eq!(
            container["env"][1],
            json!({"name": "ARCHIVE_RESTART", "value": "never"})
        );
        assert_eq!(container["securityContext"]["runAsUser"], 26);
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"],
            json!(["ALL"])
        );
    }

    #[test]
    fn the_external_cluster_has_the_strongest_sslmode_that_the_certificate_allows() {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        let external_cluster = |facts: &Facts, settings: &Settings| {
            documents(facts, settings)[0]["spec"]["externalClusters"][0].clone()
        };
        let cluster = external_cluster(&facts, &settings);
        assert_eq!(cluster["connectionParameters"]["sslmode"], "verify-full");
        assert_eq!(cluster["connectionParameters"]["user"], "standby");
        assert_eq!(cluster["connectionParameters"]["port"], "5432");
        assert_eq!(cluster["sslRootCert"]["name"], "zalando-replication-ca");
        assert!(cluster.get("sslCert").is_none() && cluster.get("sslKey").is_none());
        (facts.tls.sslmode, settings.source_auth) =
            (SslMode::Require, SourceAuth::StreamingReplica);
        let cluster = external_cluster(&facts, &settings);
        assert_eq!(cluster["connectionParameters"]["user"], "streaming_replica");
        assert!(
            cluster.get("sslRootCert").is_none(),
            "libpq verifies the chain in require, too, when it is given a CA file"
        );
    }

    #[test]
    fn an_owner_without_a_password_gets_no_secret() {
        let mut facts = fixture::facts();
        facts.roles[2].hash = None;
        assert!(
            documents(&facts, &fixture::settings())[0]["spec"]["bootstrap"]["pg_basebackup"]
                .get("secret")
                .is_none()
        );
    }

    #[test]
    fn the_sources_lines_about_clients_follow_the_one_about_replication() {
        let mut facts = fixture::facts();
        let hba = |facts: &Facts| {
            let cluster = documents(facts, &fixture::settings()).remove(0);
            let lines = cluster["spec"]["postgresql"]["pg_hba"].clone();
            serde_yaml_ng::from_value::<Vec<String>>(lines).unwrap()
        };
        let usual = [
            "hostssl replication standby all md5",
            "hostnossl all all all reject",
            "hostssl all all all md5",
        ];
        assert_eq!(hba(&facts), usual);
        facts.hba.truncate(1);
        assert_eq!(hba(&facts)[1..], ["host all all all reject"]);
    }

    #[test]
    fn the_target_gets_the_resources_of_the_sources_leader() {
        let mut facts = fixture::facts();
        facts.pod.resources = Some(json!({"limits": {"memory": "4Gi"}, "requests": {"cpu": "1"}}));
        assert_eq!(
            documents(&facts, &fixture::settings())[0]["spec"]["resources"]["limits"]["memory"],
            "4Gi"
        );
    }

    #[test]
    fn the_hot_standby_parameters_equal_the_sources_and_every_parameter_is_a_string() {
        let all = parameters_of(&fixture::facts(), &fixture::settings());
        assert_eq!(all["max_connections"], "136");
        assert_eq!(all["max_prepared_transactions"], "0");
        let all = all.as_mapping().unwrap();
        assert!(all.values().all(Yaml::is_string));
    }

    #[test]
    fn unsafe_settings_of_the_source_are_not_carried_over() {
        let all = parameters_of(&fixture::facts(), &fixture::settings());
        assert_eq!(all["password_encryption"], "scram-sha-256");
        assert_eq!(all["log_statement"], "none");
        assert_eq!(all["ssl_min_protocol_version"], "TLSv1.2");
        assert_eq!(all["pg_stat_statements.track"], "top");
    }

    #[test]
    fn no_parameter_is_set_that_cloudnativepg_refuses() {
        let all = parameters_of(&fixture::facts(), &fixture::settings());
        for name in all.as_mapping().unwrap().keys() {
            let name = name.as_str().unwrap();
            assert!(!parameters::FIXED.contains(&name), "{name}");
        }
    }

    #[test]
    fn wal_keep_size_is_the_larger_of_the_sources_and_the_requested() {
        let (facts, mut settings) = (fixture::facts(), fixture::settings());
        assert_eq!(parameters_of(&facts, &settings)["wal_keep_size"], "2048MB");
        settings.wal_keep_mb = Some(4096);
        assert_eq!(parameters_of(&facts, &settings)["wal_keep_size"], "4096MB");
    }

    #[test]
    fn the_poolers_share_connections_among_their_pods_as_the_operator_does() {
        let mut facts = fixture::facts();
        facts.resource.pooler = crate::facts::Pooler {
            mode: "session".into(),
            instances: 3,
            max_db_connections: 90,
        };
        let documents = documents(&facts, &fixture::settings());
        for (document, kind) in documents[1..].iter().zip(["rw", "r"]) {
            let spec = &document["spec"];
            assert_eq!(spec["type"], kind);
            assert_eq!(spec["instances"], 3);
            assert_eq!(spec["pgbouncer"]["poolMode"], "session");
            assert_eq!(spec["pgbouncer"]["parameters"]["server_login_retry"], "1");
            assert_eq!(spec["pgbouncer"]["parameters"]["max_db_connections"], "30");
            assert_eq!(spec["pgbouncer"]["parameters"]["default_pool_size"], "15");
        }
    }
}
