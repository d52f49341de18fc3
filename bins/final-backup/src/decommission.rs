//! Reports what decommissioning the source involves: what deleting it would remove, what still uses
//! it, and whether it is ready to be deleted. Deletes nothing.

mod gate;
mod impact;
mod observe;
mod operator;
mod references;
mod sessions;

use jiff::Timestamp;
use job::{context::JobContext, error::Result};

use crate::{
    complete::Complete,
    members::{self, Member},
    receipt::CutoverState,
    server::ensure_fenced,
    settings::Settings,
};

/// Logs the deletion's impact, the remaining users of the source, and the commands that delete it
/// or the reasons against that.
///
/// # Errors
/// Unsafe if the source accepts writes after a cutover.
pub async fn report(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    backup: Option<&Complete>,
) -> Result<()> {
    let members = members::list(&run.client, &run.namespace, &settings.source_cluster).await?;
    ensure_fenced(cutover, &members)?;
    let snapshot = observe::observe(settings, run).await?;
    report_impact(settings, run, &snapshot);
    let uses = report_uses(settings, run, members, &snapshot).await?;
    let report = &run.report;
    let unmet = gate::unmet(&gate::Conditions {
        backup,
        cutover,
        validated: snapshot.validated.as_ref(),
        retention_days: settings.retention_days,
        now: Timestamp::now(),
        uses,
    });
    report.fact("ready_to_delete", unmet.is_empty());
    if !unmet.is_empty() {
        report.warning(
            "NotReadyToDelete",
            format!("not ready to delete: {}", unmet.join("; ")),
        );
        return Ok(());
    }
    report.step(
        "ReadyToDelete",
        "ready to delete; this step deletes nothing. Run these commands in this order:",
    );
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    for command in impact::commands(
        &run.namespace,
        &settings.source_cluster,
        snapshot.ignored_by_operator(),
        &snapshot.operator,
        &today,
    ) {
        report.info(format!("  {command}"));
    }
    Ok(())
}

fn report_impact(settings: &Settings, run: &JobContext, snapshot: &observe::Snapshot) {
    let report = &run.report;
    let source = settings.source_cluster.as_str();
    if snapshot.resource.is_none() {
        report.info(format!(
            "the postgresql resource {source} does not exist any more; what is left of it:"
        ));
    } else {
        report.info(format!(
            "deleting the postgresql resource {source} would remove:"
        ));
    }
    if !snapshot.operator.read {
        let reason = match &settings.operator_config {
            None => "OPERATOR_CONFIG is not set".to_owned(),
            Some(config) => {
                format!("{config} cannot be read (components/decommission grants that)")
            }
        };
        report.warning(
            "OperatorDefaults",
            format!(
                "the operator's defaults are assumed, which delete volumes and Secrets: {reason}"
            ),
        );
    }
    for line in impact::lines(source, &snapshot.inventory, &snapshot.operator) {
        report.info(format!("  {line}"));
    }
}

/// Logs what still uses the source. Returns the number of users that would lose something.
async fn report_uses(
    settings: &Settings,
    run: &JobContext,
    members: Vec<Member>,
    snapshot: &observe::Snapshot,
) -> Result<usize> {
    let report = &run.report;
    let mut uses = 0;
    let mut used = |text: String| {
        uses += 1;
        report.info(format!("still used: {text}"));
    };
    for silent in members.iter().filter(|member| member.own.is_none()) {
        used(format!(
            "{}, so its sessions are unknown",
            silent.describe()
        ));
    }
    for sessions in sessions::list(members).await? {
        used(format!(
            "sessions at {}: {}",
            sessions.member, sessions.description
        ));
    }
    for (object, reference) in &snapshot.uses.references {
        used(format!(
            "{object} refers to {} in {}",
            reference.name, reference.path
        ));
    }
    for (service, selector) in &snapshot.uses.repointed {
        let detach = impact::detach_selector(&run.namespace, service);
        used(format!(
            "the Service {service} points to the target and is deleted with the source: clients \
             that connect to this name lose their database. To find out whether any client does, \
             detach its selector: {detach} (the selector is {selector})"
        ));
    }
    if uses == 0 {
        report.info(
            "no remaining users: no sessions, and no ConfigMap, workload or Cluster in this \
             namespace refers to it",
        );
    }
    report_leftovers(settings, run, snapshot);
    Ok(uses)
}

/// Logs what does not prevent a deletion, but needs attention with it.
fn report_leftovers(settings: &Settings, run: &JobContext, snapshot: &observe::Snapshot) {
    let report = &run.report;
    for reference in &snapshot.uses.bootstrap_only {
        report.info(format!(
            "the Cluster {} still refers to {} in {}, which only its bootstrap needed: remove it \
             there",
            settings.target_cluster, reference.name, reference.path
        ));
    }
    if snapshot.ignored_by_operator() {
        report.info(
            "the annotation acid.zalan.do/controller makes the operator ignore the resource: until \
             it is removed, a deletion removes only the resource itself",
        );
    }
    report.info(
        "Secrets and other namespaces are not searched: check yourself for host names in Secrets, \
         such as DATABASE_URL",
    );
}
