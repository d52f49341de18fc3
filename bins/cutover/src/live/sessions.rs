//! One session to each server, opened beforehand and opened again when it has ended.

use std::time::Duration;

use shared::{
    config::{Connection, Text},
    error::{Error, Result},
    postgres::{self, Session, Source, Target},
};

/// A look must not wait longer for a server that does not answer; the next look tries again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const APPLICATION: &str = "replica-migration cutover";

/// Sessions by side.
pub struct Sessions {
    source_at: Connection,
    target_at: Connection,
    database: Text,
    source: Option<Source>,
    target: Option<Target>,
}

impl Sessions {
    /// Nothing is opened yet.
    pub fn new(source_at: Connection, target_at: Connection, database: &Text) -> Self {
        Self {
            source_at,
            target_at,
            database: database.clone(),
            source: None,
            target: None,
        }
    }

    /// Opens the sessions that are missing, both at the same time; returns why one could not be opened.
    pub async fn open(&mut self) -> (Result<()>, Result<()>) {
        self.source.take_if(|session| session.is_closed());
        self.target.take_if(|session| session.is_closed());
        let (source, target) = futures::join!(
            fill(self.source.is_none(), &self.source_at, &self.database),
            fill(self.target.is_none(), &self.target_at, &self.database)
        );
        (
            source.map(|opened| self.source = opened.map(Source).or(self.source.take())),
            target.map(|opened| self.target = opened.map(Target).or(self.target.take())),
        )
    }

    /// The source's session, if one is open.
    pub fn source(&self) -> Result<&Source> {
        self.source.as_ref().ok_or_else(|| Error::transient("no session to the source"))
    }

    /// The target's session, if one is open.
    pub fn target(&self) -> Result<&Target> {
        self.target.as_ref().ok_or_else(|| Error::transient("no session to the target"))
    }

    /// Forgets a session that does not answer.
    pub fn forget_source(&mut self) {
        self.source = None;
    }

    /// Forgets a session that does not answer.
    pub fn forget_target(&mut self) {
        self.target = None;
    }
}

async fn fill(missing: bool, connection: &Connection, database: &str) -> Result<Option<Session>> {
    if !missing {
        return Ok(None);
    }
    limited(postgres::connect(connection, database, APPLICATION)).await.map(Some)
}

/// Runs a question within the limit of a look.
pub async fn limited<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LOOK_TIMEOUT, question)
        .await
        .unwrap_or_else(|_| Err(Error::transient(format!("no answer within {} s", LOOK_TIMEOUT.as_secs()))))
}
