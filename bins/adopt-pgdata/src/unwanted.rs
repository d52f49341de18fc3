//! What must not arrive at the target, and why.

/// Why a setting of the source is unwanted in the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A place in the source's container. The first start fails: `FATAL: could not load
    /// …/pg_hba.conf`.
    Place,
    /// How the source followed its own leader, or was told to recover. CNPG leaves out what it does
    /// not need, such as a slot, so the source's value would stay in force.
    Standby,
    /// Stops or blocks writes: after promotion commits would wait for members of the source, or
    /// fail as read-only.
    Writes,
    /// Patroni hands its own value to the server on the command line, so ALTER SYSTEM had no effect
    /// at the source; here it would.
    NeverInForce,
    /// The Cluster manifest sets it (password_encryption: CNPG's last pg_hba rule refuses md5), and
    /// this file would beat it. In postgresql.base.conf, where Spilo's `auth-host: md5` leaves it,
    /// it may stay: custom.conf is read later.
    Manifest,
    /// CNPG sets it, or forbids it, for itself (pkg/postgres/configuration.go,
    /// FixedConfigurationParameters).
    Operator,
}

impl Reason {
    /// For the log.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Place => "names a place or program of the source's container",
            Self::Standby => "tells how the source recovers or follows its own leader",
            Self::Writes => "would hold up writes after promotion",
            Self::NeverInForce => {
                "was not in force on the source, whose Patroni gives it on the command line"
            }
            Self::Manifest => "is the Cluster manifest's to set",
            Self::Operator => "is the operator's to set",
        }
    }
}

use Reason::{Manifest, NeverInForce, Operator, Place, Standby, Writes};

/// Unwanted wherever it stands: what CNPG's custom.conf and override.conf, which are included
/// later, do not set themselves.
const IN_ANY_FILE: &[(&str, Reason)] = &[
    ("config_file", Place),
    ("data_directory", Place),
    ("external_pid_file", Place),
    ("hba_file", Place),
    ("ident_file", Place),
    // Files and names for TLS and sockets that CNPG never overrides; a missing one ends the start.
    ("krb_server_keyfile", Place),
    ("ssl_crl_dir", Place),
    ("ssl_crl_file", Place),
    ("ssl_dh_params_file", Place),
    ("ssl_passphrase_command", Place),
    ("ssl_passphrase_command_supports_reload", Place),
    ("unix_socket_group", Place),
    // The server refuses to archive when both this and CNPG's archive_command are set.
    ("archive_library", Place),
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
    // A block of writes belongs to the server on which it was set: a clone made during one, or
    // after one that was forgotten.
    ("default_transaction_read_only", Writes),
    // Patroni's synchronous_mode writes the names of the source's members; CNPG overrides them only
    // when it has some of its own.
    ("synchronous_standby_names", Writes),
    ("synchronized_standby_slots", Writes),
];

/// Unwanted in postgresql.auto.conf only, which beats every file of CNPG's.
const IN_AUTO_CONF: &[(&str, Reason)] = &[
    // Patroni, patroni/postgresql/config.py, CMDLINE_OPTIONS. The five that a standby needs as
    // large as its primary are among them.
    ("cluster_name", NeverInForce),
    ("hot_standby", NeverInForce),
    ("listen_addresses", NeverInForce),
    ("max_connections", NeverInForce),
    ("max_locks_per_transaction", NeverInForce),
    ("max_prepared_transactions", NeverInForce),
    ("max_replication_slots", NeverInForce),
    ("max_wal_senders", NeverInForce),
    ("max_worker_processes", NeverInForce),
    ("port", NeverInForce),
    ("track_commit_timestamp", NeverInForce),
    ("wal_level", NeverInForce),
    ("wal_log_hints", NeverInForce),
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

/// Why `name` is unwanted in postgresql.conf and in what it includes from the source.
pub(crate) fn in_any_file(name: &str) -> Option<Reason> {
    look_up(IN_ANY_FILE, name)
}

/// Why `name` is unwanted in postgresql.auto.conf.
pub(crate) fn in_auto_conf(name: &str) -> Option<Reason> {
    in_any_file(name).or_else(|| look_up(IN_AUTO_CONF, name))
}

fn look_up(list: &[(&str, Reason)], name: &str) -> Option<Reason> {
    list.iter()
        .find(|(unwanted, _)| *unwanted == name)
        .map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cnpg_overrides_by_its_own_files_is_unwanted_only_where_it_cannot() {
        assert_eq!(in_any_file("max_connections"), None);
        assert_eq!(in_auto_conf("max_connections"), Some(NeverInForce));
        assert_eq!(in_auto_conf("hba_file"), Some(Place));
    }

    #[test]
    fn tuning_is_kept() {
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
    fn no_name_stands_twice() {
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
