//! The kind and the hint of an error that a PostgreSQL server reported, by its SQLSTATE (PostgreSQL
//! documentation, appendix A), for SQL sessions and for the replication protocol.

use protocol::failure::Failure;

/// Returns the failure for an error that a PostgreSQL server reported. Unlisted codes are
/// Transient.
pub fn classify(sqlstate: &str, message: &str) -> Failure {
    let text = format!("postgresql: {message} (SQLSTATE {sqlstate})");
    match sqlstate {
        // invalid_password
        "28P01" => {
            Failure::config(text).hint("the mounted Secret does not hold this role's password")
        }
        // invalid_authorization_specification
        "28000" => Failure::config(text).hint(
            "the server's pg_hba has no line that admits this role from here, or the role lacks \
             LOGIN or, for a backup, REPLICATION",
        ),
        // invalid_catalog_name
        "3D000" => {
            Failure::config(text).hint("check the database name in the ConfigMap replica-migration")
        }
        // insufficient_privilege
        "42501" => Failure::config(text)
            .hint("the role lacks a privilege; for a backup it needs REPLICATION"),
        // Syntax error or access rule violation.
        code if code.starts_with("42") => Failure::config(text),
        // too_many_connections
        "53300" => Failure::transient(text).hint(
            "the server has no free connection (max_connections; see pg_stat_activity), or for a \
             backup no free walsender (max_wal_senders; see pg_stat_replication)",
        ),
        // configuration_limit_exceeded
        "53400" => Failure::transient(text).hint(
            "the server has no free replication slot (max_replication_slots; see \
             pg_replication_slots)",
        ),
        // 57P03 cannot_connect_now, 57P01 admin_shutdown, 55P03 lock_not_available, 57014
        // query_canceled …
        _ => Failure::transient(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::failure::ErrorKind;

    #[test]
    fn a_server_that_starts_is_transient_and_a_wrong_password_is_not() {
        let starting = classify("57P03", "the database system is starting up");
        assert_eq!(starting.kind, ErrorKind::Transient);
        assert_eq!(starting.hint, None);
        let password = classify("28P01", "password authentication failed for user \"u\"");
        assert_eq!(password.kind, ErrorKind::Config);
        assert_eq!(
            password.message,
            "postgresql: password authentication failed for user \"u\" (SQLSTATE 28P01)"
        );
        assert!(password.hint.is_some());
    }
}
