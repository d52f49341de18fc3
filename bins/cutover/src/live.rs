//! The real world: sessions to both servers, Patroni's REST API, and the Kubernetes API.

pub mod abort;
mod admission_check;
mod effects;
mod log;
mod observe;

use std::time::Duration;

use jiff::Timestamp;
use job::{
    context::JobContext,
    error::{Error, Result},
    record_store::{Saved, StoredRecord},
};
use platform::{
    collector::{Collector, endpoints::Endpoints, session::limited},
    kubernetes::cnpg::{self, Cluster},
};
use protocol::{
    decision::{Action, Limits},
    driver::{Direction, PollInterval, World, drive},
    failure::Failure,
    quantity::elapsed,
    reason::{Refusal, Stopped, Wait},
    record::{self, Fact, Record, Start},
    snapshot::Snapshot,
    steps,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{failpoint::reached, receipt, settings::Settings};

/// Pause between observations while a change is under way: short, because clients wait.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);
/// Pause between observations when clients are served and only the Services are watched.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between observations while the target's promotion runs.
const PROMOTION_PAUSE: Duration = Duration::from_millis(200);
/// Interval at which the target alone is asked during that pause.
const PROMOTION_POLL: Duration = Duration::from_millis(10);
/// How long after a rollback another program may still act on what it observed before: longer than
/// any action takes.
const LATE_ACTIONS_MAX: Duration = Duration::from_secs(300);
/// Limit of one action: longer than any single call waits. An action that is cut off is repeated.
const EFFECT_MAX: Duration = Duration::from_secs(30);
/// Limit of the action that checkpoints both sides: twice the limit of one checkpoint.
const CHECKPOINTS_MAX: Duration = Duration::from_secs(1200);
/// Pause after a failed observation or action.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// The servers and objects of this migration.
pub struct LiveWorld {
    run: JobContext,
    settings: Settings,
    limits: Limits,
    collector: Collector,
    clusters: kube::Api<Cluster>,
    /// As last read; None until the first observation.
    record: Option<StoredRecord>,
    /// The facts with which this program has ended the cutover or its rollback: the record may be
    /// removed from then on.
    ended: Option<Record>,
    direction: Direction,
    /// The warning that it is too late to roll back has been logged.
    late_abort_logged: bool,
}

impl LiveWorld {
    /// Opens nothing yet: every observation reconnects what is missing.
    pub fn new(run: JobContext, settings: Settings, endpoints: Endpoints) -> Self {
        let collector = Collector::new(
            run.client.clone(),
            &run.namespace,
            settings.subject(),
            endpoints,
        );
        Self {
            clusters: cnpg::clusters(&run.client, &run.namespace),
            limits: settings.limits(),
            collector,
            record: None,
            ended: None,
            direction: Direction::Forward,
            late_abort_logged: false,
            run,
            settings,
        }
    }

    /// The same world for the rollback, which never continues the cutover.
    #[must_use]
    pub fn rollback_started(mut self) -> Self {
        self.direction = Direction::Back;
        self
    }

    /// The Zalando operator is suspended by a cutover, this one or another.
    ///
    /// # Errors
    /// Config when the source does not exist.
    pub async fn operator_is_suspended(&self) -> Result<bool> {
        Ok(self.collector.postgresql().await?.is_suspended())
    }

    /// The record as it is now.
    ///
    /// # Errors
    /// Unsafe for a record that cannot be parsed.
    pub async fn record(&self) -> Result<Record> {
        self.load().await.map(|record| record.facts)
    }

    /// The last snapshot.
    fn last(&self) -> Result<&Snapshot> {
        self.collector
            .last()
            .ok_or_else(|| Error::manual_intervention("an action before the first observation"))
    }

    /// The promotion was requested, and the target was still a standby in the last snapshot.
    fn promotion_runs(&self) -> bool {
        let asked = self
            .record
            .as_ref()
            .is_some_and(|record| record.facts.past_point_of_no_return());
        let standby = |last: &Snapshot| {
            !last.cluster.follows
                && last
                    .target
                    .answer()
                    .is_some_and(|target| target.in_recovery)
        };
        asked && self.collector.last().is_some_and(standby)
    }

    /// Asks the target alone, for at most [`PROMOTION_PAUSE`]: a complete observation slows the
    /// promotion down and notices its end later.
    async fn until_promoted(&self) {
        let until = Instant::now() + PROMOTION_PAUSE;
        while Instant::now() < until {
            sleep(PROMOTION_POLL).await;
            let standby = match self.collector.target.session() {
                Ok(target) => limited(target.in_recovery()).await,
                Err(error) => Err(error),
            };
            if !standby.unwrap_or(false) {
                return;
            }
        }
    }

    /// Name of the ConfigMap that holds the journal.
    pub fn record_name(&self) -> String {
        record::name(&self.settings.target_cluster)
    }

    async fn load(&self) -> Result<StoredRecord> {
        StoredRecord::load(&self.run.client, &self.run.namespace, &self.record_name()).await
    }

    /// Makes sure that a rollback that has just ended still stands, while its record says what is
    /// to be restored: another program may have acted late. What has changed since an older one was
    /// changed on purpose.
    ///
    /// # Errors
    /// It does not, and cannot be completed.
    pub async fn complete_rollback(&mut self, limits: &Limits) -> Result<()> {
        let rolled_back = self.load().await?.facts.rolled_back;
        let late = |at| elapsed(at, now()) < LATE_ACTIONS_MAX;
        if self.settings.dry_run || !rolled_back.is_some_and(late) {
            return Ok(());
        }
        self.direction = Direction::Back;
        let outcome = drive(self, limits).await;
        self.direction = Direction::Forward;
        match outcome {
            Ok(()) | Err(Stopped::Refused(Refusal::RolledBack { .. })) => Ok(()),
            Err(stopped) => Err(Failure::from(stopped).into()),
        }
    }

    /// Empties the record of an attempt that was rolled back, so that this run starts from scratch.
    /// Any other attempt continues where it stands.
    pub async fn start_over_after_rollback(&mut self) -> Result<()> {
        let mut record = self.load().await?;
        if record.facts.rolled_back.is_some() && !self.settings.dry_run {
            let reason = record
                .facts
                .rollback_started
                .as_ref()
                .map_or("", |back| back.reason.as_str())
                .to_owned();
            self.run.report.info(format!(
                "an earlier cutover was rolled back ({reason}); starting from scratch"
            ));
            let empty = record.facts.with(Fact::StartOver);
            let state = steps::state(&empty);
            record
                .save(&self.run.client, &self.run.namespace, empty, state)
                .await?;
        }
        match record.facts.started {
            None => self.no_receipt_yet().await,
            Some(_) => Ok(()),
        }
    }

    /// Checks that no receipt of an earlier cutover exists, before this one has begun.
    ///
    /// # Errors
    /// Refused when one exists.
    pub async fn no_receipt_yet(&self) -> Result<()> {
        let (client, namespace) = (&self.run.client, &self.run.namespace);
        receipt::none_yet(client, namespace, &self.settings.target_cluster).await
    }

    /// Writes the record with one more fact, and logs it.
    async fn save(&mut self, fact: Fact) -> Result<Option<Record>> {
        // Taken: after an error it is unknown whether the write arrived, and only a new observation
        // may continue.
        let Some(mut record) = self.record.take() else {
            return Ok(None);
        };
        let (kind, moment) = (fact.kind(), format!("record {}", fact.name()));
        let facts = record.facts.with(fact);
        let state = steps::state(&facts);
        reached(&format!("before {moment}"), &self.run.report).await;
        let saved = record
            .save(&self.run.client, &self.run.namespace, facts, state)
            .await?;
        reached(&format!("after {moment}"), &self.run.report).await;
        match saved {
            Saved::Yes => {
                self.log_fact(kind, &record.facts);
                let facts = record.facts.clone();
                self.ended = (!facts.under_way()).then(|| facts.clone());
                self.record = Some(record);
                Ok(Some(facts))
            }
            Saved::Conflict => {
                self.run.report.warning(
                    "Conflict",
                    "another cutover has written to the record; observing again",
                );
                Ok(None)
            }
        }
    }

    /// Performs an action within its limit, and logs it.
    async fn carry_out(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>> {
        self.log_action(action);
        reached(&format!("before {}", action.name()), &self.run.report).await;
        let outcome = match timeout(effect_max(action), self.act(action, start)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // The statement may still run in these sessions.
                self.collector.source.forget();
                self.collector.target.forget();
                Err(Error::transient(format!(
                    "{} did not end in time",
                    action.name()
                )))
            }
        };
        reached(&format!("after {}", action.name()), &self.run.report).await;
        outcome
    }
}

impl World for LiveWorld {
    async fn observe(&mut self) -> Result<(Record, Snapshot), Failure> {
        Ok(self.observe_both_sides().await?)
    }

    async fn prepare_block(&mut self) -> Result<(), Failure> {
        Ok(self.check_late_changes().await?)
    }

    async fn prepare_start(&mut self, start: &Start) -> Result<(), Failure> {
        self.check_late_changes().await?;
        // Patroni accepts changes from this pod: the value that is in force changes nothing.
        self.patch_patroni(&json!({"pause": start.paused})).await?;
        Ok(self.save_replica_counts(start).await?)
    }

    async fn record(&mut self, fact: Fact) -> Result<Option<Record>, Failure> {
        Ok(self.save(fact).await?)
    }

    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>, Failure> {
        Ok(self.carry_out(action, start).await?)
    }

    async fn pause(&mut self, missing: &Wait, interval: PollInterval) {
        self.run.report.waiting(missing.to_string());
        match interval {
            PollInterval::Close if self.promotion_runs() => self.until_promoted().await,
            PollInterval::Close if matches!(missing, Wait::ServicesWatched { .. }) => {
                sleep(WATCH_PAUSE).await;
            }
            PollInterval::Close => sleep(CLOSE_PAUSE).await,
            PollInterval::Failed => sleep(FAILED_PAUSE).await,
        }
    }

    fn stop_asked(&self) -> bool {
        self.run.stop.is_requested()
    }

    fn direction(&self) -> Direction {
        self.direction
    }
}

/// The limit of an action. A server whose volume hangs accepts a statement and never answers, and
/// SIGTERM, an abort and the deadline are honoured only between actions.
fn effect_max(action: &Action) -> Duration {
    match action {
        // Clients are served meanwhile, and each statement has its own limit.
        Action::Checkpoint => CHECKPOINTS_MAX,
        _ => EFFECT_MAX,
    }
}

/// The wall clock, for the record.
fn now() -> Timestamp {
    Timestamp::now()
}
