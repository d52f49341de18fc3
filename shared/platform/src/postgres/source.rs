//! Queries to the source, the server that clients use until the cutover.

use std::{ops::Deref, time::Duration};

use secrecy::SecretString;
use tokio_postgres::SimpleQueryMessage;

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
/// How long a server may take to end the session that has asked it to stop.
const STOP_BEGINS_SECONDS: u32 = 5;

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
        // Before 17 the function has no argument that flushes, so the commit of a transaction does,
        // without waiting for a synchronous standby. Statements of one query are one transaction.
        let answers = self
            .simple_query(
                "set local synchronous_commit = local;
                 select pg_logical_emit_message(true, 'replica-migration', 'marker')",
            )
            .await
            .context("writing a marker at the source")?;
        let text = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::transient("writing a marker at the source: no position"))
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

    /// Whether the server starts again by itself after a crash of a session. Only the
    /// configuration files and the command line set it, so every session shows the same.
    pub async fn restarts_after_crash(&self) -> Result<bool> {
        let row = self
            .query_one("select current_setting('restart_after_crash')::bool", &[])
            .await;
        Ok(row
            .context("reading restart_after_crash of the source")?
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

    /// The walsenders that a stop must wait for, and the number of those that it must not.
    ///
    /// A server that stops waits until each walsender has sent all WAL and its reader has confirmed
    /// it. A reader of a logical slot may never confirm; one that hangs is waited for until
    /// wal_sender_timeout (WalSndDone in PostgreSQL's walsender.c). The target and the standbys
    /// that answer confirm at once.
    pub async fn walsenders(&self, target: &str) -> Result<Walsenders> {
        let sql = format!(
            "select w.pid, s.slot_type is distinct from 'logical'
                           and (w.application_name = $1 or w.reply_time is null
                                or w.reply_time > clock_timestamp() - interval '{STALLED_SECONDS} \
             s')
               from pg_stat_replication w left join pg_replication_slots s on s.active_pid = w.pid"
        );
        let rows = self.query(&sql, &[&target]).await;
        let rows = rows.context("listing the walsenders of the source")?;
        let confirming = rows.iter().filter(|row| row.get(1));
        let confirming: Vec<i32> = confirming.map(|row| row.get(0)).collect();
        Ok(Walsenders {
            others: rows.len() - confirming.len(),
            confirming,
        })
    }

    /// Requests a fast shutdown: the server itself runs `pg_ctl stop`, so that no pods/exec is
    /// needed. Every walsender that is not listed is ended. A server that has not ended within
    /// `limit` is stopped by an immediate shutdown, which leaves no shutdown checkpoint: without it
    /// Patroni could not start the server again, because it waits for the old one's end without a
    /// limit.
    ///
    /// The session ends with the server: then the request has arrived
    /// (docs/operators/zalando.md#stopping-the-server). The caller observes whether the server is
    /// down.
    ///
    /// # Errors
    /// Config when the role may not run programs; Transient when the connection broke before the
    /// answer, or the server does not begin to stop.
    pub async fn stop_server(&self, limit: Duration, confirming: &[i32]) -> Result<()> {
        let row = self
            .query_one(
                "select (select setting from pg_config where name = 'BINDIR'),
                        current_setting('data_directory')",
                &[],
            )
            .await
            .context("asking where the source's pg_ctl and data are")?;
        let (bindir, data): (String, String) = (row.get(0), row.get(1));
        let command = stop_command(&bindir, &data, limit, confirming);
        let literal = command.replace('\'', "''");
        let statements = format!(
            "copy (select 1) to program '{literal}'; select pg_sleep({STOP_BEGINS_SECONDS})"
        );
        match self.batch_execute(&statements).await {
            Ok(()) => Err(Error::transient("the source has not begun to stop")),
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

/// The walsenders of a server that is to be stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walsenders {
    /// Process ids of those whose readers confirm what they have received.
    pub confirming: Vec<i32>,
    /// How many others there are.
    pub others: usize,
}

/// What runs beside the server: `stop.sh` without its comments.
fn script() -> String {
    let lines = include_str!("stop.sh").lines();
    let code: Vec<&str> = lines
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    code.join("\n")
}

/// The command that starts the script. It returns at once, and the script requests the stop: a
/// signal of the shutdown could end a shell that has not left this server's process group yet.
fn stop_command(bindir: &str, data: &str, limit: Duration, confirming: &[i32]) -> String {
    let confirming: Vec<String> = confirming.iter().map(i32::to_string).collect();
    format!(
        "setsid sh -c {} stop {} {} {} {} </dev/null >/dev/null 2>&1 &",
        shell_quoted(&script()),
        shell_quoted(bindir),
        shell_quoted(data),
        limit.as_secs(),
        confirming.join(" ")
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
