//! A snapshot of the environment, to check that a rollback restored everything.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    application::Application,
    ledger::Outcome,
    migration::Migration,
    objects::{CNPG, CONFIG_MAP, DEPLOYMENT, POOLER, POSTGRESQL, ROLE, SECRET, SERVICE},
    source::{Source, rest},
};

/// Acknowledged writes that show that the application is active.
pub const ACTIVE_WRITES: usize = 100;

/// Values by a name such as `Service database-rw`.
pub type Snapshot = BTreeMap<String, Value>;

/// Takes a snapshot of what users and controllers configure: the objects, Patroni's configuration
/// and the source's server. The cutover's records, its Lease and Jobs are left out.
///
/// # Errors
/// The API server or the source does not answer.
pub async fn take(migration: &Migration) -> Result<Snapshot> {
    let (mut all, objects) = (Snapshot::new(), migration.objects());
    for kind in [
        CONFIG_MAP, SECRET, SERVICE, DEPLOYMENT, ROLE, CNPG, POOLER, POSTGRESQL,
    ] {
        for mut object in objects.list(kind, "").await? {
            let metadata = object["metadata"].take();
            object["status"].take();
            let name = metadata["name"].as_str().unwrap_or_default();
            // Patroni's own state is read from Patroni instead.
            if kind == CONFIG_MAP && metadata["labels"]["application"] == "spilo" {
                continue;
            }
            let configured = json!([metadata["labels"], metadata["annotations"], object]);
            all.insert(format!("{} {name}", kind.2), configured);
        }
    }
    all.retain(|name, _| !name.starts_with("ConfigMap cutover-"));
    add_source_state(&migration.source, &mut all).await?;
    Ok(all)
}

async fn add_source_state(source: &Source, all: &mut Snapshot) -> Result<()> {
    let leader = source.leader().await?;
    all.insert("leader".into(), leader.name().into());
    all.insert(
        "patroni".into(),
        rest::get(&format!("{}/config", leader.rest_url())).await?,
    );
    let session = source.connect("postgres").await?;
    let server = "select json_build_object('timeline', timeline_id, 'read_only', \
        current_setting('default_transaction_read_only'))
        from pg_control_checkpoint()";
    all.insert(
        "server".into(),
        session.query_one(server, &[]).await?.get(0),
    );
    Ok(())
}

/// Describes the differences between two snapshots, except for the names in `except`.
pub fn differences(before: &Snapshot, after: &Snapshot, except: &[&str]) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let shown = |side: Option<&Value>| side.map_or_else(|| "nothing".to_owned(), Value::to_string);
    names
        .into_iter()
        .filter(|name| !except.contains(&name.as_str()) && before.get(*name) != after.get(*name))
        .map(|name| {
            format!(
                "{name} was {} and is {}",
                shown(before.get(name)),
                shown(after.get(name))
            )
        })
        .collect()
}

/// Checks that the application's pods are ready and that its clients write to the source.
///
/// # Errors
/// The application is not active within `limit`, or another server acknowledged a write.
pub async fn runs_on_the_source(
    application: &Application,
    source: &Source,
    limit: std::time::Duration,
) -> Result<()> {
    application.ready(limit).await?;
    let before = application.attempts().len();
    application.acknowledges(ACTIVE_WRITES, limit).await?;
    let addresses: BTreeSet<String> = source
        .members()
        .iter()
        .map(|member| member.address().to_string())
        .collect();
    for attempt in &application.attempts()[before..] {
        if let Outcome::Acknowledged(server) = &attempt.outcome {
            ensure!(
                addresses.contains(&server.address),
                "acknowledged by another server: {attempt:?}"
            );
        }
    }
    Ok(())
}
