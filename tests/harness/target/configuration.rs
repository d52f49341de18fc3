//! PostgreSQL's configuration files as CNPG writes them (pkg/postgres/configuration.go,
//! pkg/management/postgres/configuration.go, pkg/configfile). Pure.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use kube::ResourceExt;

use super::cluster::Cluster;

/// GUCs by name.
pub type Parameters = BTreeMap<String, String>;

/// Defaults of a Cluster; the webhook also writes them into the spec.
const DEFAULTS: [(&str, &str); 22] = [
    ("archive_timeout", "5min"),
    ("dynamic_shared_memory_type", "posix"),
    ("full_page_writes", "on"),
    ("logging_collector", "on"),
    ("log_destination", "csvlog"),
    ("log_directory", "/controller/log"),
    ("log_filename", "postgres"),
    ("log_rotation_age", "0"),
    ("log_rotation_size", "0"),
    ("log_truncate_on_rotation", "false"),
    ("max_parallel_workers", "32"),
    ("max_replication_slots", "32"),
    ("max_worker_processes", "32"),
    ("shared_memory_type", "mmap"),
    ("shared_preload_libraries", ""),
    ("ssl_max_protocol_version", "TLSv1.3"),
    ("ssl_min_protocol_version", "TLSv1.3"),
    ("wal_keep_size", "512MB"),
    ("wal_level", "logical"),
    ("wal_log_hints", "on"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
];

/// Settings that a spec cannot change: the webhook refuses them, custom.conf omits them.
const FIXED: &str = " allow_system_table_mods archive_mode bonjour bonjour_name cluster_name \
    config_file data_directory \
    data_sync_retry event_source external_pid_file hba_file hot_standby ident_file jit_provider \
    listen_addresses \
    logging_collector port primary_conninfo primary_slot_name recovery_target \
    recovery_target_action \
    recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time \
    recovery_target_timeline \
    recovery_target_xid restore_command shared_preload_libraries temp_tablespaces \
    unix_socket_directories \
    unix_socket_group unix_socket_permissions archive_cleanup_command archive_command \
    log_destination log_directory \
    log_file_mode log_filename log_rotation_age log_rotation_size log_truncate_on_rotation \
    promote_trigger_file \
    recovery_end_command recovery_min_apply_delay restart_after_crash ssl ssl_ca_file \
    ssl_cert_file ssl_crl_file \
    ssl_dh_params_file ssl_ecdh_curve ssl_key_file ssl_passphrase_command \
    ssl_passphrase_command_supports_reload \
    ssl_prefer_server_ciphers stats_temp_directory synchronous_standby_names \
    synchronized_standby_slots syslog_facility \
    syslog_ident syslog_sequence_numbers syslog_split_messages ";

/// Extensions that CNPG creates or drops depending on GUCs of their namespace
/// (configuration.go:460); `auto_explain` and `pg_failover_slots` are libraries only.
const MANAGED: [(&str, Create); 4] = [
    ("pgaudit", Create::Yes),
    ("pg_stat_statements", Create::Yes),
    ("auto_explain", Create::No),
    ("pg_failover_slots", Create::No),
];

#[derive(Clone, Copy, PartialEq)]
enum Create {
    Yes,
    No,
}

/// A managed extension as the spec requires it.
pub struct ManagedExtension {
    /// Name of the extension, its library and its GUCs' namespace.
    pub name: &'static str,
    /// Whether the spec has a GUC of its namespace.
    pub used: bool,
    /// Whether it is created when used, not only loaded.
    pub created: bool,
}

/// All managed extensions as this spec requires them.
pub fn managed_extensions(parameters: &Parameters) -> impl Iterator<Item = ManagedExtension> {
    MANAGED.into_iter().map(|(name, create)| {
        let namespace = format!("{name}.");
        ManagedExtension {
            name,
            used: parameters.keys().any(|key| key.starts_with(&namespace)),
            created: create == Create::Yes,
        }
    })
}

/// `spec.postgresql.parameters` after the defaulting webhook.
pub fn defaulted(cluster: &Cluster) -> Parameters {
    let mut parameters = owned(DEFAULTS);
    parameters.extend(cluster.spec.postgresql.parameters.clone());
    parameters.insert("archive_mode".into(), cluster.archive_mode().into());
    parameters
}

/// The instance's files on this machine, instead of /controller.
pub struct Paths<'a> {
    /// The directory of certificates, logs and the socket.
    pub controller: &'a Path,
    /// The pod's address.
    pub address: std::net::Ipv4Addr,
}

/// The content of custom.conf.
pub fn custom_conf(cluster: &Cluster, paths: &Paths<'_>) -> String {
    let spec = &cluster.spec.postgresql;
    let mut parameters = owned(DEFAULTS);
    let free = spec
        .parameters
        .iter()
        .filter(|(name, _)| !FIXED.contains(&format!(" {name} ")));
    parameters.extend(free.map(|(name, value)| (name.clone(), value.clone())));
    let file = |name: &str| paths.controller.join(name).display().to_string();
    let mut set = |name: &str, value: &str| parameters.insert(name.into(), value.into());
    set("archive_command", ARCHIVE_COMMAND);
    set("hot_standby", "true");
    set("listen_addresses", &paths.address.to_string());
    set("log_directory", &file("log"));
    set("port", "5432");
    set("restart_after_crash", "false");
    set("ssl", "on");
    set("ssl_ca_file", &file("certificates/client-ca.crt"));
    set("ssl_cert_file", &file("certificates/server.crt"));
    set("ssl_key_file", &file("certificates/server.key"));
    set("unix_socket_directories", &file("run"));
    // Before 17 CloudNativePG makes postgresql.auto.conf read-only instead.
    if cluster.spec.major_version() >= 17 {
        let allowed = if spec.enable_alter_system {
            "on"
        } else {
            "off"
        };
        set("allow_alter_system", allowed);
    }
    set("archive_mode", cluster.archive_mode());
    set("cluster_name", &cluster.name_any());
    let managed = managed_extensions(&spec.parameters)
        .filter(|extension| extension.used)
        .map(|extension| extension.name.to_owned());
    let mut libraries = spec.shared_preload_libraries.clone();
    libraries.extend(managed);
    set("shared_preload_libraries", &libraries.join(","));
    let text = render(&parameters);
    let hash: String = openssl::sha::sha256(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{text}cnpg.config_sha256 = '{hash}'\n")
}

/// CNPG's archive command without a store logs that there is none after about 100 ms, and succeeds.
const ARCHIVE_COMMAND: &str = "sleep 0.1";
/// CNPG's restore command without a store fails after about 100 ms, and streaming is tried.
const RESTORE_COMMAND: &str = "sleep 0.1; false";

/// The content of override.conf for a designated primary: no slot, and nothing added to the
/// conninfo.
pub fn override_conf(conninfo: &str) -> String {
    render(&owned([
        ("primary_conninfo", conninfo),
        ("recovery_target_timeline", "latest"),
        ("restore_command", RESTORE_COMMAND),
    ]))
}

/// The content of pg_hba.conf (configuration.go:98). For peer authentication see [`pg_ident`].
pub fn pg_hba(rules: &[String]) -> String {
    let mut text = String::from(
        "\n#\n# FIXED RULES\n#\n\n\
        # Grant local access ('local' user map)\n\
        local all cnpg_metrics_exporter peer map=cnpg_metrics_exporter\n\
        local all all peer map=local\n\n\
        # Require client certificate authentication for the streaming_replica user\n\
        hostssl postgres streaming_replica all cert map=cnpg_streaming_replica\n\
        hostssl replication streaming_replica all cert map=cnpg_streaming_replica\n\
        hostssl all cnpg_pooler_pgbouncer all cert map=cnpg_pooler_pgbouncer\n\n\
        #\n# USER-DEFINED RULES\n#\n\n",
    );
    for rule in rules {
        let _ = writeln!(text, "{rule}");
    }
    text.push_str("\n#\n# DEFAULT RULES\n#\nhost all all all scram-sha-256\n");
    text
}

/// The content of pg_ident.conf. `users` are the operating system's users in place of the pod's
/// user.
pub fn pg_ident(users: &[String], rules: &[String]) -> String {
    let mut text = String::from("\n#\n# FIXED RULES\n#\n\n");
    for user in users {
        let _ = writeln!(
            text,
            "local {user} postgres\ncnpg_metrics_exporter {user} cnpg_metrics_exporter"
        );
    }
    text.push_str("cnpg_streaming_replica streaming_replica streaming_replica\n");
    text.push_str(
        "cnpg_pooler_pgbouncer cnpg_pooler_pgbouncer cnpg_pooler_pgbouncer\n\n#\n# \
        USER-DEFINED RULES\n#\n\n",
    );
    for rule in rules {
        let _ = writeln!(text, "{rule}");
    }
    text
}

/// postgresql.conf with both includes appended once (pkg/configfile/configfile.go,
/// `EnsureIncludes`); the rest stays as the source left it.
pub fn with_includes(text: &str) -> String {
    let mut text = text.to_owned();
    for file in ["custom.conf", "override.conf"] {
        let line = format!("include '{file}'");
        if !text.lines().any(|existing| existing.trim() == line) {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let _ = writeln!(text, "\n# load CloudNativePG {file} configuration\n{line}");
        }
    }
    text
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> Parameters {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn render(parameters: &Parameters) -> String {
    let quoted = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('\'', "''")
            .replace('\n', "\\n")
            .replace('\t', "\\t")
    };
    parameters
        .iter()
        .fold(String::new(), |mut text, (name, value)| {
            let _ = writeln!(text, "{name} = '{}'", quoted(value));
            text
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(parameters: serde_json::Value) -> Cluster {
        let object = json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
            "metadata": {"name": "database"},
            "spec": {
                "postgresql": {"parameters": parameters},
                "replica": {"source": "z", "enabled": true}
            }
        });
        serde_json::from_value(object).unwrap()
    }

    fn conf(parameters: serde_json::Value) -> String {
        custom_conf(
            &cluster(parameters),
            &Paths {
                controller: Path::new("/c"),
                address: [127, 1, 2, 21].into(),
            },
        )
    }

    #[test]
    fn the_spec_overrides_defaults_but_not_fixed_settings() {
        let text = conf(json!({
            "wal_keep_size": "1GB", "archive_mode": "off", "log_directory": "/x", "ssl": "off",
            "work_mem": "4MB"
        }));
        for line in [
            "wal_keep_size = '1GB'",
            "archive_mode = 'always'",
            "log_directory = '/c/log'",
            "ssl = 'on'",
            "work_mem = '4MB'",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(
            text.contains("shared_preload_libraries = ''\n"),
            "Spilo's libraries must not be loaded"
        );
    }

    #[test]
    fn a_gucs_namespace_loads_its_library() {
        assert!(
            conf(json!({"pg_stat_statements.track": "top"}))
                .contains("shared_preload_libraries = 'pg_stat_statements'\n")
        );
    }

    #[test]
    fn the_webhook_shows_its_defaults_in_the_spec() {
        let parameters = defaulted(&cluster(json!({"max_connections": "136"})));
        assert_eq!(parameters["max_connections"], "136");
        assert_eq!(parameters["archive_mode"], "always");
        assert_eq!(parameters["wal_receiver_timeout"], "5s");
        assert_eq!(parameters["log_directory"], "/controller/log");
    }

    #[test]
    fn includes_are_appended_once_and_keep_what_is_there() {
        let once = with_includes("hba_file = '/home/postgres/pg_hba.conf'");
        assert!(once.starts_with("hba_file = '/home/postgres/pg_hba.conf'\n"));
        assert!(once.find("custom.conf'").unwrap() < once.find("include 'override.conf'").unwrap());
        assert_eq!(with_includes(&once), once);
    }

    #[test]
    fn rules_of_the_spec_stand_between_the_fixed_and_the_default_ones() {
        let text = pg_hba(&["hostssl replication standby all md5".into()]);
        let place = |part: &str| text.find(part).unwrap();
        assert!(place("cnpg_pooler_pgbouncer all cert") < place("replication standby"));
        assert!(place("replication standby") < place("host all all all scram-sha-256"));
    }

    #[test]
    fn values_are_quoted_for_the_configuration_files() {
        assert!(
            override_conf("host='db' passfile='/x'")
                .contains("primary_conninfo = 'host=''db'' passfile=''/x'''\n")
        );
        assert!(!override_conf("").contains("slot"));
    }
}
