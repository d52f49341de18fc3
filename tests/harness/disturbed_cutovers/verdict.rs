//! Judges a cutover: the clients must work on the target; then they are stopped, and the ledger
//! compares their outcomes with the rows.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{LIMIT, Worker};
use crate::{
    ledger::{self, Outcome, Verdict},
    migration::{UNMANAGED, rows},
    snapshot::ACTIVE_WRITES,
};

/// Acknowledged writes that show that the unmanaged writer was active.
const UNMANAGED_WRITES_MIN: usize = 20;
/// Shorter intervals without a write are ignored.
const PAUSE: Duration = Duration::from_millis(500);

/// The ledger does not confirm what clients were promised.
#[derive(Debug)]
pub struct BrokenPromise(pub Verdict);

impl fmt::Display for BrokenPromise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a promise is broken: {:?}", self.0)
    }
}

impl std::error::Error for BrokenPromise {}

/// The result of the ledger.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The full verdict.
    pub verdict: Verdict,
    /// Clients that had a write acknowledged.
    pub writers: usize,
}

impl Judgement {
    /// From the last write acknowledged by the source to the first one acknowledged by the target.
    pub fn gap(&self) -> Duration {
        self.verdict.gap.map(|gap| gap.length()).unwrap_or_default()
    }
}

/// Stops the clients and judges; the environment must be reset afterwards.
///
/// # Errors
/// A promise was broken.
pub(super) async fn judge(worker: &mut Worker) -> Result<Judgement> {
    let migration = &mut worker.migration;
    migration.application.ready(LIMIT).await?;
    migration
        .application
        .acknowledges(ACTIVE_WRITES, LIMIT)
        .await?;
    let promotion = migration
        .journal()
        .await?
        .remove("promotion")
        .unwrap_or_default();
    let verified = instant(&promotion["at"])?;
    let fenced = since_epoch(worker, verified);
    let topology = worker.migration.topology(&worker.target, Some(fenced));
    let attempts = worker.migration.application.stop().await?;
    worker.ready = None;
    let (on_target, on_source) = rows(&worker.migration.source, &worker.target).await?;
    let verdict = ledger::judge(&attempts, &on_target, &on_source, &topology, PAUSE);
    let acknowledged =
        |attempt: &&ledger::Attempt| matches!(attempt.outcome, Outcome::Acknowledged(_));
    let mut clients: Vec<&str> = attempts
        .iter()
        .filter(acknowledged)
        .map(|attempt| attempt.key.client.as_str())
        .collect();
    let unmanaged = clients
        .iter()
        .filter(|client| client.starts_with(UNMANAGED))
        .count();
    clients.sort_unstable();
    clients.dedup();
    if !verdict.holds() || verdict.gap.is_none() {
        return Err(BrokenPromise(verdict).into());
    }
    ensure!(
        unmanaged > UNMANAGED_WRITES_MIN,
        "the unmanaged writer was not active: {unmanaged} writes"
    );
    ensure!(
        clients.len() > 8,
        "only {} clients were active: {clients:?}",
        clients.len()
    );
    no_pooler_is_paused(worker).await?;
    stored_manifest_keeps_the_target_promoted(worker).await?;
    let writers = clients.len();
    Ok(Judgement { verdict, writers })
}

/// Checks that the stored manifest, applied again, would not make the target a standby.
async fn stored_manifest_keeps_the_target_promoted(worker: &Worker) -> Result<()> {
    let cluster = worker.migration.rendered().await?.swap_remove(0);
    let enabled = &cluster["spec"]["replica"]["enabled"];
    ensure!(
        *enabled == false,
        "the stored manifest says spec.replica.enabled: {enabled}"
    );
    Ok(())
}

/// Checks that no pooler is left paused.
async fn no_pooler_is_paused(worker: &Worker) -> Result<()> {
    use tokio_postgres::SimpleQueryMessage;
    for pooler in &worker.migration.poolers {
        let answer = pooler.console("SHOW DATABASES").await?;
        let paused = answer.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get("paused").is_some_and(|paused| paused != "0"),
            _ => false,
        });
        ensure!(!paused, "{} is left paused", pooler.pod());
    }
    Ok(())
}

/// From the decision to roll back to the first write that the source acknowledged after it.
pub(super) fn rollback_time(worker: &Worker, rollback_fact: &Value) -> Result<Option<Duration>> {
    let decided = since_epoch(worker, instant(&rollback_fact["at"])?);
    let attempts = worker.migration.application.attempts();
    let taken = |attempt: &&ledger::Attempt| {
        matches!(attempt.outcome, Outcome::Acknowledged(_)) && attempt.sent >= decided
    };
    let first = attempts
        .iter()
        .filter(taken)
        .map(|attempt| attempt.answered)
        .min();
    Ok(first.map(|first| first.saturating_sub(decided)))
}

fn instant(text: &Value) -> Result<Timestamp> {
    let text = text.as_str().context("a fact without an instant")?;
    Ok(text.parse()?)
}

/// Converts wall-clock time to the clients' time axis.
fn since_epoch(worker: &Worker, at: Timestamp) -> Duration {
    worker
        .epoch
        .elapsed()
        .saturating_sub(Timestamp::now().duration_since(at).unsigned_abs())
}
