//! A session that is opened beforehand; one that has ended is opened again beside the observations,
//! which do not wait for it.

use std::{net::SocketAddr, time::Duration};

use job::{
    config::{Connection, NonEmptyString},
    error::{Error, Result},
};
use protocol::failure::Failure;
use tokio::task::JoinHandle;

use super::endpoints::Login;
use crate::{
    pgbouncer::Console,
    postgres::{self, Source, Target},
};

/// An observation does not wait longer for a server that does not answer; the next one tries again.
const OBSERVATION_TIMEOUT: Duration = Duration::from_secs(2);

/// What can be opened at a connection.
pub trait Connect: Sized + Send + 'static {
    /// Opens it.
    fn dial(
        at: Connection,
        database: NonEmptyString,
        login: Login,
    ) -> impl Future<Output = Result<Self>> + Send;
    /// It has ended.
    fn ended(&self) -> bool;
}

impl Connect for Source {
    async fn dial(at: Connection, database: NonEmptyString, login: Login) -> Result<Self> {
        login.connect(&at, &database).await.map(Self)
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

impl Connect for Target {
    async fn dial(at: Connection, database: NonEmptyString, login: Login) -> Result<Self> {
        login.connect(&at, &database).await.map(Self)
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

impl Connect for Console {
    async fn dial(at: Connection, _: NonEmptyString, login: Login) -> Result<Self> {
        let password = postgres::read_secret(&at.password_file)?;
        Self::open(&at, password, &postgres::application_name(login.program)).await
    }

    fn ended(&self) -> bool {
        self.is_closed()
    }
}

/// The connection to one server, opened on demand.
pub struct Line<T> {
    at: Connection,
    database: NonEmptyString,
    login: Login,
    session: Option<T>,
    opening: Option<JoinHandle<Result<T>>>,
    /// Why the last attempt at this address failed; None before the first one has ended.
    tried: Option<Failure>,
    /// No address of the server is known, and it must not be looked for elsewhere.
    unlisted: bool,
}

impl<T: Connect> Line<T> {
    /// Nothing is opened yet.
    pub fn new(at: Connection, database: &NonEmptyString, login: Login) -> Self {
        Self {
            at,
            database: database.clone(),
            login,
            session: None,
            opening: None,
            tried: None,
            unlisted: false,
        }
    }

    /// From now on the server is at this address, and nowhere while there is none: a Service may
    /// lead to another server by then.
    pub fn set_address(&mut self, address: Option<SocketAddr>) {
        let moved = address.is_none_or(|address| {
            (self.at.hostaddr, self.at.port) != (Some(address.ip()), address.port())
        });
        if moved {
            (self.session, self.opening, self.tried) = (None, None, None);
        }
        if let Some(address) = address {
            (self.at.hostaddr, self.at.port) = (Some(address.ip()), address.port());
        }
        self.unlisted = address.is_none();
    }

    /// Returns the session, opening it where it is not open.
    ///
    /// Only the first attempt at an address is waited for. A server that is stopping or starting
    /// keeps a new session waiting for long, and the rest of the observation is complete by then.
    ///
    /// # Errors
    /// The reason why the session is not open.
    pub async fn open(&mut self) -> Result<&T> {
        if self.unlisted {
            return Err(Error::transient("no address of this server is known"));
        }
        self.session.take_if(|session| session.ended());
        if self.session.is_none() {
            let (at, database, login) = (self.at.clone(), self.database.clone(), self.login);
            let opening = self
                .opening
                .get_or_insert_with(|| tokio::spawn(limited(T::dial(at, database, login))));
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

/// Runs a question within the time that an observation waits for a server.
///
/// # Errors
/// The question's, or that it was not answered in time.
pub async fn limited<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(OBSERVATION_TIMEOUT, question)
        .await
        .unwrap_or_else(|_| {
            Err(Error::transient(format!(
                "no answer within {} s",
                OBSERVATION_TIMEOUT.as_secs()
            )))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that must not be dialled.
    struct Forbidden;

    impl Connect for Forbidden {
        async fn dial(at: Connection, _: NonEmptyString, _: Login) -> Result<Self> {
            Err(Error::config(format!(
                "dialled {}",
                postgres::endpoint(&at)
            )))
        }

        fn ended(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_line_without_an_address_dials_nothing() {
        let at = serde_json::from_value(serde_json::json!({
            "host": "mastodon-postgresql", "user": "postgres", "password_file": "/none",
            "sslmode": "require",
        }));
        let login = Login {
            program: "cutover",
            read_only: false,
        };
        let database = "mastodon".parse().unwrap();
        let mut line = Line::<Forbidden>::new(at.unwrap(), &database, login);
        let dialled = |error: Error| error.to_string();
        let by_name = line.open().await.map(drop).map_err(dialled);
        assert_eq!(by_name, Err("dialled mastodon-postgresql:5432".into()));
        line.set_address(None);
        let nowhere = line.open().await.map(drop).map_err(dialled);
        assert_eq!(nowhere, Err("no address of this server is known".into()));
        line.set_address(Some(([127, 0, 0, 2], 5433).into()));
        let by_address = line.open().await.map(drop).map_err(dialled);
        assert_eq!(
            by_address,
            Err("dialled mastodon-postgresql:5433 (127.0.0.2)".into())
        );
    }
}
