//! One observation: the record, then both sides and the requests to abort, all at the same time.

use job::error::Result;
use platform::collector::{Controllers, Scope};
use protocol::{
    driver::Direction, reason::AbortRequest, record::Record, route::Route, snapshot::Snapshot,
};

use super::{LiveWorld, abort};

/// What is asked for. While clients wait, only what a decision needs is asked: each call takes
/// time.
fn scope(record: &Record, wanted: Option<Route>) -> Scope<'_> {
    let start = record.started.as_ref();
    let route = start.map(|start| start.route);
    let rollback = record.rollback_started.is_some();
    let service = route.or(wanted) != Some(Route::Config);
    let resting = record.marker.is_some() && record.promoted.is_none() && !rollback;
    Scope {
        start,
        untouched: record.blocked.is_none(),
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
        service_answer: service && record.promoted.is_some() && record.routed.is_none(),
        client_names: true,
        sessions_ended: record.marker.is_some(),
        prechecks: record.blocked.is_none() && record.rolled_back.is_none(),
    }
}

impl LiveWorld {
    /// Reads the record and observes both sides.
    pub(super) async fn observe_both_sides(&mut self) -> Result<(Record, Snapshot)> {
        let stored = self.load().await?;
        let record = stored.facts.clone();
        let before = self.collector.last();
        let before = before.map_or_else(Vec::new, |last| last.reconnected.clone());
        let mut scope = scope(&record, self.settings.route);
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
        self.log_reconnected(&before, &snapshot.reconnected);
        self.log_late_abort(&record, &snapshot);
        self.record = Some(stored);
        Ok((record, snapshot))
    }
}
