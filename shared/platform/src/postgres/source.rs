//! What is asked of the source, the server that is left.

use std::ops::Deref;

use secrecy::SecretString;

use super::{Session, identity, lsn};
use job::error::{Context as _, Error, Result};
use protocol::{
    snapshot::source::{ClientSession, PostmasterStart},
    wal::{Identity, Lsn},
};

/// A superuser session to the source's leader.
pub struct Source(pub Session);

impl Deref for Source {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0
    }
}

/// The columns of [`client_session`].
const SESSION: &str =
    "pid, coalesce(usename::text, '') as role, coalesce(application_name, '') as \
    application,
     host(client_addr) as address, extract(epoch from clock_timestamp() - xact_start)::bigint as \
    transaction_s";

fn client_session(row: &tokio_postgres::Row) -> ClientSession {
    ClientSession {
        pid: row.get(0),
        role: row.get(1),
        application_name: row.get(2),
        address: row.get(3),
        transaction_seconds: row.get(4),
    }
}

/// The application_name of a program's sessions: all begin alike, so that no step ends another's.
pub fn application_name(program: &str) -> String {
    format!("replica-migration-{program}")
}

/// Who clients are: not walsenders or workers, not ours, not Patroni's own sessions on the Unix
/// socket.
const CLIENTS: &str = "backend_type = 'client backend' and pid <> pg_backend_pid() and \
    application_name not like 'replica-migration%'
     and not (client_addr is null and application_name like 'Patroni%')";

impl Source {
    /// System identifier, timeline and version.
    ///
    /// # Errors
    /// The database's.
    pub async fn identity(&self) -> Result<Identity> {
        identity(self).await
    }

    /// End of the last WAL record inserted, flushed or not: nothing that was acknowledged lies
    /// behind it, and the target's replay reaches it also when the source writes nothing more.
    ///
    /// # Errors
    /// The database's; it fails on a standby.
    pub async fn insert_lsn(&self) -> Result<Lsn> {
        Ok(lsn(self
            .query_one("select pg_current_wal_insert_lsn()", &[])
            .await
            .context("reading the insert lsn of the source")?
            .get(0))
        .last_record_end())
    }

    /// Writes a marker into the WAL and flushes it: everything before it is on its way to the
    /// target at once.
    ///
    /// [`Source::insert_lsn`] alone is no mark to wait for: WAL that no commit has waited for (hint
    /// bits set by a reader, with wal_log_hints) stays unflushed, and so unsent, until the
    /// walwriter wakes up, after up to 5 s when it slept, or until the next snapshot of running
    /// transactions, after up to 15 s. The message is no change of data: it is allowed in a
    /// read-only transaction, and replaying it does nothing.
    ///
    /// # Errors
    /// The database's; it fails on a standby.
    pub async fn marker(&self) -> Result<Lsn> {
        let row = self
            .query_one(
                "select pg_logical_emit_message(false, 'replica-migration', 'marker', true)",
                &[],
            )
            .await;
        Ok(lsn(row.context("writing a marker at the source")?.get(0)))
    }

    /// Whether new transactions are read-only unless they ask otherwise.
    ///
    /// # Errors
    /// The database's.
    pub async fn read_only_by_default(&self) -> Result<bool> {
        let row = self
            .query_one(
                "select current_setting('default_transaction_read_only')::bool",
                &[],
            )
            .await;
        Ok(row
            .context("reading default_transaction_read_only of the source")?
            .get(0))
    }

    /// The same for a session that is read-only itself, and so does not show it.
    pub async fn read_only_by_default_of_others(&self) -> Result<bool> {
        let row = self
            .query_one(
                "select reset_val::bool from pg_settings where name = \
                 'default_transaction_read_only'",
                &[],
            )
            .await;
        Ok(row
            .context("reading default_transaction_read_only of the source")?
            .get(0))
    }

    /// When this incarnation of the server started, in microseconds since 1970 by its own clock:
    /// two starts never have the same.
    ///
    /// # Errors
    /// The database's.
    pub async fn postmaster_start(&self) -> Result<PostmasterStart> {
        let row = self
            .query_one(
                "select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint",
                &[],
            )
            .await;
        Ok(PostmasterStart(
            row.context("asking when the source was started")?.get(0),
        ))
    }

    /// A fast checkpoint, so that the one of a later stop is short.
    ///
    /// # Errors
    /// The database's.
    pub async fn checkpoint(&self) -> Result<()> {
        self.batch_execute("set statement_timeout = '10min'; checkpoint; reset statement_timeout")
            .await
            .context("checkpoint on the source")
    }

    /// The client sessions open now.
    ///
    /// # Errors
    /// The database's.
    pub async fn client_sessions(&self) -> Result<Vec<ClientSession>> {
        let sql = format!("select {SESSION} from pg_stat_activity where {CLIENTS} order by pid");
        let rows = self
            .query(&sql, &[])
            .await
            .context("listing the client sessions of the source")?;
        Ok(rows.iter().map(client_session).collect())
    }

    /// The stored hash of a role's password; None when it has none, or there is no such role.
    ///
    /// # Errors
    /// The database's.
    pub async fn password_hash(&self, role: &str) -> Result<Option<SecretString>> {
        let row = self
            .query_opt(
                "select rolpassword from pg_authid where rolname = $1",
                &[&role],
            )
            .await;
        Ok(row
            .context("reading the owner's stored password of the source")?
            .and_then(|row| row.get::<_, Option<String>>(0))
            .map(SecretString::from))
    }

    /// Ends the client sessions open now; returns those that were told to end.
    ///
    /// # Errors
    /// The database's.
    pub async fn end_client_sessions(&self) -> Result<Vec<ClientSession>> {
        // Listed first, and ended outside the filter: a planner may call what stands in a WHERE for
        // rows that others would remove.
        let sql = format!(
            "with clients as materialized (select {SESSION} from pg_stat_activity where {CLIENTS})
             select pid, role, application, address, transaction_s, pg_terminate_backend(pid) from \
             clients"
        );
        let rows = self
            .query(&sql, &[])
            .await
            .context("ending the client sessions of the source")?;
        Ok(rows
            .iter()
            .filter(|row| row.get(5))
            .map(client_session)
            .collect())
    }

    /// Stops the server cleanly from inside: `pg_ctl stop` as the server's own user, so that no
    /// pods/exec is needed.
    ///
    /// The statement may answer, or fail because its own server ends: both mean that it was heard
    /// (docs/operators/zalando.md#stopping-the-server). Whether the server is down is for the
    /// caller to observe.
    ///
    /// # Errors
    /// Config when the role may not run programs; Transient when the connection broke before the
    /// answer.
    pub async fn stop_server(&self) -> Result<()> {
        let row = self
            .query_one(
                "select (select setting from pg_config where name = 'BINDIR'), \
                 current_setting('data_directory')",
                &[],
            )
            .await
            .context("asking where the source's pg_ctl and data are")?;
        let (bindir, data): (String, String) = (row.get(0), row.get(1));
        let command = format!(
            "{} stop -D {} -m fast -W",
            shell_quoted(&format!("{bindir}/pg_ctl")),
            shell_quoted(&data)
        );
        let literal = command.replace('\'', "''");
        match self
            .batch_execute(&format!("copy (select 1) to program '{literal}'"))
            .await
        {
            Ok(()) => Ok(()),
            // 57P01 admin_shutdown: the stop has reached our own session; 38000: the program's
            // child was ended by it.
            Err(error)
                if error.is_closed()
                    || error
                        .code()
                        .is_some_and(|c| matches!(c.code(), "57P01" | "38000")) =>
            {
                Ok(())
            }
            Err(error) => Err(Error::from(error)).context("stopping the source"),
        }
    }
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_quote_stays_one_word() {
        assert_eq!(shell_quoted("/it's"), r"'/it'\''s'");
    }
}
