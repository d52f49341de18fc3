//! Finds the server to copy, logs in to it, and checks that its position is the expected one.

use job::{
    config::{self, Connection, NonEmptyString},
    context::JobContext,
    error::{Context as _, Error, Result},
};
use platform::postgres::{Credentials, endpoint};

use super::{Server, ServerState, select};
use crate::{
    members, position,
    receipt::CutoverState,
    settings::{Settings, Side},
};

/// The Zalando operator's replication role (its setting replication_username). It exists on both
/// sides, because roles are part of the copy.
const ROLE: &str = "standby";

/// Finds the server to copy and reads its state.
///
/// # Errors
/// Refused or Unsafe if it must not be copied; Config if the login fails.
pub async fn locate(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
) -> Result<(Server, ServerState)> {
    let server = match settings.from {
        Side::Source => source_server(settings, run, cutover).await?,
        Side::Target => target_server(cutover)?,
    };
    let state = server
        .observe()
        .await
        .context(format!("asking {}", server.name))?;
    if let CutoverState::Completed(receipt) = cutover {
        match settings.from {
            Side::Source => position::check_source(&server.name, &state, receipt)?,
            Side::Target => position::check_target(&server.name, &state, receipt)?,
        }
        run.report.step(
            "PositionProved",
            verified_position(settings.from, &server, &state),
        );
    } else {
        run.report.info(format!(
            "{} has system identifier {}, timeline {}, position {}; no cutover has been done",
            server.name, state.identity.system_identifier, state.identity.timeline, state.position
        ));
    }
    if !state.page_checksums {
        run.report.warning(
            "NoPageChecksums",
            "data checksums are off on the server: neither the server nor this backup can detect \
             a damaged page",
        );
    }
    Ok((server, state))
}

fn verified_position(from: Side, server: &Server, state: &ServerState) -> String {
    let (system, timeline, position) = (
        state.identity.system_identifier,
        state.identity.timeline,
        state.position,
    );
    match from {
        Side::Source => format!(
            "{} is in recovery at {position} on timeline {timeline}: exactly the end of the \
             source's WAL according to the receipt (system identifier {system})",
            server.name
        ),
        Side::Target => format!(
            "{} is the new primary, on timeline {timeline} at {position} (system identifier \
             {system}, as in the receipt)",
            server.name
        ),
    }
}

async fn source_server(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
) -> Result<Server> {
    let members = members::list(&run.client, &run.namespace, &settings.source_cluster).await?;
    for member in &members {
        run.report.info(member.describe());
    }
    let member = select::member(cutover, settings.backup_member.as_deref(), &members)?;
    let mut connection = config::prefixed::<Connection>("SOURCE_")?;
    // The Service routes to the leader, so connect to the member's own address. Keep the host name:
    // it is in the certificate, which all members present.
    let address = member.address.ok_or_else(|| {
        Error::transient(format!(
            "{} has not published the address of its server",
            member.name
        ))
    })?;
    (connection.hostaddr, connection.port) = (Some(address.ip()), address.port());
    log_in(format!("{} ({address})", member.name), connection)
}

fn target_server(cutover: &CutoverState) -> Result<Server> {
    if !matches!(cutover, CutoverState::Completed(_)) {
        return Err(Error::refused(
            "there is no receipt of a cutover, so the target is not the primary yet",
        )
        .hint("set FROM=source"));
    }
    let connection = config::prefixed::<Connection>("TARGET_")?;
    log_in(endpoint(&connection), connection)
}

fn log_in(name: String, mut connection: Connection) -> Result<Server> {
    connection.user = ROLE.parse::<NonEmptyString>().map_err(Error::config)?;
    Ok(Server {
        name,
        credentials: Credentials::of(&connection)?,
        connection,
    })
}
