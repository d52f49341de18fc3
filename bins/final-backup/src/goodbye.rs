//! The goodbye: what deleting the source would remove, who still uses it, and whether it is ready
//! for that. Nothing is deleted here.

mod doomed;
mod look;
mod mentions;
mod operator;
mod ready;
mod sessions;

use jiff::Timestamp;
use job::{context::Run, error::Result};

use crate::{
    choose,
    complete::Complete,
    members::{self, Member},
    receipt::Cut,
    settings::Settings,
};

/// Says it all.
///
/// # Errors
/// The API's, and those of a login at a member of the source; Unsafe when the source takes writes
/// after a cut.
pub async fn say(
    settings: &Settings,
    run: &Run,
    cut: &Cut,
    backup: Option<&Complete>,
) -> Result<()> {
    let members = members::look(&run.client, &run.namespace, &settings.source_cluster).await?;
    choose::fenced(cut, &members)?;
    let seen = look::look(settings, run).await?;
    let report = &run.report;
    let source = settings.source_cluster.as_str();
    if seen.resource.is_none() {
        report.info(format!(
            "the postgresql resource {source} does not exist any more; what is left of it:"
        ));
    } else {
        report.info(format!(
            "deleting the postgresql resource {source} would remove:"
        ));
    }
    if !seen.operator.read {
        let why = match &settings.operator_config {
            None => "OPERATOR_CONFIG is not set".to_owned(),
            Some(place) => format!("{place} cannot be read (components/goodbye allows it)"),
        };
        report.warning(
            "OperatorDefaults",
            format!("the operator's defaults are assumed, which delete volumes and Secrets: {why}"),
        );
    }
    for line in doomed::lines(source, &seen.inventory, &seen.operator) {
        report.info(format!("  {line}"));
    }
    let uses = say_uses(settings, run, members, &seen).await?;
    let validated = seen.validated.as_ref();
    let missing = ready::missing(&ready::Facts {
        backup,
        cut,
        validated,
        retention_days: settings.retention_days,
        now: Timestamp::now(),
        uses,
    });
    report.fact("ready_to_delete", missing.is_empty());
    if !missing.is_empty() {
        report.warning(
            "NotReadyToDelete",
            format!("not ready to delete: {}", missing.join("; ")),
        );
        return Ok(());
    }
    report.step(
        "ReadyToDelete",
        "ready to delete; this step deletes nothing. In this order:",
    );
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    for command in doomed::commands(
        &run.namespace,
        source,
        seen.frozen(),
        &seen.operator,
        &today,
    ) {
        report.info(format!("  {command}"));
    }
    Ok(())
}

/// Who still uses the source; returns how many of them would lose something.
async fn say_uses(
    settings: &Settings,
    run: &Run,
    members: Vec<Member>,
    seen: &look::Seen,
) -> Result<usize> {
    let report = &run.report;
    let mut uses = 0;
    let mut used = |text: String| {
        uses += 1;
        report.info(format!("still used: {text}"));
    };
    for silent in members.iter().filter(|member| member.own.is_none()) {
        used(format!(
            "{}, so nobody knows who is connected there",
            silent.words()
        ));
    }
    for sessions in sessions::look(members).await? {
        used(format!(
            "sessions at {}: {}",
            sessions.member, sessions.words
        ));
    }
    for (whose, mention) in &seen.uses.mentions {
        used(format!(
            "{whose} names {} in {}",
            mention.name, mention.path
        ));
    }
    for (service, selector) in &seen.uses.turned {
        let try_it = doomed::lead_nowhere(&run.namespace, service);
        used(format!(
            "the Service {service} leads to the target and goes with the source: who connects to \
             this name loses its database. To see whether anybody does: {try_it} (its selector is \
             {selector})"
        ));
    }
    if uses == 0 {
        report.info(
            "nobody uses it: no session, and no ConfigMap, workload or Cluster of this \
            namespace names it",
        );
    }
    for mention in &seen.uses.history {
        report.info(format!(
            "the Cluster {} still names {} in {}, which only its beginning needed: remove it there",
            settings.target_cluster, mention.name, mention.path
        ));
    }
    if seen.frozen() {
        report.info(
            "the operator is told to leave it alone (acid.zalan.do/controller): until that \
            is removed it ignores a deletion, and everything but the resource would stay",
        );
    }
    report.info(
        "Secrets cannot be looked into, and other namespaces neither: a host name in a \
        Secret, such as DATABASE_URL, is for you to look for",
    );
    Ok(uses)
}
