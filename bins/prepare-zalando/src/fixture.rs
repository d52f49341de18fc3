//! Facts for tests: a source as the operator 1.15 and Spilo create it, and an unusual one.

use job::config::{ArchiveRestart, CommaList, SslMode};
use protocol::wal::{Identity, SystemIdentifier, Timeline};
use serde_json::json;

use crate::{
    facts::{Database, Facts, Login, Password, Pod, Pooler, Resource, Role, Server, Setting, Tls},
    hba::Rule,
    settings::{Settings, SourceAuth},
    stored_password::Kind,
    target_patch::TargetPatch,
};

pub(crate) fn settings() -> Settings {
    Settings {
        source_cluster: "mastodon-postgresql".parse().unwrap(),
        target_cluster: "database".parse().unwrap(),
        database: serde_json::from_value(json!("mastodon")).unwrap(),
        source_auth: SourceAuth::Standby,
        allow_source_rolling_update: false,
        wal_keep_mb: None,
        target_patch: "target-patch".parse().unwrap(),
        target_image: serde_json::from_value(json!(
            "ghcr.io/cloudnative-pg/postgresql:17.10-standard-trixie"
        ))
        .unwrap(),
        target_storage: "40Gi".parse().unwrap(),
        target_storage_class: None,
        adopt_image: serde_json::from_value(json!("registry/replica-migration:1")).unwrap(),
        archive_restart: ArchiveRestart::Never,
        accept: CommaList(Vec::new()),
        dry_run: false,
    }
}

pub(crate) fn set(facts: &mut Facts, name: &str, value: &str, raw: &str, boot: &str, source: &str) {
    let setting = Setting {
        value: value.into(),
        raw: raw.into(),
        boot: boot.into(),
        source: source.into(),
        pending_restart: false,
    };
    facts.settings.insert(name.into(), setting);
}

fn rule(line: i32, words: [&str; 5]) -> Rule {
    Rule {
        line,
        kind: words[0].into(),
        databases: vec![words[1].into()],
        roles: vec![words[2].into()],
        address: Some(words[3].into()),
        netmask: None,
        method: words[4].into(),
        options: Vec::new(),
        error: None,
    }
}

fn role(name: &str, superuser: bool, replication: bool) -> Role {
    Role {
        name: name.into(),
        login: true,
        superuser,
        replication,
        expired: false,
        hash: Some(Kind::Md5),
    }
}

fn database(name: &str, owner: &str) -> Database {
    Database {
        name: name.into(),
        owner: owner.into(),
        bytes: 1 << 30,
        provider: 'c',
        collate: "en_US.utf-8".into(),
        recorded_version: Some("2.35".into()),
        actual_version: Some("2.35".into()),
        collated_indexes: 12,
        extensions: vec!["plpgsql".into(), "pg_stat_statements".into()],
        ..Database::default()
    }
}

fn server() -> Server {
    Server {
        identity: Identity {
            system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
            timeline: Timeline(3),
            version: 170_010,
        },
        tablespaces: vec![],
        logical_slots: vec![],
        slots: 1,
        senders: 1,
        target_streams: false,
        prepared_transactions: 0,
        long_transactions: vec![],
        wal_bytes_per_second: Some(10_000),
        session_libraries: vec![],
    }
}

pub(crate) fn facts() -> Facts {
    let mut facts = Facts {
        namespace: "mastodon".into(),
        host: "mastodon-postgresql.mastodon.svc".into(),
        port: 5432,
        user: "postgres".into(),
        resource: Resource {
            pooler: Pooler::default(),
            ..Resource::default()
        },
        pod: Pod {
            name: "mastodon-postgresql-0".into(),
            ..Pod::default()
        },
        members: 2,
        patroni: json!({"postgresql": {"use_slots": true}}),
        tls: Tls {
            sslmode: SslMode::VerifyFull,
            reason: "covered".into(),
            given: true,
            asked: SslMode::VerifyFull,
        },
        server: server(),
        settings: Default::default(),
        auto_conf: Default::default(),
        hba: vec![
            rule(6, ["hostssl", "replication", "standby", "all", "md5"]),
            rule(7, ["hostnossl", "all", "all", "all", "reject"]),
            rule(8, ["hostssl", "all", "all", "all", "md5"]),
        ],
        roles: vec![
            role("postgres", true, true),
            role("standby", false, true),
            role("mastodon", false, false),
        ],
        databases: vec![
            database("mastodon", "mastodon"),
            database("postgres", "postgres"),
        ],
        cnpg_roles: Default::default(),
        login: Login {
            role: "standby".into(),
            password: Password::Matches,
        },
        target: None,
        target_patch: TargetPatch::default(),
    };
    for (name, value, boot) in [
        ("max_connections", "136", "100"),
        ("max_worker_processes", "8", "8"),
        ("max_wal_senders", "10", "10"),
        ("max_prepared_transactions", "0", "0"),
        ("max_locks_per_transaction", "64", "64"),
        ("max_replication_slots", "10", "10"),
        ("wal_level", "replica", "replica"),
        ("data_checksums", "on", "off"),
        ("password_encryption", "md5", "scram-sha-256"),
        ("log_statement", "ddl", "none"),
        ("ssl_min_protocol_version", "TLSv1.2", "TLSv1.2"),
        ("cluster_name", "mastodon-postgresql", ""),
        ("checkpoint_timeout", "300", "300"),
        ("checkpoint_completion_target", "0.9", "0.9"),
        (
            "shared_preload_libraries",
            "bg_mon,pg_stat_statements,pgextwlist",
            "",
        ),
    ] {
        set(&mut facts, name, value, value, boot, "configuration file");
    }
    set(
        &mut facts,
        "wal_keep_size",
        "2GB",
        "2048",
        "0",
        "configuration file",
    );
    set(
        &mut facts,
        "shared_buffers",
        "512MB",
        "65536",
        "16384",
        "configuration file",
    );
    facts
}

/// A source whose certificate cannot be verified and whose owner has no password, with values that
/// YAML would misread.
pub(crate) fn unusual() -> (Facts, Settings) {
    let (mut facts, mut settings) = (facts(), settings());
    facts.namespace = "on".into();
    facts.host = "10.0.0.5".into();
    facts.port = 6432;
    facts.tls.sslmode = SslMode::Require;
    facts.tls.asked = SslMode::Require;
    facts.tls.reason = "the resource has no spec.tls\nspec: injected".into();
    facts.pod.resources = Some(json!({"limits": {"memory": "4Gi"}, "requests": {"cpu": "1"}}));
    facts.resource.pooler = Pooler {
        mode: "session".into(),
        instances: 3,
        max_db_connections: 90,
    };
    facts.resource.affinity = Some(json!({"tolerations": [{"key": "db", "operator": "Exists"}]}));
    facts.resource.priority_class = Some("on".into());
    facts.resource.scheduler = Some("packing".into());
    facts.databases = vec![database("my \"db\": #1", "- yes\n")];
    facts.roles = vec![role("postgres", true, true)];
    facts.roles[0].hash = Some(Kind::Scram);
    facts.hba.truncate(1);
    facts
        .hba
        .push(rule(7, ["host", "all", "all", "all", "md5"]));
    set(
        &mut facts,
        "password_encryption",
        "scram-sha-256",
        "scram-sha-256",
        "md5",
        "default",
    );
    set(
        &mut facts,
        "log_statement",
        "none",
        "none",
        "none",
        "default",
    );
    set(
        &mut facts,
        "ssl_min_protocol_version",
        "TLSv1.3",
        "TLSv1.3",
        "TLSv1.2",
        "default",
    );
    set(
        &mut facts,
        "wal_keep_size",
        "512MB",
        "512",
        "0",
        "configuration file",
    );
    set(
        &mut facts,
        "search_path",
        "\"$user\", {public}",
        "\"$user\", {public}",
        "x",
        "configuration file",
    );
    set(
        &mut facts,
        "work_mem",
        "16MB",
        "16384",
        "4096",
        "command line",
    );
    set(
        &mut facts,
        "shared_preload_libraries",
        "",
        "",
        "",
        "default",
    );
    settings.target_cluster = "no".parse().unwrap();
    settings.database = serde_json::from_value(json!("my \"db\": #1")).unwrap();
    settings.source_auth = SourceAuth::StreamingReplica;
    settings.target_storage = "40000000000".parse().unwrap();
    settings.target_storage_class = Some("true".parse().unwrap());
    settings.target_image =
        serde_json::from_value(json!("registry:5000/own/postgresql:17.11@sha256:01")).unwrap();
    settings.adopt_image = serde_json::from_value(json!("registry:5000/a\"b")).unwrap();
    settings.archive_restart = ArchiveRestart::BeforeTraffic;
    (facts, settings)
}
