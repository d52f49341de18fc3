//! One observation: the record, then both sides and the requests to abort, all at the same time.

use job::error::Result;
use platform::collector::{Controllers, Scope};
use protocol::{
    driver::Direction,
    reason::AbortRequest,
    record::Record,
    route::Route,
    snapshot::{Snapshot, prechecks::Side},
};

use super::{LiveWorld, abort};

/// What is asked for. While clients wait, only what a decision needs is asked: each call takes
/// time.
fn scope(record: &Record, wanted: Option<Route>, direction: Direction) -> Scope<'_> {
    let start = record.started.as_ref();
    let route = start.map(|start| start.route);
    let rollback = record.rollback_started.is_some();
    let service = route.or(wanted) != Some(Route::Config);
    let resting = record.marker.is_some() && record.promoted.is_none() && !rollback;
    Scope {
        start,
        // A rollback never needs the target, and restores what it can.
        untouched: record.blocked.is_none() && direction == Direction::Forward,
        target_optional: start.is_some() && record.promotion.is_none(),
        // Past the point of no return only Patroni's configuration matters.
        each_member: record.promotion.is_none(),
        // With ROUTE=service the application is not changed once its counts are recorded.
        application: !resting && route != Some(Route::Service),
        controllers: match start {
            None => Controllers::Conflicting,
            Some(_) if resting => Controllers::None,
            Some(_) => Controllers::Recorded,
        },
        // Clients are let in by then, or their pods are starting.
        manifest: record.routed.is_some(),
        services: service && (record.blocked.is_none() || rollback || record.promotion.is_some()),
        leftovers: rollback,
        poolers: service,
        traffic: record.routed.is_some() && record.serving.is_none(),
        service_answer: service_answer(record).filter(|_| service),
        client_names: true,
        sessions_ended: record.marker.is_some(),
        // A rollback never begins a cutover, and its Role does not permit all that is asked.
        prechecks: record.blocked.is_none()
            && record.rolled_back.is_none()
            && direction == Direction::Forward,
    }
}

/// Which side is expected behind the source's Service while that is waited for.
fn service_answer(record: &Record) -> Option<Side> {
    let (blocked, promoted) = (record.blocked.is_some(), record.promoted.is_some());
    if promoted && record.routed.is_none() {
        Some(Side::Target)
    } else if blocked && record.rollback_started.is_some() {
        Some(Side::Source)
    } else {
        None
    }
}

impl LiveWorld {
    /// Reads the record and observes both sides.
    pub(super) async fn observe_both_sides(&mut self) -> Result<(Record, Snapshot)> {
        let mut stored = self.load().await?;
        if stored.facts.started.is_none()
            && let Some(ended) = &self.ended
        {
            stored.facts = ended.clone();
        }
        let record = stored.facts.clone();
        let before = self.collector.last();
        let before = before.map_or_else(Vec::new, |last| last.reconnected.clone());
        let mut scope = scope(&record, self.settings.route, self.direction);
        // The rollback's Role does not allow it, and it ends where that would matter.
        scope.manifest &= self.direction == Direction::Forward;
        let (observed, abort) = futures::join!(
            self.collector.observe(&scope, &self.limits),
            abort::request(&self.run, &record)
        );
        let mut snapshot = observed?;
        snapshot.abort = match self.direction {
            Direction::Forward => abort?,
            Direction::Back => Some(AbortRequest::Rollback),
        };
        if stored.deletion_requested && stored.facts.under_way() {
            self.run.report.waiting(format!(
                "the deletion of {} waits until the cutover has ended",
                self.record_name()
            ));
        }
        self.log_reconnected(&before, &snapshot.reconnected);
        self.log_late_abort(&record, &snapshot);
        self.record = Some(stored);
        Ok((record, snapshot))
    }
}
