//! A calm moment for the pause of the poolers: every client waits until the slowest transaction of
//! a pooler has ended, and a server login that PAUSE interrupts costs its pool server_login_retry
//! after RESUME (docs/operators/zalando.md#connection-poolers).

use jiff::SignedDuration;

use crate::{
    decision::Limits,
    reason::Wait,
    record::{Record, Start},
    route::Route,
    snapshot::{Snapshot, source::ClientSession},
};

/// A transaction that has been open for this long will probably not end at once.
const LONG_SECONDS: i64 = 2;
/// How long a calm moment is waited for. Without one the cutover goes on, and ends what does not
/// end by itself after PAUSE_MAX_SECONDS.
const CALM_MAX: SignedDuration = SignedDuration::from_secs(30);

/// What to wait for before the block, until the limit: it must never be what makes the cutover miss
/// the deadline that runs since its start.
pub fn awaited(record: &Record, start: &Start, seen: &Snapshot, limits: &Limits) -> Option<Wait> {
    let since = |began| seen.now.duration_since(began);
    let half = SignedDuration::try_from(limits.cutover_max / 2).unwrap_or(SignedDuration::MAX);
    let patient = record.checkpointed.is_some_and(|at| since(at) < CALM_MAX);
    if !patient || since(start.at) >= half {
        return None;
    }
    missing(start, seen)
}

/// What keeps this moment from being a calm one; None for a calm one.
pub fn missing(start: &Start, seen: &Snapshot) -> Option<Wait> {
    if start.route == Route::Config {
        return None;
    }
    let logins = seen.poolers.iter().filter(|pooler| pooler.logins > 0);
    let logins: Vec<String> = logins.map(|pooler| pooler.pod.clone()).collect();
    let transactions = long_transactions(seen);
    let calm = logins.is_empty() && transactions.is_empty();
    (!calm).then_some(Wait::NoCalmMoment {
        logins,
        transactions,
    })
}

/// Long transactions of the poolers' server connections at the source's leader, as
/// `role application_name (pid)`.
fn long_transactions(seen: &Snapshot) -> Vec<String> {
    let sessions = seen
        .source
        .answer()
        .map_or(&[][..], |source| &source.clients);
    let pooled = |session: &&ClientSession| {
        let mut poolers = seen.poolers.iter();
        poolers.any(|pooler| pooler.backends.contains(&session.pid))
    };
    let long = |session: &&ClientSession| session.transaction_seconds >= Some(LONG_SECONDS);
    let found = sessions.iter().filter(long).filter(pooled);
    found
        .map(|one| format!("{} {} ({})", one.role, one.application_name, one.pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::Fact,
        simulation::{limits, look, started},
        snapshot::Reachability,
    };

    const PID: i32 = 7;

    /// A snapshot with a transaction of this age.
    fn seen(transaction_seconds: Option<i64>) -> Snapshot {
        let mut seen = look();
        let Reachability::Up(source) = &mut seen.source else {
            panic!("it answers in that world")
        };
        source.clients = vec![ClientSession {
            pid: PID,
            role: "app".into(),
            application_name: "report".into(),
            address: None,
            transaction_seconds,
        }];
        seen.poolers[0].backends = vec![PID];
        seen
    }

    fn by_service() -> (Record, Start) {
        let record = started().with(Fact::Checkpointed(look().now));
        let start = Start {
            route: Route::Service,
            ..record.started.clone().unwrap()
        };
        (record, start)
    }

    /// What is waited for, some seconds after the checkpoint.
    fn after(seconds: i64, mut seen: Snapshot) -> Option<String> {
        let (record, start) = by_service();
        seen.now += SignedDuration::from_secs(seconds);
        awaited(&record, &start, &seen, &limits()).map(|wait| wait.to_string())
    }

    #[test]
    fn a_long_transaction_through_a_pooler_is_waited_for_until_the_limit() {
        let long = "waiting for a calm moment to pause the poolers; long transactions: app report \
            (7)";
        assert_eq!(after(0, seen(Some(LONG_SECONDS))).as_deref(), Some(long));
        assert_eq!(after(30, seen(Some(LONG_SECONDS))), None);
        assert_eq!(after(0, seen(Some(LONG_SECONDS - 1))), None);
        assert_eq!(after(0, seen(None)), None);
    }

    #[test]
    fn a_transaction_beside_the_poolers_is_not_waited_for() {
        let mut direct = seen(Some(3_600));
        direct.poolers[0].backends = vec![PID + 1];
        assert_eq!(after(0, direct), None);
        let (record, start) = by_service();
        let by_config = Start {
            route: Route::Config,
            ..start
        };
        let seen = seen(Some(3_600));
        assert_eq!(awaited(&record, &by_config, &seen, &limits()), None);
    }

    #[test]
    fn a_login_at_the_server_is_waited_for() {
        let mut seen = seen(None);
        seen.poolers[0].logins = 1;
        assert_eq!(
            after(0, seen).as_deref(),
            Some(
                "waiting for a calm moment to pause the poolers; logging in at their server: \
                 pg-pooler"
            )
        );
    }

    #[test]
    fn the_wait_ends_long_before_the_deadline_since_the_start() {
        let (record, start) = by_service();
        let mut seen = seen(Some(3_600));
        seen.now += SignedDuration::from_secs(6);
        let short = Limits {
            cutover_max: std::time::Duration::from_secs(12),
            ..limits()
        };
        assert_eq!(awaited(&record, &start, &seen, &short), None);
    }
}
