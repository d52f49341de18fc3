//! Patches the `postgresql` resource and waits until the source runs with the change.

use std::time::Duration;

use job::pods::Pod;
use job::{
    context::JobContext,
    error::{Context as _, Error, ErrorKind, Result},
    kubernetes,
    wait::{ProbeResult, until},
};
use kube::{Api, api::ListParams};
use platform::{
    kubernetes::zalando,
    patroni::{self, Patroni},
    postgres::in_recovery,
};
use tokio::time::Instant;

use crate::{
    observation::{self, SourceAccess},
    queries,
    settings::Settings,
    source_change::{self, Required},
};

/// Limit for a rolling update. Every pod stops, starts and catches up, one after the other, and the
/// shutdown checkpoint of a large server takes minutes.
const ROLLING_UPDATE_MAX: Duration = Duration::from_secs(1800);
/// Limit for a reload. The operator passes a parameter on to Patroni at once, and Patroni to the
/// servers within its loop_wait.
const RELOAD_MAX: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(2);

/// Requests the changes of the operator, and returns when the source has them.
///
/// # Errors
/// Transient when the source does not have them in time.
pub async fn apply(
    run: &JobContext,
    settings: &Settings,
    access: &SourceAccess,
    required: &Required,
) -> Result<()> {
    let cr = observation::resource(run, settings).await?;
    let running = queries::hba_file(&*access.open("postgres").await?).await?;
    let name = &settings.source_cluster;
    if let Some(mut patch) = source_change::patch(&cr.spec, required, &running) {
        // A concurrent change by another client must not be lost: with its resourceVersion the API
        // server refuses this patch then.
        patch["metadata"] = serde_json::json!({"resourceVersion": cr.metadata.resource_version});
        kubernetes::merge(
            &zalando::postgresqls(&run.client, &run.namespace),
            name,
            patch,
        )
        .await?;
        run.report.step(
            "SourceChanged",
            format!("postgresql {name} requests {}", describe(required)),
        );
    }
    let limit = if required.admitted_role.is_some() {
        ROLLING_UPDATE_MAX
    } else {
        RELOAD_MAX
    };
    until(Instant::now() + limit, INTERVAL, async || {
        let missing = match missing(run, settings, access, required).await {
            Ok(None) => return Ok(ProbeResult::Ready(())),
            Ok(Some(missing)) => missing,
            // While pods are recreated, the leader is unreachable at times.
            Err(error) if error.kind() == ErrorKind::Transient => error.to_string(),
            Err(error) => return Err(error),
        };
        run.report
            .waiting(format!("waiting for the operator: {missing}"));
        Ok(ProbeResult::NotYet(missing))
    })
    .await
    .map_err(|error| {
        error.hint(
            "read the log of the postgres-operator; run this step again when the source has the \
             change",
        )
    })?;
    run.report.step(
        "SourceUpdated",
        format!("the source runs with {}", describe(required)),
    );
    Ok(())
}

fn describe(required: &Required) -> String {
    let wal = required
        .wal_keep_mb
        .map(|mb| format!("wal_keep_size {mb} MB"));
    let hba = required
        .admitted_role
        .map(|role| format!("a line of pg_hba for {role}"));
    [wal, hba]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" and ")
}

async fn missing(
    run: &JobContext,
    settings: &Settings,
    access: &SourceAccess,
    required: &Required,
) -> Result<Option<String>> {
    let leader = access.open("postgres").await?;
    if in_recovery(&leader).await? {
        return Ok(Some("a leader".into()));
    }
    let kept_mb = queries::settings(&leader)
        .await?
        .get("wal_keep_size")
        .and_then(|setting| setting.raw.parse().ok())
        .unwrap_or(0);
    if let Some(missing) = required.missing(kept_mb, &queries::hba_rules(&leader).await?) {
        return Ok(Some(missing));
    }
    match required.admitted_role {
        None => Ok(None),
        // The leader has it; other pods may still have to be recreated.
        Some(role) => missing_members(run, settings, role).await,
    }
}

/// Describes which members do not run with the change yet. The operator passes pg_hba to the pods
/// in an environment variable, so a pod's specification shows whether it has the change.
async fn missing_members(
    run: &JobContext,
    settings: &Settings,
    role: &str,
) -> Result<Option<String>> {
    let wanted = observation::resource(run, settings)
        .await?
        .spec
        .number_of_instances as usize;
    let pods: Api<Pod> = Api::namespaced(run.client.clone(), &run.namespace);
    let selector =
        ListParams::default().labels(&zalando::member_selector(&settings.source_cluster));
    let list = pods
        .list(&selector)
        .await
        .context("listing the members of the source")?;
    let recreated = list
        .iter()
        .filter(|pod| {
            pod.container("postgres")
                .and_then(|container| container.value("SPILO_CONFIGURATION"))
                .is_some_and(|text| text.contains(role))
        })
        .count();
    if recreated < wanted {
        return Ok(Some(format!(
            "{recreated} of {wanted} pods have been recreated"
        )));
    }
    let members = patroni::members(&run.client, &run.namespace, &settings.source_cluster).await?;
    let leader = members
        .iter()
        .find(|member| member.leader)
        .ok_or_else(|| Error::transient("the source has no leader"))?;
    let view = Patroni::default().cluster(leader).await?;
    let up = view
        .members
        .iter()
        .filter(|member| matches!(member.state.as_str(), "running" | "streaming"))
        .count();
    Ok((up < wanted).then(|| format!("{up} of {wanted} members are running")))
}
