//! The PostgreSQL parameters of the source that go into the manifest.
//!
//! The copied postgresql.conf of Patroni has them, too, but nothing shows them there, and they are
//! lost with that file. In the manifest they are visible, and they stay.

use std::collections::BTreeMap;

use crate::{facts::Facts, image::Image};

/// Parameters for which a standby needs at least the value of its primary (PostgreSQL
/// documentation, *Hot Standby*). The target follows the source, and the source may follow the
/// target after the cutover, so both have the same values.
pub const HOT_STANDBY: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Parameters that CloudNativePG fixes (docs/operators/cloudnative-pg.md) and that would break the
/// target if ALTER SYSTEM has set them at the source.
#[rustfmt::skip]
pub const FIXED: &[&str] = &[
    "allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_mode",
    "cluster_name", "config_file", "data_directory", "data_sync_retry", "event_source",
    "external_pid_file", "hba_file", "hot_standby", "ident_file", "jit_provider",
    "listen_addresses", "log_destination", "log_directory", "log_file_mode", "log_filename",
    "log_rotation_age", "log_rotation_size", "log_truncate_on_rotation", "logging_collector",
    "port", "primary_conninfo", "primary_slot_name", "promote_trigger_file", "recovery_end_command",
    "recovery_min_apply_delay", "recovery_target", "recovery_target_action",
    "recovery_target_inclusive", "recovery_target_lsn", "recovery_target_name",
    "recovery_target_time", "recovery_target_timeline", "recovery_target_xid",
    "restart_after_crash", "restore_command", "shared_preload_libraries", "ssl", "ssl_ca_file",
    "ssl_cert_file", "ssl_ciphers_file", "ssl_crl_dir", "ssl_crl_file", "ssl_dh_params_file",
    "ssl_ecdh_curve", "ssl_key_file", "ssl_passphrase_command",
    "ssl_passphrase_command_supports_reload", "ssl_prefer_server_ciphers", "stats_temp_directory",
    "synchronized_standby_slots", "synchronous_standby_names", "syslog_facility", "syslog_ident",
    "syslog_sequence_numbers", "syslog_split_messages", "temp_tablespaces",
    "unix_socket_directories", "unix_socket_group", "unix_socket_permissions",
];

/// Parameters that are tuned for a workload or an application. Logging parameters that only Spilo
/// needs are not included.
#[rustfmt::skip]
const TUNING: &[&str] = &[
    // memory and disk
    "autovacuum_work_mem", "effective_cache_size", "effective_io_concurrency",
    "hash_mem_multiplier", "huge_pages", "logical_decoding_work_mem", "maintenance_io_concurrency",
    "maintenance_work_mem", "shared_buffers", "temp_buffers", "temp_file_limit", "wal_buffers",
    "work_mem",
    // planner
    "constraint_exclusion", "cpu_index_tuple_cost", "cpu_operator_cost", "cpu_tuple_cost",
    "cursor_tuple_fraction", "default_statistics_target", "enable_partitionwise_aggregate",
    "enable_partitionwise_join", "from_collapse_limit", "geqo_threshold", "jit", "jit_above_cost",
    "join_collapse_limit", "min_parallel_index_scan_size", "min_parallel_table_scan_size",
    "parallel_setup_cost", "parallel_tuple_cost", "plan_cache_mode", "random_page_cost",
    "seq_page_cost",
    // workers, autovacuum, background writer
    "autovacuum", "autovacuum_analyze_scale_factor", "autovacuum_analyze_threshold",
    "autovacuum_freeze_max_age", "autovacuum_max_workers", "autovacuum_multixact_freeze_max_age",
    "autovacuum_naptime", "autovacuum_vacuum_cost_delay", "autovacuum_vacuum_cost_limit",
    "autovacuum_vacuum_insert_scale_factor", "autovacuum_vacuum_insert_threshold",
    "autovacuum_vacuum_scale_factor", "autovacuum_vacuum_threshold", "bgwriter_delay",
    "bgwriter_lru_maxpages", "bgwriter_lru_multiplier", "max_parallel_maintenance_workers",
    "max_parallel_workers", "max_parallel_workers_per_gather", "vacuum_cost_delay",
    "vacuum_cost_limit", "vacuum_failsafe_age", "vacuum_freeze_min_age", "vacuum_freeze_table_age",
    // WAL and checkpoints
    "checkpoint_completion_target", "checkpoint_timeout", "commit_delay", "commit_siblings",
    "max_slot_wal_keep_size", "max_wal_size", "min_wal_size", "synchronous_commit",
    "wal_compression", "wal_writer_delay",
    // queries on a standby
    "max_standby_archive_delay", "max_standby_streaming_delay",
    // what an application may rely on
    "DateStyle", "IntervalStyle", "TimeZone", "bytea_output", "deadlock_timeout",
    "default_text_search_config", "default_transaction_isolation",
    "idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout",
    "max_files_per_process", "max_pred_locks_per_transaction", "max_stack_depth", "search_path",
    "statement_timeout", "transaction_timeout", "tcp_keepalives_count", "tcp_keepalives_idle",
    "tcp_keepalives_interval", "client_connection_check_interval", "track_commit_timestamp",
    // observation
    "log_autovacuum_min_duration", "log_checkpoints", "log_lock_waits",
    "log_min_duration_statement", "log_temp_files", "track_activity_query_size", "track_functions",
    "track_io_timing", "track_wal_io_timing",
];

/// CloudNativePG's default of archive_timeout, 5min.
const ARCHIVE_TIMEOUT_SECONDS_DEFAULT: u64 = 300;

/// Prefixes of parameters whose presence makes CloudNativePG load their library
/// (docs/operators/cloudnative-pg.md).
const MANAGED_PREFIXES: [&str; 3] = ["pg_stat_statements.", "auto_explain.", "pgaudit."];

/// The parameters of [`HOT_STANDBY`], with the source's values.
pub fn hot_standby(facts: &Facts) -> BTreeMap<&'static str, String> {
    HOT_STANDBY
        .into_iter()
        .map(|name| (name, facts.number(name).to_string()))
        .collect()
}

/// The parameters of [`TUNING`] that the source sets to another value than PostgreSQL's default.
pub fn tuning(facts: &Facts) -> BTreeMap<&str, &str> {
    let tuned = facts.settings.iter().filter(|(name, setting)| {
        let configured = matches!(
            setting.source.as_str(),
            "configuration file" | "command line" | "environment variable"
        );
        configured
            && !setting.raw.eq_ignore_ascii_case(&setting.boot)
            && TUNING
                .iter()
                .any(|tuning| tuning.eq_ignore_ascii_case(name))
    });
    tuned
        .map(|(name, setting)| (name.as_str(), setting.value.as_str()))
        .chain(archive_timeout(facts))
        .collect()
}

/// The source's archive_timeout where it loses less than CloudNativePG's default.
fn archive_timeout(facts: &Facts) -> Option<(&str, &str)> {
    let seconds = facts.number("archive_timeout");
    let shorter = (1..ARCHIVE_TIMEOUT_SECONDS_DEFAULT).contains(&seconds);
    shorter.then(|| ("archive_timeout", facts.setting("archive_timeout")))
}

/// The source's parameters of libraries that CloudNativePG manages, except those of libraries that
/// the image lacks: with these the server would not start.
///
/// If a managed extension is installed but none of its parameters is set, one is added with its
/// current value or its default: without any, CloudNativePG drops the extension after the
/// promotion, or cannot complete the promotion if another object depends on it.
pub fn managed(facts: &Facts, image: &Image) -> BTreeMap<String, String> {
    let missing =
        |name: &str| name.starts_with("pgaudit.") && image.has_extension("pgaudit") == Some(false);
    let configured = facts.settings.iter().filter(|(name, setting)| {
        let in_scope = MANAGED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
            && !missing(name);
        in_scope && setting.source == "configuration file" && setting.raw != setting.boot
    });
    let mut managed: BTreeMap<String, String> = configured
        .map(|(name, setting)| (name.clone(), setting.value.clone()))
        .collect();
    let installed = |name: &str| {
        facts.databases.iter().any(|database| {
            database
                .extensions
                .iter()
                .any(|extension| extension == name)
        })
    };
    for (extension, parameter, default) in [
        ("pg_stat_statements", "pg_stat_statements.track", "top"),
        ("pgaudit", "pgaudit.log", "none"),
    ] {
        if installed(extension)
            && !missing(parameter)
            && !managed
                .keys()
                .any(|name| name.starts_with(&format!("{extension}.")))
        {
            let value = Some(facts.setting(parameter))
                .filter(|value| !value.is_empty())
                .unwrap_or(default);
            managed.insert(parameter.into(), value.into());
        }
    }
    managed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn tuning_contains_no_fixed_and_no_hot_standby_parameter() {
        for name in TUNING {
            assert!(!FIXED.contains(name), "{name}");
            assert!(!HOT_STANDBY.contains(name), "{name}");
        }
    }

    #[test]
    fn values_other_than_the_default_are_kept_unless_only_this_session_has_them() {
        let mut facts = fixture::facts();
        let mut set = |name: &str, value: &str, raw: &str, boot: &str, source: &str| {
            fixture::set(&mut facts, name, value, raw, boot, source)
        };
        set("work_mem", "16MB", "16384", "4096", "configuration file");
        set("random_page_cost", "4", "4", "4", "configuration file");
        set("statement_timeout", "30s", "30000", "0", "client");
        set(
            "DateStyle",
            "ISO, MDY",
            "iso, mdy",
            "ISO, MDY",
            "configuration file",
        );
        let kept = tuning(&facts);
        assert_eq!(kept.get("work_mem"), Some(&"16MB"));
        for name in [
            "random_page_cost",
            "statement_timeout",
            "DateStyle",
            "log_statement",
        ] {
            assert!(!kept.contains_key(name), "{name}");
        }
    }

    #[test]
    fn an_installed_managed_extension_always_gets_a_parameter() {
        let (mut facts, image) = (
            fixture::facts(),
            Image::parse("postgresql:17.6-minimal-trixie").unwrap(),
        );
        facts
            .settings
            .retain(|name, _| !name.starts_with("pg_stat_statements."));
        facts.databases[0].extensions = vec!["pg_stat_statements".into()];
        assert_eq!(
            managed(&facts, &image)
                .get("pg_stat_statements.track")
                .map(String::as_str),
            Some("top")
        );
        facts
            .databases
            .iter_mut()
            .for_each(|database| database.extensions.clear());
        assert!(managed(&facts, &image).is_empty());
        facts.databases[0].extensions = vec!["pgaudit".into()];
        assert!(
            managed(&facts, &image).is_empty(),
            "a minimal image has no pgaudit"
        );
        fixture::set(
            &mut facts,
            "pg_stat_statements.max",
            "10000",
            "10000",
            "5000",
            "configuration file",
        );
        assert_eq!(
            managed(&facts, &image)
                .get("pg_stat_statements.max")
                .map(String::as_str),
            Some("10000")
        );
    }
}
