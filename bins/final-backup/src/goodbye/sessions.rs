//! Who is still connected to the source.

use job::{
    config::{self, Connection, Text},
    error::{Error, Result},
};
use platform::postgres::{connect, source::APPLICATION_PREFIX};

use crate::members::Member;

/// Sessions of a role at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// The member.
    pub member: String,
    /// How many, of whom, and where to.
    pub words: String,
}

/// Asks every member that runs.
///
/// # Errors
/// Config when one cannot be logged in to.
pub async fn look(members: Vec<Member>) -> Result<Vec<Sessions>> {
    let mut all = Vec::new();
    for member in members {
        let Some(address) = member
            .address
            .filter(|_| member.runs_as_primary() || member.runs_as_standby())
        else {
            continue;
        };
        let mut connection = config::prefixed::<Connection>("SOURCE_")?;
        connection.user = "standby".parse::<Text>().map_err(Error::config)?;
        (connection.hostaddr, connection.port) = (Some(address.ip()), address.port());
        for words in of(&connection).await? {
            all.push(Sessions {
                member: member.name.clone(),
                words,
            });
        }
    }
    Ok(all)
}

/// A walsender has no database; a role without privileges sees of others who they are and where
/// they are, which is enough.
async fn of(connection: &Connection) -> Result<Vec<String>> {
    let session = connect(
        connection,
        "postgres",
        &format!("{APPLICATION_PREFIX}-final-backup"),
    )
    .await?;
    let rows = session
        .query(
            "select count(*), coalesce(usename::text, '?'), datname::text, \
             coalesce(nullif(application_name, ''), 'no name')
               from pg_stat_activity
              where datname is not null and pid <> pg_backend_pid() and coalesce(application_name, \
             '') not like 'replica-migration%'
                and coalesce(application_name, '') not like 'Patroni%'
              group by 2, 3, 4 order by 1 desc, 2, 3, 4",
            &[],
        )
        .await?;
    let words = |row: &tokio_postgres::Row| {
        let (count, role, database, application): (i64, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        format!("{count} of {role} in {database} ({application})")
    };
    Ok(rows.iter().map(words).collect())
}
