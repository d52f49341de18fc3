//! One session to each side, read-only by construction, opened anew when one breaks.

use job::{
    config::{Connection, prefixed},
    error::Result,
};
use platform::postgres::{Session, Source, Target, application_name, connect};

/// Where both sides are.
pub struct Ends {
    source: Connection,
    target: Connection,
    database: String,
}

/// Both sides, open.
pub struct Sides {
    /// The source's leader.
    pub source: Source,
    /// The target's designated primary.
    pub target: Target,
}

impl Ends {
    /// Reads `SOURCE_*` and `TARGET_*`.
    ///
    /// # Errors
    /// Config for a missing or unusable variable.
    pub fn from_environment(database: &str) -> Result<Self> {
        Ok(Self {
            source: prefixed("SOURCE_")?,
            target: prefixed("TARGET_")?,
            database: database.into(),
        })
    }

    /// Connects to the source.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn source(&self) -> Result<Source> {
        read_only(&self.source, &self.database).await.map(Source)
    }

    /// Connects to the target.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn target(&self) -> Result<Target> {
        read_only(&self.target, &self.database).await.map(Target)
    }

    /// Connects to both.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn both(&self) -> Result<Sides> {
        let (source, target) = futures::try_join!(self.source(), self.target())?;
        Ok(Sides { source, target })
    }

    /// `host:port` of both, for the first line of the log.
    pub fn named(&self) -> (String, String) {
        use platform::postgres::endpoint;
        (endpoint(&self.source), endpoint(&self.target))
    }
}

/// No statement of this step may write; CHECKPOINT is no write in this sense.
async fn read_only(connection: &Connection, database: &str) -> Result<Session> {
    let session = connect(
        connection,
        database,
        &application_name("validate-replication"),
    )
    .await?;
    session
        .batch_execute("set session characteristics as transaction read only")
        .await?;
    Ok(session)
}
