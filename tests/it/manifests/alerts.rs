//! The alerts fire when they must, are silent otherwise, and use only metrics that exist.
//!
//! `alerts.yaml` has the series over which promtool runs the rendered rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use harness::manifests;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{components, named, names};

/// Metrics of the default queries of CloudNativePG 1.30 (config/manager/default-monitoring.yaml,
/// prefix `cnpg_`), of its collector (pg_collector.go), and of kube-state-metrics (docs/metrics,
/// those called stable). `tests/it/source.rs` compares Patroni's with a real Patroni, and
/// `tests/it/target.rs` runs the query of queries.yaml.
const METRICS: [&str; 17] = [
    "cnpg_pg_replication_in_recovery",
    "cnpg_pg_replication_is_wal_receiver_up",
    "cnpg_pg_replication_lag",
    "cnpg_pg_stat_archiver_archived_count",
    "cnpg_collector_fencing_on",
    "cnpg_collector_up",
    "cnpg_collector_wal_bytes",
    "cnpg_replica_migration_lag_bytes",
    "kube_cronjob_info",
    "kube_job_complete",
    "kube_job_failed",
    "kube_job_owner",
    "kube_job_status_start_time",
    "kube_pod_container_status_running",
    "patroni_postgres_running",
    "patroni_primary",
    "patroni_xlog_location",
];

/// Alerts that must exist in any case.
const REQUIRED: [&str; 2] = ["HighReplicationLag", "ReplicationStopped"];

#[derive(Deserialize)]
struct UnitTests {
    tests: Vec<UnitTest>,
}

#[derive(Deserialize)]
struct UnitTest {
    input_series: Vec<Series>,
    alert_rule_test: Vec<Expectation>,
}

#[derive(Deserialize)]
struct Series {
    series: String,
}

#[derive(Deserialize)]
struct Expectation {
    alertname: String,
    exp_alerts: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    exp_labels: BTreeMap<String, String>,
}

fn unit_tests() -> &'static str {
    include_str!("alerts.yaml")
}

async fn groups() -> Value {
    let objects = components::rendered("prometheus-rules").await;
    named(&objects, "PrometheusRule", "replica-migration")["spec"].clone()
}

fn rules(groups: &Value) -> Vec<&Value> {
    let groups = groups["groups"].as_array().unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect()
}

fn promtool(arguments: &[&str], folder: &Path) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("promtool is missing; install it: apt-get install prometheus");
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

#[tokio::test]
async fn the_alerts_fire_when_they_must_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let mut groups = groups().await;
    // JSON is valid YAML.
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    promtool(&["check", "rules", "rules.yaml"], folder.path());
    // promtool also compares annotations, so alerts.yaml would have to repeat them.
    for group in groups["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule.as_object_mut().unwrap().remove("annotations");
        }
    }
    fs::write(folder.path().join("rules.yaml"), groups.to_string()).unwrap();
    fs::write(folder.path().join("alerts.yaml"), unit_tests()).unwrap();
    promtool(&["test", "rules", "alerts.yaml"], folder.path());
}

#[tokio::test]
async fn each_alert_is_tested_both_ways_and_its_description_uses_existing_labels() {
    let tests: UnitTests = serde_yaml_ng::from_str(unit_tests()).unwrap();
    let expectations: Vec<Expectation> = tests
        .tests
        .into_iter()
        .flat_map(|test| test.alert_rule_test)
        .collect();
    let groups = groups().await;
    let found: Vec<&str> = rules(&groups)
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap())
        .collect();
    assert!(
        REQUIRED.iter().all(|alert| found.contains(alert)),
        "{found:?}"
    );
    for rule in rules(&groups) {
        let alert = rule["alert"].as_str().unwrap();
        let of_it: Vec<&Expectation> = expectations
            .iter()
            .filter(|test| test.alertname == alert)
            .collect();
        assert!(
            of_it.iter().any(|test| test.exp_alerts.is_empty()),
            "{alert} is never silent in alerts.yaml"
        );
        let labels = of_it
            .iter()
            .flat_map(|test| &test.exp_alerts)
            .map(|fired| &fired.exp_labels)
            .next();
        let labels = labels.unwrap_or_else(|| panic!("{alert} never fires in alerts.yaml"));
        let text = rule["annotations"]["description"].as_str().unwrap();
        for label in text.split("$labels.").skip(1) {
            let label = label.split([' ', '}']).next().unwrap();
            assert!(labels.contains_key(label), "{alert} has no label {label}");
        }
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{alert}"
        );
    }
}

/// The metrics in an expression, recognised by their prefixes.
fn metrics(expression: &str) -> BTreeSet<&str> {
    expression
        .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .filter(|word| {
            ["cnpg_", "kube_", "patroni_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        .collect()
}

#[tokio::test]
async fn the_alerts_use_only_metrics_that_exist() {
    let groups = groups().await;
    for rule in rules(&groups) {
        let used = metrics(rule["expr"].as_str().unwrap());
        assert!(!used.is_empty(), "{rule}");
        for metric in used {
            assert!(METRICS.contains(&metric), "{metric}");
        }
    }
    // The tests use only these, too.
    let tests: UnitTests = serde_yaml_ng::from_str(unit_tests()).unwrap();
    for series in tests.tests.iter().flat_map(|test| &test.input_series) {
        let metric = series.series.split('{').next().unwrap();
        assert!(METRICS.contains(&metric), "{metric}");
    }
}

#[tokio::test]
async fn other_names_reach_the_rules() {
    let overlay = components::with("prometheus-rules")
        .replace(
            "SOURCE_CLUSTER=mastodon-postgresql",
            "SOURCE_CLUSTER=acid-shop-db",
        )
        .replace("TARGET_CLUSTER=database", "TARGET_CLUSTER=shop-pg-17");
    let objects = names::render_with(&overlay).await;
    let rendered = named(&objects, "PrometheusRule", "replica-migration").to_string();
    let example = ["mastodon-postgresql", "database-"];
    assert!(
        !example.iter().any(|name| rendered.contains(name)),
        "{rendered}"
    );
    let of_example = groups().await.to_string();
    let expected = of_example
        .replace("mastodon-postgresql", "acid-shop-db")
        .replace("database-[0-9]+", "shop-pg-17-[0-9]+");
    let found = named(&objects, "PrometheusRule", "replica-migration")["spec"].clone();
    assert_eq!(found, serde_json::from_str::<Value>(&expected).unwrap());

    let selector =
        |monitor| named(&objects, "PodMonitor", monitor)["spec"]["selector"]["matchLabels"].clone();
    assert_eq!(
        selector("replica-migration-target"),
        json!({"cnpg.io/cluster": "shop-pg-17"})
    );
    let source = json!({"application": "spilo", "cluster-name": "acid-shop-db"});
    assert_eq!(selector("replica-migration-source"), source);
    assert!(
        manifests::of_kind(&objects, "ConfigMap")
            .all(|map| map["metadata"]["name"] != "replica-migration-pods")
    );
}
