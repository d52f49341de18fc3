//! Patroni's configuration as Spilo 4.0 generates it from the environment that the operator 1.15
//! sets.
//!
//! Not imitated: WAL-G, bg_mon, pg_cron, pgextwlist, set_user, pg_stat_kcache, pg_auth_mon,
//! timescaledb and PAM, which this PostgreSQL lacks; `pam_configuration: ""` in the operator's
//! configuration gives the same pg_hba.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Credentials,
    member::MemberLayout,
    options::{Checksums, Dcs, Hashes, SourceOptions},
};

/// The port of PostgreSQL on every member.
pub const POSTGRES_PORT: u16 = 5432;
/// The port of Patroni's REST API on every member.
pub const REST_PORT: u16 = 8008;
/// The value that Spilo computes for a pod with 4 GiB: memory in MB / 30.
const MAX_CONNECTIONS: u32 = 136;

/// The content of a member's postgres.yml (JSON is YAML). `spec.patroni.pg_hba` replaces Spilo's
/// list when it is not empty.
pub(super) fn configuration(
    options: &SourceOptions,
    layout: &MemberLayout,
    credentials: &Credentials,
    requested_pg_hba: &[String],
    postgres_bin: &Path,
) -> Value {
    let (address, home) = (layout.address, layout.home.display());
    let password = |user: &str, password: &str| json!({"username": user, "password": password});
    json!({
        "scope": options.cluster, "name": layout.name,
        "restapi": {
            "listen": format!("{address}:{REST_PORT}"),
            "connect_address": format!("{address}:{REST_PORT}")
        },
        "kubernetes": kubernetes(options, layout),
        "bootstrap": {
            "dcs": dynamic(options), "initdb": initdb(options),
            "post_init": format!(
                "{} -X -q -v ON_ERROR_STOP=1 -f {home}/post_init.sql",
                postgres_bin.join("psql").display()
            ),
        },
        "postgresql": {
            "use_unix_socket": true, "use_unix_socket_repl": true,
            "listen": format!("{address}:{POSTGRES_PORT}"),
            "connect_address": format!("{address}:{POSTGRES_PORT}"),
            "data_dir": layout.data, "bin_dir": postgres_bin, "pgpass": format!("{home}/pgpass"),
            "parameters": local_parameters(layout),
            "pg_hba": pg_hba(layout, requested_pg_hba),
            "authentication": {
                "superuser": password("postgres", &credentials.postgres),
                "replication": password("standby", &credentials.standby),
            },
            "create_replica_methods": ["basebackup"], "basebackup": {"checkpoint": "fast"},
        },
    })
}

fn kubernetes(options: &SourceOptions, layout: &MemberLayout) -> Value {
    let mut section = json!({
        "context": "local", "namespace": options.namespace, "labels": {"application": "spilo"},
        "scope_label": "cluster-name", "role_label": "spilo-role", "leader_label_value": "master",
        "standby_leader_label_value": "master",
    });
    if options.dcs == Dcs::Endpoints {
        section["use_endpoints"] = true.into();
        section["pod_ip"] = layout.kubernetes_address.to_string().into();
        section["ports"] = json!([{"port": POSTGRES_PORT, "name": "postgresql"}]);
    }
    section
}

/// The initial dynamic configuration (Spilo's template, docs/operators/zalando.md).
fn dynamic(options: &SourceOptions) -> Value {
    json!({
        "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 33_554_432,
        "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": {
            "archive_mode": "on", "archive_timeout": "1800s", "wal_level": options.wal_level,
            "wal_log_hints": "on", "wal_compression": "on",
            "max_wal_senders": 10, "max_connections": MAX_CONNECTIONS, "max_replication_slots": 10,
            "hot_standby": "on",
            "tcp_keepalives_idle": 900, "tcp_keepalives_interval": 100, "log_statement": "ddl",
            "log_min_duration_statement": 500,
            "log_connections": "on", "log_disconnections": "on", "track_functions": "all",
            "autovacuum_max_workers": 5,
        }},
    })
}

/// The operator replaces the whole list, so Spilo's encoding, locale and checksums settings are
/// lost. `auth-host: md5` makes initdb write `password_encryption = md5` into the file that becomes
/// postgresql.base.conf.
pub(super) fn initdb(options: &SourceOptions) -> Value {
    let host = match options.hashes {
        Hashes::Md5 => "md5",
        Hashes::Scram => "scram-sha-256",
    };
    let mut list = vec![json!({"auth-host": host}), json!({"auth-local": "trust"})];
    if options.checksums == Checksums::On {
        list.push("data-checksums".into());
    }
    list.into()
}

fn local_parameters(layout: &MemberLayout) -> Value {
    let tls = &layout.tls;
    let mut parameters = json!({
        "archive_command": "/bin/true", "shared_buffers": "128MB",
        "logging_collector": "on", "log_destination": "csvlog", "log_directory": "../pg_log",
        "log_filename": "postgresql-%u.log",
        "log_file_mode": "0644", "log_rotation_age": "1d", "log_truncate_on_rotation": "on",
        "ssl": "on", "ssl_cert_file": tls.join("tls.crt"), "ssl_key_file": tls.join("tls.key"),
        "shared_preload_libraries": "pg_stat_statements", "unix_socket_directories": layout.socket,
    });
    if layout.has_ca {
        parameters["ssl_ca_file"] = tls.join("ca.crt").display().to_string().into();
    }
    parameters
}

fn pg_hba(layout: &MemberLayout, requested: &[String]) -> Vec<String> {
    let default = DEFAULT_PG_HBA.map(String::from);
    let lines = if requested.is_empty() {
        &default
    } else {
        requested
    };
    lines.iter().map(|line| local_line(line, layout)).collect()
}

/// Spilo's list without the PAM lines.
const DEFAULT_PG_HBA: [&str; 7] = [
    "local   all             all                                   trust",
    "host    all             all                127.0.0.1/32       md5",
    "host    all             all                ::1/128            md5",
    "local   replication     standby                    trust",
    "hostssl replication     standby all                md5",
    "hostnossl all           all                all                reject",
    "hostssl all             all                all                md5",
];

/// In a pod 127.0.0.1 is the pod itself; here it is the address of every client, which would be
/// admitted without TLS.
fn local_line(line: &str, layout: &MemberLayout) -> String {
    line.replace("127.0.0.1/32", &format!("{}/32", layout.address))
}

/// The result of Spilo's post_init.sh as far as this PostgreSQL supports it: the operator's roles,
/// and in every database (template1 included) a metrics schema over pg_stat_statements.
pub(super) const POST_INIT: &str = concat!(
    "create role admin createdb nologin;\n",
    "create role cron_admin nologin;\n",
    "create role zalandos createdb nologin;\n",
    "create role robot_zmon nologin;\n",
    "grant cron_admin to admin;\n",
    "\\set in_every_database '",
    "create extension pg_stat_statements schema public; ",
    "create schema user_management; create schema metric_helpers; ",
    "create view metric_helpers.pg_stat_statements as select * from public.pg_stat_statements; ",
    "grant usage on schema metric_helpers to admin, robot_zmon; ",
    "grant select on metric_helpers.pg_stat_statements to admin, robot_zmon;'\n",
    ":in_every_database\n",
    "\\connect template1\n",
    ":in_every_database\n",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> MemberLayout {
        MemberLayout::new(
            "c-0",
            [127, 1, 2, 11].into(),
            [10, 1, 2, 11].into(),
            Path::new("/h"),
            false,
        )
    }

    #[test]
    fn no_client_outside_of_the_pod_is_admitted_without_tls() {
        let lines = pg_hba(&layout(), &[]);
        assert!(lines.iter().all(|line| !line.contains("127.0.0.1")));
        assert!(lines[1].contains("127.1.2.11/32"));
    }

    #[test]
    fn the_resource_replaces_the_whole_list_and_configmaps_need_no_address() {
        let options = SourceOptions {
            dcs: Dcs::ConfigMaps,
            ..Default::default()
        };
        let made = configuration(
            &options,
            &layout(),
            &Credentials::default(),
            &["local all all trust".into()],
            Path::new("/bin"),
        );
        assert_eq!(made["postgresql"]["pg_hba"], json!(["local all all trust"]));
        assert_eq!(made["kubernetes"].get("pod_ip"), None);
    }
}
