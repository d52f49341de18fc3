//! Queries to the source, the server that clients use until the cutover.

use std::{ops::Deref, time::Duration};

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
const SESSION: &str = "pid,
     coalesce(usename::text, '') as role,
     coalesce(application_name, '') as application,
     host(client_addr) as address,
     extract(epoch from clock_timestamp() - xact_start)::bigint as transaction_s";

fn client_session(row: &tokio_postgres::Row) -> ClientSession {
    ClientSession {
        pid: row.get(0),
        role: row.get(1),
        application_name: row.get(2),
        address: row.get(3),
        transaction_seconds: row.get(4),
    }
}

/// A standby that has not answered for this long hangs: a walreceiver answers every 10 s by default
/// (wal_receiver_status_interval).
pub const STALLED_SECONDS: u32 = 15;
/// How long to wait for the end of one walsender.
const WALSENDER_END_MS: u32 = 500;

/// The application_name of a program's sessions. All have the same prefix, by which a step
/// recognises the sessions of the others and does not end them.
pub fn application_name(program: &str) -> String {
    format!("replica-migration-{program}")
}

/// Selects the sessions of clients: no walsenders or workers, no sessions of these programs, and
/// not those of Patroni on the Unix socket.
const CLIENTS: &str = "backend_type = 'client backend'
     and pid <> pg_backend_pid()
     and application_name not like 'replica-migration%'
     and not (client_addr is null and application_name like 'Patroni%')";

impl Source {
    /// System identifier, timeline and version.
    pub async fn identity(&self) -> Result<Identity> {
        identity(self).await
    }

    /// End of the last WAL record inserted, flushed or not. Every acknowledged transaction ends at
    /// or before it, and the target's replay reaches it even when the source writes nothing more.
    ///
    /// # Errors
    /// Fails on a standby.
    pub async fn insert_lsn(&self) -> Result<Lsn> {
        Ok(lsn(self
            .query_one("select pg_current_wal_insert_lsn()", &[])
            .await
            .context("reading the insert lsn of the source")?
            .get(0))
        .last_record_end())
    }

    /// Writes a marker into the WAL and flushes it, so that all WAL before it is sent to the target
    /// at once. Returns the end of the marker.
    ///
    /// Waiting for [`Source::insert_lsn`] would take longer: WAL that no commit has waited for
    /// (hint bits set by a reader, with wal_log_hints) is neither flushed nor sent until the
    /// walwriter wakes up, after up to 5 s, or until the next snapshot of running transactions is
    /// logged, after up to 15 s. The message changes no data: a read-only transaction may write it,
    /// and replay ignores it.
    ///
    /// # Errors
    /// Fails on a standby.
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

    /// When the postmaster started, in microseconds since 1970 by the server's clock. It identifies
    /// one run of the server.
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

    /// Runs a checkpoint of at most 10 min, so that the shutdown checkpoint of a later stop is
    /// short.
    pub async fn checkpoint(&self) -> Result<()> {
        self.batch_execute("set statement_timeout = '10min'; checkpoint; reset statement_timeout")
            .await
            .context("checkpoint on the source")
    }

    /// The client sessions that are open.
    pub async fn client_sessions(&self) -> Result<Vec<ClientSession>> {
        let sql = format!("select {SESSION} from pg_stat_activity where {CLIENTS} order by pid");
        let rows = self
            .query(&sql, &[])
            .await
            .context("listing the client sessions of the source")?;
        Ok(rows.iter().map(client_session).collect())
    }

    /// The stored hash of a role's password; None when it has none, or the role does not exist.
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

    /// Ends the open client sessions; returns those to which the server has sent the signal.
    pub async fn end_client_sessions(&self) -> Result<Vec<ClientSession>> {
        // The filter is materialized first: the planner may call a function in WHERE also for rows
        // that other conditions would remove.
        let sql = format!(
            "with clients as materialized (select {SESSION} from pg_stat_activity where {CLIENTS})
             select pid, role, application, address, transaction_s, pg_terminate_backend(pid)
               from clients"
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

    /// Ends the walsenders that could hold up a clean stop, and returns how many there were.
    ///
    /// A server that stops waits until each walsender has sent all WAL and its reader has confirmed
    /// it. A reader of a logical slot may never confirm; one that hangs is waited for until
    /// wal_sender_timeout (WalSndDone in PostgreSQL's walsender.c). The target and the standbys that
    /// answer are left alone.
    pub async fn end_walsenders(&self, target: &str) -> Result<u64> {
        let sql = format!(
            "with hindering as materialized (
                 select active_pid as pid from pg_replication_slots
                  where slot_type = 'logical' and active_pid is not null
                 union
                 select pid from pg_stat_replication
                  where application_name <> $1
                    and reply_time < clock_timestamp() - interval '{STALLED_SECONDS} s')
             select count(*) filter (where pg_terminate_backend(pid, {WALSENDER_END_MS}))
               from hindering"
        );
        let row = self.query_one(&sql, &[&target]).await;
        let ended: i64 = row
            .context("ending the walsenders that hold up a stop of the source")?
            .get(0);
        Ok(ended.unsigned_abs())
    }

    /// Requests a fast shutdown: the server itself runs `pg_ctl stop`, so that no pods/exec is
    /// needed. A server that does not end within `limit` is stopped by an immediate shutdown, which
    /// leaves no shutdown checkpoint: without it Patroni could not start the server again, because
    /// it waits for the old one's end without a limit.
    ///
    /// The statement may succeed, or fail because its server ends: in both cases the request has
    /// arrived (docs/operators/zalando.md#stopping-the-server). The caller observes whether the
    /// server is down.
    ///
    /// # Errors
    /// Config when the role may not run programs; Transient when the connection broke before the
    /// answer.
    pub async fn stop_server(&self, limit: Duration) -> Result<()> {
        let row = self
            .query_one(
                "select (select setting from pg_config where name = 'BINDIR'),
                        current_setting('data_directory')",
                &[],
            )
            .await
            .context("asking where the source's pg_ctl and data are")?;
        let (bindir, data): (String, String) = (row.get(0), row.get(1));
        let command = stop_command(&bindir, &data, limit);
        let literal = command.replace('\'', "''");
        match self
            .batch_execute(&format!("copy (select 1) to program '{literal}'"))
            .await
        {
            Ok(()) => Ok(()),
            // 57P01 admin_shutdown: the shutdown has ended this session; 38000: it has ended the
            // child process of COPY.
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

/// Ends a server that has not ended after `$3` seconds. One that has shut down and only waits for
/// its WAL archiver gets four times as long, because its archive would lack the last segments.
/// `$1`: the directory of the programs, `$2`: the data directory.
const LIMIT_OF_STOP: &str = "\
    postmaster() { sed -n \"1p;3p\" \"$2/postmaster.pid\" 2>/dev/null; }; \
    lives() { [ \"$(postmaster \"$@\")\" = \"$was\" ] && [ -d \"/proc/${was%%[!0-9]*}\" ]; }; \
    state() { LC_ALL=C \"$1/pg_controldata\" \"$2\" | sed -n \"s/^Database cluster state: *//p\"; }; \
    was=$(postmaster \"$@\"); seconds=0; \
    while [ -n \"$was\" ] && lives \"$@\"; do \
      if [ $seconds -ge $((4 * $3)) ] || \
         { [ $seconds -ge $3 ] && [ \"$(state \"$@\")\" != \"shut down\" ]; }; \
      then kill -QUIT \"${was%%[!0-9]*}\"; exit; fi; \
      sleep 1; seconds=$((seconds + 1)); \
    done";

/// The command that stops a server. The limit runs in a session of its own, so that the signal that
/// ends this server's processes does not reach it, and it watches one run of the postmaster: a
/// server that is started later has another process and start time in postmaster.pid.
fn stop_command(bindir: &str, data: &str, limit: Duration) -> String {
    let (programs, data) = (shell_quoted(bindir), shell_quoted(data));
    format!(
        "setsid sh -c {} sh {programs} {data} {} </dev/null >/dev/null 2>&1 & \
         {} stop -D {data} -m fast -W",
        shell_quoted(LIMIT_OF_STOP),
        limit.as_secs(),
        shell_quoted(&format!("{bindir}/pg_ctl"))
    )
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
