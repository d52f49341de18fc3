//! Carries out a change of the `postgresql` resource and waits until the source runs with it.

use std::time::Duration;

use job::pods::Pod;
use job::{
    context::Run,
    error::{Context as _, Error, ErrorKind, Result},
    kubernetes,
    wait::{Seen, until},
};
use kube::{Api, api::ListParams};
use platform::{
    kubernetes::zalando,
    patroni::{self, Patroni},
    postgres::in_recovery,
};
use tokio::time::Instant;

use crate::{
    inspect::{self, Reach},
    queries,
    settings::Settings,
    source_change::{self, Needed},
};

/// Every pod ends, starts and catches up, one after the other; a large one takes minutes for its
/// shutdown checkpoint alone.
const ROLLING: Duration = Duration::from_secs(1800);
/// The operator hands a parameter on to Patroni at once, Patroni to the servers within its
/// loop_wait.
const RELOAD: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(2);

/// Asks the operator for what is needed, and returns when the source has it.
///
/// # Errors
/// The API's; Transient when the source does not have it in time.
pub async fn carry_out(
    run: &Run,
    settings: &Settings,
    reach: &Reach,
    needed: &Needed,
) -> Result<()> {
    let cr = inspect::resource(run, settings).await?;
    let running = queries::hba_file(&*reach.open("postgres").await?).await?;
    let name = &settings.source_cluster;
    if let Some(mut patch) = source_change::patch(&cr.spec, needed, &running) {
        // Whoever changes the resource at the same moment must not lose his change: the API server
        // refuses ours then.
        patch["metadata"] = serde_json::json!({"resourceVersion": cr.metadata.resource_version});
        kubernetes::merge(
            &zalando::postgresqls(&run.client, &run.namespace),
            name,
            patch,
        )
        .await?;
        run.report.step(
            "SourceChanged",
            format!("postgresql {name} asks for {}", words(needed)),
        );
    }
    let limit = if needed.admitted.is_some() {
        ROLLING
    } else {
        RELOAD
    };
    until(Instant::now() + limit, INTERVAL, async || {
        let missing = match missing(run, settings, reach, needed).await {
            Ok(None) => return Ok(Seen::Ready(())),
            Ok(Some(missing)) => missing,
            // While pods are recreated the leader is away for moments.
            Err(error) if error.kind() == ErrorKind::Transient => error.to_string(),
            Err(error) => return Err(error),
        };
        run.report
            .waiting(format!("waiting for the operator: {missing}"));
        Ok(Seen::NotYet(missing))
    })
    .await
    .map_err(|error| {
        error.hint(
            "look into the log of the postgres-operator; run this step again \
        when the source is as wanted",
        )
    })?;
    run.report.step(
        "SourceUpdated",
        format!("the source runs with {}", words(needed)),
    );
    Ok(())
}

fn words(needed: &Needed) -> String {
    let wal = needed
        .wal_keep_mb
        .map(|mb| format!("wal_keep_size {mb} MB"));
    let hba = needed
        .admitted
        .map(|role| format!("a line of pg_hba for {role}"));
    [wal, hba]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" and ")
}

async fn missing(
    run: &Run,
    settings: &Settings,
    reach: &Reach,
    needed: &Needed,
) -> Result<Option<String>> {
    let leader = reach.open("postgres").await?;
    if in_recovery(&leader).await? {
        return Ok(Some("a leader".into()));
    }
    let kept_mb = queries::settings(&leader)
        .await?
        .get("wal_keep_size")
        .and_then(|setting| setting.raw.parse().ok())
        .unwrap_or(0);
    if let Some(missing) = needed.missing(kept_mb, &queries::hba_rules(&leader).await?) {
        return Ok(Some(missing));
    }
    match needed.admitted {
        None => Ok(None),
        // The leader has it; members that were made before the change are still to be made anew.
        Some(role) => unrolled(run, settings, role).await,
    }
}

/// The operator hands pg_hba to the pods in an environment variable, so a pod's specification tells
/// whether it is a new one.
async fn unrolled(run: &Run, settings: &Settings, role: &str) -> Result<Option<String>> {
    let wanted = inspect::resource(run, settings)
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
    let new = list
        .iter()
        .filter(|pod| {
            pod.container("postgres")
                .and_then(|container| container.value("SPILO_CONFIGURATION"))
                .is_some_and(|text| text.contains(role))
        })
        .count();
    if new < wanted {
        return Ok(Some(format!("{new} of {wanted} pods are made anew")));
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
    Ok((up < wanted).then(|| format!("{up} of {wanted} members run")))
}
