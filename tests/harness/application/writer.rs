//! One database client: a long-lived session, about twenty writes per second, and a log of the
//! outcome of every row: acknowledged, refused or unknown.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::OwnedMutexGuard,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::{Client, error::Severity, types::Type};

use super::{Epoch, login::Login};
use crate::{
    ledger::{Attempt, Key, Outcome, Server},
    service::Services,
    session::Session,
};

/// Pause between writes: twenty writes per second.
const PAUSE: Duration = Duration::from_millis(50);
/// Every fifth write is a transaction of three rows, committed as one.
const TRANSACTION_EVERY: u64 = 5;
const TRANSACTION_ROWS: u64 = 3;
/// How long a client waits for an answer before it closes the session; longer than a pooler is
/// paused during a cutover.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The outcomes of all writers of a run.
pub type Log = Arc<Mutex<Vec<Attempt>>>;

/// A writer's identity. It survives the replacement of its pod, so that its rows can be counted
/// across a cutover.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The client's name in the ledger.
    pub client: String,
    /// The number of its last row.
    pub sequence: Arc<AtomicU64>,
}

impl Identity {
    /// The identity of a client that has not written yet.
    pub fn new(client: impl Into<String>) -> Self {
        Self {
            client: client.into(),
            sequence: Arc::default(),
        }
    }
}

/// A running client; it is aborted on drop and ends cleanly with [`Writer::stop`].
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// Held during each write.
    turn: Arc<Turn>,
    task: JoinHandle<()>,
}

/// What a write holds, and a fault that keeps a client from writing.
pub type Turn = tokio::sync::Mutex<()>;

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writer {
    /// Starts writing with `login`, resolving its host for every session, as drivers do.
    pub fn start(
        identity: Identity,
        login: Login,
        services: Arc<Services>,
        log: Log,
        epoch: Epoch,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let turn = Arc::new(Turn::default());
        let client = WriterTask {
            identity,
            login,
            services,
            log,
            epoch,
            session: None,
        };
        Self {
            task: tokio::spawn(client.run(Arc::clone(&stop), Arc::clone(&turn))),
            stop,
            turn,
        }
    }

    /// Waits until the pending write is answered; the client writes no more while the guard lives.
    pub async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Lets the client finish its pending write; a write that is not answered within `limit` is
    /// aborted, as SIGKILL would.
    pub async fn stop(mut self, limit: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            // The pending write is logged once the task has ended.
            let _ = (&mut self.task).await;
        }
    }
}

struct WriterTask {
    identity: Identity,
    login: Login,
    services: Arc<Services>,
    log: Log,
    epoch: Epoch,
    session: Option<Session>,
}

/// Rows that are being written. If the task is aborted after the commit was sent, they are logged
/// as unknown.
struct PendingWrite<'a> {
    task: &'a WriterTask,
    keys: Vec<Key>,
    sent: Duration,
    sent_commit: bool,
}

impl PendingWrite<'_> {
    fn ended(mut self, outcome: &Outcome) {
        self.write(outcome);
    }

    fn write(&mut self, outcome: &Outcome) {
        let answered = self.task.epoch.elapsed();
        let mut log = self.task.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend(self.keys.drain(..).map(|key| Attempt {
            key,
            sent: self.sent,
            answered,
            outcome: outcome.clone(),
        }));
    }
}

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        let outcome = if self.sent_commit {
            Outcome::Unknown("the client was killed".into())
        } else {
            Outcome::Refused("the client was killed".into())
        };
        self.write(&outcome);
    }
}

impl WriterTask {
    async fn run(mut self, stop: Arc<AtomicBool>, turns: Arc<Turn>) {
        let mut tick = interval(PAUSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn: u64 = 0;
        while !stop.load(Ordering::Relaxed) {
            tick.tick().await;
            let _held = turns.lock().await;
            turn += 1;
            if !self
                .write(if turn.is_multiple_of(TRANSACTION_EVERY) {
                    TRANSACTION_ROWS
                } else {
                    1
                })
                .await
            {
                self.session = None;
            }
        }
    }

    /// Writes the next rows; false if the session is no longer usable.
    async fn write(&mut self, rows: u64) -> bool {
        let first = self.identity.sequence.fetch_add(rows, Ordering::Relaxed) + 1;
        let keys = (first..first + rows)
            .map(|sequence| Key {
                client: self.identity.client.clone(),
                sequence,
            })
            .collect();
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => {
                self.login
                    .connect(&self.services, &self.identity.client)
                    .await
            }
        };
        let mut pending = PendingWrite {
            task: self,
            keys,
            sent: self.epoch.elapsed(),
            sent_commit: false,
        };
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                pending.ended(&Outcome::Refused(error.to_string()));
                return false;
            }
        };
        let result = match timeout(ANSWER_LIMIT, insert(&session, &mut pending)).await {
            Ok(result) => result,
            Err(_) => Err(Failure {
                text: "no answer".into(),
                session_ended: true,
            }),
        };
        let sent_commit = pending.sent_commit;
        let (outcome, usable) = classify(result, sent_commit);
        pending.ended(&outcome);
        self.session = usable.then_some(session);
        usable
    }
}

struct Failure {
    text: String,
    session_ended: bool,
}

impl From<tokio_postgres::Error> for Failure {
    /// An ERROR leaves the session usable and the transaction rolled back. FATAL, PANIC and a
    /// broken connection may follow a commit whose confirmation was lost.
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self {
                text: format!("{}: {}", db.code().code(), db.message()),
                session_ended: !matches!(db.parsed_severity(), Some(Severity::Error)),
            },
            None => Self {
                text: error.to_string(),
                session_ended: true,
            },
        }
    }
}

/// The outcome as the client knows it, and whether the session stays usable.
fn classify(result: Result<Server, Failure>, sent_commit: bool) -> (Outcome, bool) {
    match result {
        Ok(server) => (Outcome::Acknowledged(server), true),
        Err(Failure {
            text,
            session_ended: true,
        }) if sent_commit => (Outcome::Unknown(text), false),
        Err(Failure {
            text,
            session_ended,
        }) => (Outcome::Refused(text), !session_ended),
    }
}

/// The row names the server that inserted it: its own address, and the timeline of the WAL.
const INSERT: &str = "insert into public.ledger (client, sequence, payload) values ($1, $2, $3) \
    returning host(inet_server_addr()), substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";

async fn insert(session: &Session, pending: &mut PendingWrite<'_>) -> Result<Server, Failure> {
    let client = &pending.task.identity.client;
    let keys = pending.keys.clone();
    if let [key] = keys.as_slice() {
        pending.sent = pending.task.epoch.elapsed();
        pending.sent_commit = true;
        return one(session, client, key.sequence).await;
    }
    session.batch_execute("begin").await?;
    let mut server = None;
    for key in &keys {
        match one(session, client, key.sequence).await {
            Ok(answered) => server = Some(answered),
            Err(failure) => {
                if !failure.session_ended {
                    session.batch_execute("rollback").await?;
                }
                return Err(failure);
            }
        }
    }
    pending.sent = pending.task.epoch.elapsed();
    pending.sent_commit = true;
    session.batch_execute("commit").await?;
    server.ok_or_else(|| Failure {
        text: "a transaction without rows".into(),
        session_ended: false,
    })
}

async fn one(session: &Client, client: &str, sequence: u64) -> Result<Server, Failure> {
    // An unnamed statement in one message also works through a pooler in transaction mode.
    let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
    let payload = format!("{client} wrote {sequence}");
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] = [
        (&client, Type::TEXT),
        (&sequence, Type::INT8),
        (&payload, Type::TEXT),
    ];
    let rows = session.query_typed(INSERT, &parameters).await?;
    let [row] = rows.as_slice() else {
        return Err(Failure {
            text: format!("{} rows returned", rows.len()),
            session_ended: true,
        });
    };
    let (address, timeline): (Option<String>, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Server {
        address: address.unwrap_or_default(),
        timeline: u32::from_str_radix(&timeline, 16).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(session_ended: bool) -> Result<Server, Failure> {
        Err(Failure {
            text: "x".into(),
            session_ended,
        })
    }

    #[test]
    fn only_a_session_that_ends_after_the_commit_was_sent_leaves_a_row_unknown() {
        let server = Server {
            address: "127.0.0.1".into(),
            timeline: 1,
        };
        assert_eq!(
            classify(Ok(server.clone()), true),
            (Outcome::Acknowledged(server), true)
        );
        assert_eq!(
            classify(failure(true), true),
            (Outcome::Unknown("x".into()), false)
        );
        assert_eq!(
            classify(failure(true), false),
            (Outcome::Refused("x".into()), false)
        );
        assert_eq!(
            classify(failure(false), true),
            (Outcome::Refused("x".into()), true)
        );
        assert_eq!(
            classify(failure(false), false),
            (Outcome::Refused("x".into()), true)
        );
    }
}
