//! Lists the client sessions that the source still has.

use job::{
    config::{self, Connection, NonEmptyString},
    error::{Error, Result},
};
use platform::postgres::{application_name, connect};

use crate::members::Member;

/// Sessions of one role at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// The member.
    pub member: String,
    /// Number of sessions, role, database and application name.
    pub description: String,
}

/// Asks every member that runs.
///
/// # Errors
/// Config if the login to a member fails.
pub async fn list(members: Vec<Member>) -> Result<Vec<Sessions>> {
    let mut all = Vec::new();
    for member in members {
        let Some(address) = member
            .address
            .filter(|_| member.runs_as_primary() || member.runs_as_standby())
        else {
            continue;
        };
        let mut connection = config::prefixed::<Connection>("SOURCE_")?;
        connection.user = "standby".parse::<NonEmptyString>().map_err(Error::config)?;
        (connection.hostaddr, connection.port) = (Some(address.ip()), address.port());
        for description in sessions_at(&connection).await? {
            all.push(Sessions {
                member: member.name.clone(),
                description,
            });
        }
    }
    Ok(all)
}

/// Sessions of clients. Walsenders have no database and are left out. A role without privileges
/// sees only role, database and application name of other sessions, which is enough.
async fn sessions_at(connection: &Connection) -> Result<Vec<String>> {
    let session = connect(connection, "postgres", &application_name("final-backup")).await?;
    let rows = session
        .query(
            "select count(*), coalesce(usename::text, '?'), datname::text, \
             coalesce(nullif(application_name, ''), 'no name')
               from pg_stat_activity
              where datname is not null and pid <> pg_backend_pid()
                and coalesce(application_name, '') not like 'replica-migration%'
                and coalesce(application_name, '') not like 'Patroni%'
              group by 2, 3, 4 order by 1 desc, 2, 3, 4",
            &[],
        )
        .await?;
    let describe = |row: &tokio_postgres::Row| {
        let (count, role, database, application): (i64, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        format!("{count} of {role} in {database} ({application})")
    };
    Ok(rows.iter().map(describe).collect())
}
