//! The end of a cut: the clients work on the target, then they end, and the ledger says what they
//! were promised and what is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{LIMIT, Worker};
use crate::{
    ledger::{self, Outcome, Verdict},
    migration::{UNMANAGED, rows},
    snapshot::ACTIVE_WRITES,
};

/// Acknowledged writes of the forgotten writer that show that it was at work.
const FORGOTTEN_AT_WORK: usize = 20;
/// A shorter stretch without a write is none of interest.
const PAUSE: Duration = Duration::from_millis(500);

/// What the ledger says.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// In full.
    pub verdict: Verdict,
    /// Clients that had a write acknowledged.
    pub writers: usize,
}

impl Judgement {
    /// From the last write that the source acknowledged to the first that the target did.
    pub fn gap(&self) -> Duration {
        self.verdict.gap.map(|gap| gap.length()).unwrap_or_default()
    }
}

/// Ends the clients and judges; the lane must be made ready again after that.
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
    let proved = instant(&promotion["at"])?;
    let fenced = since_epoch(worker, proved);
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
    let forgotten = clients
        .iter()
        .filter(|client| client.starts_with(UNMANAGED))
        .count();
    clients.sort_unstable();
    clients.dedup();
    ensure!(
        verdict.holds() && verdict.gap.is_some(),
        "a promise is broken: {verdict:?}"
    );
    ensure!(
        forgotten > FORGOTTEN_AT_WORK,
        "the forgotten writer was not at work: {forgotten} writes"
    );
    ensure!(
        clients.len() > 8,
        "only {} clients were at work: {clients:?}",
        clients.len()
    );
    no_pooler_is_paused(worker).await?;
    let writers = clients.len();
    Ok(Judgement { verdict, writers })
}

/// No pooler is left paused.
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

/// From the decision to go back to the first write that the source acknowledged after it.
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

/// Wall clock to the clients' axis.
fn since_epoch(worker: &Worker, at: Timestamp) -> Duration {
    worker
        .epoch
        .elapsed()
        .saturating_sub(Timestamp::now().duration_since(at).unsigned_abs())
}
