//! The `postgresql` resources of the field, and what prepare-zalando says of each: a source with
//! that resource, and with its pg_hba as the server's view reads it from the file. The server does
//! not use that file, because the pods of this environment connect from 127.0.0.0/8.
//!
//! A resource of a version that is not supported is refused by the resource alone; then, and for
//! all others, the version is that of the environment.

use std::{fs, path::Path};

use harness::source::SourceOptions;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::environment::{CLUSTER, Environment, SOON};

/// What is said of one resource.
struct Case {
    /// In the folder `field`.
    file: &'static str,
    /// The version of the resource.
    version: u32,
    /// A text of the reason to refuse it, whatever its version; empty where it is accepted.
    refused: &'static str,
    /// What the target's pg_hba has after the line for replication.
    clients: &'static [&'static str],
    /// What the log says, too.
    says: &'static str,
}

const SPILO: &[&str] = &["hostnossl all all all reject", "hostssl all all all md5"];
const NO_REPLICATION: &str = "pg_hba has no line that admits standby for replication over TLS";

/// A resource with Spilo's own pg_hba that is accepted.
const fn plain(file: &'static str, version: u32) -> Case {
    Case {
        file,
        version,
        refused: "",
        clients: SPILO,
        says: "",
    }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case {
        clients: &["hostssl all all all md5", "host all all 10.0.0.0/8 md5",
            "hostnossl all all all reject"],
        ..plain("01-hba-private-range-no-reject", 17)
    },
    plain("02-prepared-many-scram", 17),
    plain("03-platform-cross-namespace-pooler", 17),
    plain("04-superuser-owner-fsgroup", 17),
    plain("05-vector-own-image-preload", 17),
    plain("06-underscore-role-longhorn", 17),
    plain("07-six-databases-six-owners", 17),
    plain("08-owned-by-postgres", 13),
    plain("09-no-users-no-databases", 14),
    plain("10-exporter-sidecar", 13),
    plain("11-clone-and-poolers-chart", 14),
    plain("12-walg-env-logical-slots-gis-timescale", 14),
    plain("13-loadbalancer-source-ranges", 15),
    Case {
        clients: &["host all all 127.0.0.6/32 md5", "hostnossl all all all reject",
            "hostssl all all all md5"],
        says: "priorityClassName: high-priority-service",
        ..plain("14-istio-loopback-hba-tls", 15)
    },
    Case {
        clients: &["hostssl all all 0.0.0.0/0 md5", "host all all 0.0.0.0/0 md5",
            "hostnossl all all all reject", "hostssl all all all md5"],
        ..plain("15-hba-plain-before-reject", 15)
    },
    Case {
        refused: "requires scram-sha-256 of standby, whose password is stored as md5",
        ..plain("16-mesh-ranges-dotted-role", 17)
    },
    Case {
        says: r#""tolerations":[{"effect":"NoSchedule","key":"data","operator":"Exists"}]"#,
        ..plain("17-dashed-roles-three-databases", 14)
    },
    Case { refused: NO_REPLICATION, ..plain("18-plain-only-no-replication-line", 16) },
    plain("19-protected-role-many-owners", 16),
    plain("20-hugepages-off", 16),
    Case {
        clients: &["hostssl all postgres all md5"],
        says: "cannot log in there: hostssl all all all md5 clientcert=verify-ca",
        ..plain("21-clientcert-pgaudit-400-connections", 15)
    },
    plain("22-timescale-only-preload", 15),
    plain("23-thousand-connections", 14),
    plain("24-pooler-user-postgres", 12),
    Case { refused: "the source is itself a standby cluster", ..plain("25-standby-cluster", 17) },
    Case {
        says: "set SOURCE_SSLMODE=require",
        ..plain("26-everything-18", 18)
    },
    plain("27-dashed-database", 15),
    Case { refused: NO_REPLICATION, ..plain("28-two-line-hba-registry", 13) },
    Case {
        clients: &["hostssl all postgres all md5", "hostnossl all all all reject",
            "hostssl all all all md5"],
        says: "hostssl all all 10.233.0.0/15 md5 clientcert=verify-ca",
        ..plain("29-mtls-first-line", 14)
    },
];

#[tokio::test]
async fn each_resource_of_the_field_has_its_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/prepare/field");
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, CASES.len(), "each file has a row");
    let environment = Environment::start(SourceOptions::default()).await;
    let untouched = environment.made().await;
    let given = environment.resource().await;
    let list = environment.hba_file();
    for case in CASES {
        let text = fs::read_to_string(folder.join(format!("{}.yaml", case.file))).unwrap();
        let resource: Value = serde_yaml_ng::from_str(&text).unwrap();
        let asked = &resource["spec"]["postgresql"]["version"];
        assert_eq!(*asked, case.version.to_string(), "{}", case.file);
        is_refused_by_its_version(&environment, &given, &resource, case).await;
        let lines = resource["spec"]["patroni"]["pg_hba"].as_array();
        let lines = lines.map(|lines| lines.iter().map(|line| line.as_str().unwrap()));
        // This build has no PAM, and its view would call such a line an error.
        let lines = lines.map(|lines| lines.filter(|line| !line.ends_with(" pam")));
        let lines = lines.map(|lines| lines.collect::<Vec<_>>().join("\n"));
        // The server reads it only when it is told to.
        environment.set_hba_file(lines.as_deref().unwrap_or(&list));
        environment
            .set_resource(&with_spec(&given, &resource, "17"))
            .await;
        has_its_verdict(&environment, case).await;
    }
    environment.set_hba_file(&list);
    environment.set_resource(&given).await;
    assert_eq!(environment.made().await, untouched);
}

/// Before anything is asked but the resource.
async fn is_refused_by_its_version(
    environment: &Environment,
    given: &Value,
    resource: &Value,
    case: &Case,
) {
    // The schema of operator 2.0, which the API server has here, knows no 12.
    if !(13..15).contains(&case.version) {
        return;
    }
    let version = case.version.to_string();
    environment
        .set_resource(&with_spec(given, resource, &version))
        .await;
    let ended = environment.job().run(SOON).await.unwrap();
    assert_eq!(ended.exit_code, 3, "{}: {ended}", case.file);
    let reason = format!("the source is PostgreSQL {version}; supported are");
    assert!(ended.text().contains(&reason), "{}: {ended}", case.file);
    assert!(
        !ended.text().contains("source: leader"),
        "{}: {ended}",
        case.file
    );
}

async fn has_its_verdict(environment: &Environment, case: &Case) {
    let ended = environment.job().env("DRY_RUN", "true").run(SOON).await;
    let (ended, file) = (ended.unwrap(), case.file);
    if !case.refused.is_empty() {
        assert_eq!(ended.exit_code, 3, "{file}: {ended}");
        assert!(ended.text().contains(case.refused), "{file}: {ended}");
        return;
    }
    assert_eq!(ended.exit_code, 0, "{file}: {ended}");
    assert!(
        ended.text().contains(case.says),
        "{file}: {:?}: {ended}",
        case.says
    );
    let text = ended.text();
    let (_, manifest) = text.split_once("    pg_hba:\n").expect("a manifest");
    let found: Vec<String> = manifest
        .lines()
        .take_while(|line| line.trim_start().starts_with(['#', '-']) && line.trim() != "---")
        .filter_map(|line| line.trim_start().strip_prefix("- "))
        .map(|line| line.trim_matches('"').to_owned())
        .collect();
    assert_eq!(found[0], "hostssl replication standby all md5", "{file}");
    assert_eq!(found[1..], *case.clients, "{file}");
}

/// The resource of the environment with the fields of another one; its certificate stays, unless
/// the other one asks for none.
fn with_spec(given: &Value, other: &Value, version: &str) -> Value {
    let mut resource = given.clone();
    for (field, value) in other["spec"].as_object().unwrap() {
        if field != "tls" || value["secretName"] == "" {
            resource["spec"][field] = value.clone();
        }
    }
    resource["spec"]["postgresql"]["version"] = json!(version);
    resource
}

impl Environment {
    /// What the step could have made or changed beside the resource, which this test changes.
    async fn made(&self) -> Vec<String> {
        let mut state = self.state().await;
        state.retain(|line| !line.starts_with(&format!("{CLUSTER} ")));
        state
    }

    async fn resource(&self) -> Value {
        serde_json::to_value(self.postgresqls().get(CLUSTER).await.unwrap()).unwrap()
    }

    /// Replaces the spec.
    async fn set_resource(&self, resource: &Value) {
        let mut now = self.postgresqls().get(CLUSTER).await.unwrap();
        now.data["spec"] = resource["spec"].clone();
        self.postgresqls()
            .replace(CLUSTER, &PostParams::default(), &now)
            .await
            .unwrap();
    }
}
