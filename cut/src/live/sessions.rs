//! One session to each server, opened beforehand; one that has ended is opened again beside the looks, which do not wait for it.

use std::{net::SocketAddr, ops::Deref, time::Duration};

use shared::{
    config::{Connection, Text},
    error::{Error, Result},
    postgres::{self, Session, Source, Target},
};
use tokio::task::JoinHandle;

/// A look must not wait longer for a server that does not answer; the next look tries again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const APPLICATION: &str = "replica-migration cutover";

/// Sessions by side.
pub struct Sessions {
    source: Line<Source>,
    target: Line<Target>,
}

impl Sessions {
    /// Nothing is opened yet.
    pub fn new(source_at: Connection, target_at: Connection, database: &Text) -> Self {
        Self {
            source: Line::new(source_at, database, Source),
            target: Line::new(target_at, database, Target),
        }
    }

    /// The source is this server from now on, and no longer whoever its Service leads to: that will be turned to the target.
    pub fn source_is_at(&mut self, address: Option<SocketAddr>) {
        self.source.lead_to(address);
    }

    /// Sees to it that both sessions are open or being opened; returns why one is not open.
    pub async fn open(&mut self) -> (Result<()>, Result<()>) {
        futures::join!(self.source.open(), self.target.open())
    }

    /// The source's session, if one is open.
    pub fn source(&self) -> Result<&Source> {
        self.source
            .session
            .as_ref()
            .ok_or_else(|| Error::transient("no session to the source"))
    }

    /// The target's session, if one is open.
    pub fn target(&self) -> Result<&Target> {
        self.target
            .session
            .as_ref()
            .ok_or_else(|| Error::transient("no session to the target"))
    }

    /// Forgets a session that does not answer.
    pub fn forget_source(&mut self) {
        self.source.session = None;
    }

    /// Forgets a session that does not answer.
    pub fn forget_target(&mut self) {
        self.target.session = None;
    }
}

/// The way to one server.
struct Line<T> {
    at: Connection,
    database: Text,
    wrap: fn(Session) -> T,
    session: Option<T>,
    opening: Option<JoinHandle<Result<Session>>>,
    /// Why the last attempt at this address failed; None before the first one has ended.
    tried: Option<String>,
}

impl<T: Deref<Target = Session>> Line<T> {
    fn new(at: Connection, database: &Text, wrap: fn(Session) -> T) -> Self {
        Self {
            at,
            database: database.clone(),
            wrap,
            session: None,
            opening: None,
            tried: None,
        }
    }

    fn lead_to(&mut self, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        if (self.at.hostaddr, self.at.port) != (Some(address.ip()), address.port()) {
            (self.at.hostaddr, self.at.port) = (Some(address.ip()), address.port());
            (self.session, self.opening, self.tried) = (None, None, None);
        }
    }

    /// Only the first attempt at an address is waited for. A server that is stopping or starting keeps a new session waiting for
    /// long, and everything else has been seen by then.
    async fn open(&mut self) -> Result<()> {
        self.session.take_if(|session| session.is_closed());
        if self.session.is_some() {
            return Ok(());
        }
        let (at, database) = (self.at.clone(), self.database.clone());
        let opening = self.opening.get_or_insert_with(|| tokio::spawn(connect(at, database)));
        if let Some(why) = self.tried.as_ref().filter(|_| !opening.is_finished()) {
            return Err(Error::transient(why.clone()));
        }
        let opened = opening.await;
        self.opening = None;
        let opened = opened.unwrap_or_else(|ended| Err(Error::transient("connecting").caused_by(ended)));
        self.tried = Some(
            opened
                .as_ref()
                .err()
                .map_or_else(|| "connecting again".to_owned(), Error::to_string),
        );
        self.session = Some((self.wrap)(opened?));
        Ok(())
    }
}

async fn connect(at: Connection, database: Text) -> Result<Session> {
    limited(postgres::connect(&at, &database, APPLICATION)).await
}

/// Runs a question within the limit of a look.
pub async fn limited<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LOOK_TIMEOUT, question)
        .await
        .unwrap_or_else(|_| Err(Error::transient(format!("no answer within {} s", LOOK_TIMEOUT.as_secs()))))
}
