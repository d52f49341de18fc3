//! A session that is opened beforehand; one that has ended is opened again beside the looks, which
//! do not wait for it.

use std::{net::SocketAddr, time::Duration};

use job::{
    config::{Connection, Text},
    error::{Error, Result},
};
use platform::{
    pgbouncer::Console,
    postgres::{self, Source, Target},
};
use protocol::failure::Failure;
use tokio::task::JoinHandle;

/// A look must not wait longer for a server that does not answer; the next look tries again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// That of the cutover's sessions, also when rollback undoes one.
fn application() -> String {
    postgres::application_name("cutover")
}

/// What can be opened at a connection.
pub trait Connect: Sized + Send + 'static {
    /// Opens it.
    fn dial(at: Connection, database: Text) -> impl Future<Output = Result<Self>> + Send;
    /// It has ended.
    fn ended(&self) -> bool;
}

impl Connect for Source {
    async fn dial(at: Connection, database: Text) -> Result<Self> {
        postgres::connect(&at, &database, &application())
            .await
            .map(Self)
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

impl Connect for Target {
    async fn dial(at: Connection, database: Text) -> Result<Self> {
        postgres::connect(&at, &database, &application())
            .await
            .map(Self)
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

impl Connect for Console {
    async fn dial(at: Connection, _: Text) -> Result<Self> {
        Self::open(
            &at,
            postgres::read_secret(&at.password_file)?,
            &application(),
        )
        .await
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

/// The way to one server.
pub struct Line<T> {
    at: Connection,
    database: Text,
    session: Option<T>,
    opening: Option<JoinHandle<Result<T>>>,
    /// Why the last attempt at this address failed; None before the first one has ended.
    tried: Option<Failure>,
}

impl<T: Connect> Line<T> {
    /// Nothing is opened yet.
    pub fn new(at: Connection, database: &Text) -> Self {
        Self {
            at,
            database: database.clone(),
            session: None,
            opening: None,
            tried: None,
        }
    }

    /// From now on the server is at this address.
    pub fn set_address(&mut self, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        if (self.at.hostaddr, self.at.port) != (Some(address.ip()), address.port()) {
            (self.at.hostaddr, self.at.port) = (Some(address.ip()), address.port());
            (self.session, self.opening, self.tried) = (None, None, None);
        }
    }

    /// Sees to it that the session is open or being opened; says why it is not open.
    ///
    /// Only the first attempt at an address is waited for. A server that is stopping or starting
    /// keeps a new session waiting for long, and everything else has been seen by then.
    ///
    /// # Errors
    /// Those of opening it.
    pub async fn open(&mut self) -> Result<&T> {
        self.session.take_if(|session| session.ended());
        if self.session.is_none() {
            let (at, database) = (self.at.clone(), self.database.clone());
            let opening = self
                .opening
                .get_or_insert_with(|| tokio::spawn(limited(T::dial(at, database))));
            if let Some(why) = self.tried.as_ref().filter(|_| !opening.is_finished()) {
                return Err(why.clone().into());
            }
            let opened = opening.await;
            self.opening = None;
            let opened =
                opened.unwrap_or_else(|ended| Err(Error::transient("connecting").caused_by(ended)));
            match opened {
                Ok(session) => {
                    self.tried = Some(Failure::transient("connecting again"));
                    self.session = Some(session);
                }
                Err(error) => {
                    let failure = self.tried.insert(error.into());
                    return Err(failure.clone().into());
                }
            }
        }
        self.session()
    }

    /// The session, if it is open.
    ///
    /// # Errors
    /// It is not.
    pub fn session(&self) -> Result<&T> {
        self.session.as_ref().ok_or_else(|| {
            Error::transient(format!("no session to {}", postgres::endpoint(&self.at)))
        })
    }

    /// Forgets a session that does not answer.
    pub fn forget(&mut self) {
        self.session = None;
    }
}

/// Runs a question within the limit of a look.
///
/// # Errors
/// The question's, or that it was not answered in time.
pub async fn limited<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LOOK_TIMEOUT, question)
        .await
        .unwrap_or_else(|_| {
            Err(Error::transient(format!(
                "no answer within {} s",
                LOOK_TIMEOUT.as_secs()
            )))
        })
}
