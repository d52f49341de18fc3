//! The server to copy: which one, how to log in, and whether it stands where it must.

use job::{
    config::{self, Connection, Text},
    context::Run,
    error::{Context as _, Error, Result},
};
use platform::postgres::{Credentials, endpoint};

use crate::{
    choose, members, position,
    receipt::Cut,
    server::{Seen, Server},
    settings::{Settings, Side},
};

/// The operator's role for replication (facts of the Zalando operator: replication_username), on
/// both sides: roles are part of the copy.
const ROLE: &str = "standby";

/// Finds the server, and asks it who it is.
///
/// # Errors
/// Refused or Unsafe when it may not be copied; Config when it cannot be logged in to.
pub async fn find(settings: &Settings, run: &Run, cut: &Cut) -> Result<(Server, Seen)> {
    let server = match settings.from {
        Side::Source => of_source(settings, run, cut).await?,
        Side::Target => of_target(cut)?,
    };
    let seen = server
        .look()
        .await
        .context(format!("asking {}", server.name))?;
    if let Cut::Over(receipt) = cut {
        match settings.from {
            Side::Source => position::of_source(&server.name, &seen, receipt)?,
            Side::Target => position::of_target(&server.name, &seen, receipt)?,
        }
        run.report
            .step("PositionProved", proved(settings.from, &server, &seen));
    } else {
        run.report.info(format!(
            "{} is system {}, timeline {}, at {}; there was no cut yet",
            server.name, seen.identity.system_identifier, seen.identity.timeline, seen.position
        ));
    }
    if !seen.page_checksums {
        run.report.warning(
            "NoPageChecksums",
            "the server has no data checksums: it cannot tell a damaged page from a whole one, and \
             neither can this backup",
        );
    }
    Ok((server, seen))
}

fn proved(from: Side, server: &Server, seen: &Seen) -> String {
    let (system, timeline, position) = (
        seen.identity.system_identifier,
        seen.identity.timeline,
        seen.position,
    );
    match from {
        Side::Source => format!(
            "{} runs in recovery and stands at {position} on timeline {timeline}: exactly at the \
             last record that the source has ever written (receipt; system {system})",
            server.name
        ),
        Side::Target => format!(
            "{} is the new primary, on timeline {timeline} at {position} (system {system}, as in \
             the receipt)",
            server.name
        ),
    }
}

async fn of_source(settings: &Settings, run: &Run, cut: &Cut) -> Result<Server> {
    let members = members::look(&run.client, &run.namespace, &settings.source_cluster).await?;
    for member in &members {
        run.report.info(member.words());
    }
    let member = choose::member(cut, settings.backup_member.as_deref(), &members)?;
    let mut connection = config::prefixed::<Connection>("SOURCE_")?;
    // The Service leads to the leader; the name stays, because it stands in the certificate, which
    // all members show.
    let address = member.address.ok_or_else(|| {
        Error::transient(format!(
            "{} has not said where its server listens",
            member.name
        ))
    })?;
    (connection.hostaddr, connection.port) = (Some(address.ip()), address.port());
    log_in(format!("{} ({address})", member.name), connection)
}

fn of_target(cut: &Cut) -> Result<Server> {
    if !matches!(cut, Cut::Over(_)) {
        return Err(Error::refused(
            "there is no receipt of a cut, so the target is not the primary yet",
        )
        .hint("set FROM=source"));
    }
    let connection = config::prefixed::<Connection>("TARGET_")?;
    log_in(endpoint(&connection), connection)
}

fn log_in(name: String, mut connection: Connection) -> Result<Server> {
    connection.user = ROLE.parse::<Text>().map_err(Error::config)?;
    Ok(Server {
        name,
        credentials: Credentials::of(&connection)?,
        connection,
    })
}
