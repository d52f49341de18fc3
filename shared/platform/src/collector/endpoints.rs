//! Where both servers are, and how this program logs in there.

use job::{
    config::{Connection, NonEmptyString, prefixed},
    error::Result,
};

use crate::postgres::{self, Session, Source, Target};

/// How a program logs in.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    /// The program; its sessions have the [`application_name`](crate::postgres::application_name)
    /// of it.
    pub program: &'static str,
    /// No statement of its sessions may write. (CHECKPOINT is no write in this sense.)
    pub read_only: bool,
}

impl Login {
    /// Opens a session.
    pub async fn connect(self, at: &Connection, database: &str) -> Result<Session> {
        let session =
            postgres::connect(at, database, &postgres::application_name(self.program)).await?;
        if self.read_only {
            session
                .batch_execute("set session characteristics as transaction read only")
                .await?;
        }
        Ok(session)
    }
}

/// Where both servers are.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The Service of the source's leader.
    pub source: Connection,
    /// The Service of the target's primary, or designated primary.
    pub target: Connection,
    /// The application's database.
    pub database: NonEmptyString,
    /// How this program logs in.
    pub login: Login,
}

impl Endpoints {
    /// Reads `SOURCE_*` and `TARGET_*`.
    ///
    /// # Errors
    /// Config for a missing or unusable variable.
    pub fn from_environment(database: &NonEmptyString, login: Login) -> Result<Self> {
        Ok(Self {
            source: prefixed("SOURCE_")?,
            target: prefixed("TARGET_")?,
            database: database.clone(),
            login,
        })
    }

    /// A session of its own to the source.
    pub async fn source(&self) -> Result<Source> {
        let session = self.login.connect(&self.source, &self.database).await;
        session.map(Source)
    }

    /// A session of its own to the target.
    pub async fn target(&self) -> Result<Target> {
        let session = self.login.connect(&self.target, &self.database).await;
        session.map(Target)
    }
}
