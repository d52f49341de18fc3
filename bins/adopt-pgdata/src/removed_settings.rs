//! The settings of the source that must not be active at the target, each with its reason.

/// Why a setting of the source is removed from the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A path or program of the source's container. Without it the server does not start (`FATAL:
    /// could not load …/pg_hba.conf`).
    SourcePath,
    /// How a member of the source follows its leader or recovers. CloudNativePG does not write the
    /// settings that it does not use, such as the slot, so the source's value would stay in effect.
    Standby,
    /// Blocks writes: after the promotion commits would wait for members of the source, or fail in
    /// read-only transactions.
    Writes,
    /// Patroni passes its own value on the command line, so ALTER SYSTEM had no effect at the
    /// source; at the target it would have.
    NotInEffect,
    /// The Cluster manifest sets it, and postgresql.auto.conf would override the manifest
    /// (password_encryption: CloudNativePG's last pg_hba line rejects md5). It may stay in
    /// postgresql.base.conf, where Spilo's `auth-host: md5` puts it, because the server reads
    /// custom.conf later.
    Manifest,
    /// CloudNativePG sets it or forbids it (its pkg/postgres/configuration.go,
    /// FixedConfigurationParameters).
    Operator,
}

impl Reason {
    /// For the log.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::SourcePath => "refers to a path or program of the source's container",
            Self::Standby => "controls how the source recovers or follows its leader",
            Self::Writes => "would block writes after the promotion",
            Self::NotInEffect => {
                "had no effect at the source, where Patroni sets it on the command line"
            }
            Self::Manifest => "is set by the Cluster manifest",
            Self::Operator => "is set by CloudNativePG",
        }
    }
}

use Reason::{Manifest, NotInEffect, Operator, SourcePath, Standby, Writes};

/// Removed from every file: settings that CloudNativePG's custom.conf and override.conf, which are
/// included later, do not set.
const IN_ANY_FILE: &[(&str, Reason)] = &[
    ("config_file", SourcePath),
    ("data_directory", SourcePath),
    ("external_pid_file", SourcePath),
    ("hba_file", SourcePath),
    ("ident_file", SourcePath),
    // Files and names for TLS and sockets that CloudNativePG never overrides. The server does not
    // start if one is missing.
    ("krb_server_keyfile", SourcePath),
    ("ssl_crl_dir", SourcePath),
    ("ssl_crl_file", SourcePath),
    ("ssl_dh_params_file", SourcePath),
    ("ssl_passphrase_command", SourcePath),
    ("ssl_passphrase_command_supports_reload", SourcePath),
    ("unix_socket_group", SourcePath),
    // The server does not archive if both this and CloudNativePG's archive_command are set.
    ("archive_library", SourcePath),
    ("archive_cleanup_command", Standby),
    ("primary_conninfo", Standby),
    ("primary_slot_name", Standby),
    ("promote_trigger_file", Standby),
    ("recovery_end_command", Standby),
    ("recovery_min_apply_delay", Standby),
    ("recovery_target", Standby),
    ("recovery_target_action", Standby),
    ("recovery_target_inclusive", Standby),
    ("recovery_target_lsn", Standby),
    ("recovery_target_name", Standby),
    ("recovery_target_time", Standby),
    ("recovery_target_timeline", Standby),
    ("recovery_target_xid", Standby),
    ("restore_command", Standby),
    // Blocks writes at the source: the copy may have been made during a block, or after one that
    // was never removed.
    ("default_transaction_read_only", Writes),
    // Patroni's synchronous_mode writes the names of the source's members. CloudNativePG overrides
    // them only if it has names of its own.
    ("synchronous_standby_names", Writes),
    ("synchronized_standby_slots", Writes),
];

/// Removed from postgresql.auto.conf only, which overrides every file of CloudNativePG.
const IN_AUTO_CONF: &[(&str, Reason)] = &[
    // Patroni's patroni/postgresql/config.py, CMDLINE_OPTIONS. They include those that a standby
    // needs at least as large as its primary.
    ("cluster_name", NotInEffect),
    ("hot_standby", NotInEffect),
    ("listen_addresses", NotInEffect),
    ("max_connections", NotInEffect),
    ("max_locks_per_transaction", NotInEffect),
    ("max_prepared_transactions", NotInEffect),
    ("max_replication_slots", NotInEffect),
    ("max_wal_senders", NotInEffect),
    ("max_worker_processes", NotInEffect),
    ("port", NotInEffect),
    ("track_commit_timestamp", NotInEffect),
    ("wal_level", NotInEffect),
    ("wal_log_hints", NotInEffect),
    ("password_encryption", Manifest),
    ("allow_system_table_mods", Operator),
    ("archive_command", Operator),
    ("archive_mode", Operator),
    ("bonjour", Operator),
    ("bonjour_name", Operator),
    ("data_sync_retry", Operator),
    ("event_source", Operator),
    ("jit_provider", Operator),
    ("log_destination", Operator),
    ("log_directory", Operator),
    ("log_file_mode", Operator),
    ("log_filename", Operator),
    ("log_rotation_age", Operator),
    ("log_rotation_size", Operator),
    ("log_truncate_on_rotation", Operator),
    ("logging_collector", Operator),
    ("restart_after_crash", Operator),
    ("shared_preload_libraries", Operator),
    ("ssl", Operator),
    ("ssl_ca_file", Operator),
    ("ssl_cert_file", Operator),
    ("ssl_key_file", Operator),
    ("ssl_prefer_server_ciphers", Operator),
    ("syslog_facility", Operator),
    ("syslog_ident", Operator),
    ("syslog_sequence_numbers", Operator),
    ("syslog_split_messages", Operator),
    ("temp_tablespaces", Operator),
    ("unix_socket_directories", Operator),
    ("unix_socket_permissions", Operator),
];

/// Why `name` is removed from postgresql.conf and the source's files that it includes; None when it
/// is kept.
pub(crate) fn in_any_file(name: &str) -> Option<Reason> {
    look_up(IN_ANY_FILE, name)
}

/// Why `name` is removed from postgresql.auto.conf; None when it is kept.
pub(crate) fn in_auto_conf(name: &str) -> Option<Reason> {
    in_any_file(name).or_else(|| look_up(IN_AUTO_CONF, name))
}

fn look_up(list: &[(&str, Reason)], name: &str) -> Option<Reason> {
    list.iter()
        .find(|(removed, _)| *removed == name)
        .map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cloudnativepg_overrides_are_removed_only_from_auto_conf() {
        assert_eq!(in_any_file("max_connections"), None);
        assert_eq!(in_auto_conf("max_connections"), Some(NotInEffect));
        assert_eq!(in_auto_conf("hba_file"), Some(SourcePath));
    }

    #[test]
    fn tuning_parameters_are_kept() {
        for name in [
            "work_mem",
            "shared_buffers",
            "wal_keep_size",
            "recovery_prefetch",
        ] {
            assert_eq!(in_auto_conf(name), None, "{name}");
        }
    }

    #[test]
    fn no_setting_is_listed_twice() {
        let mut names: Vec<&str> = IN_ANY_FILE
            .iter()
            .chain(IN_AUTO_CONF)
            .map(|(name, _)| *name)
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
