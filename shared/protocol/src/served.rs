//! Whether the clients of the poolers are served by the target: the evidence that ends the
//! downtime. That a console reports no pause says nothing about the network, the TLS settings and
//! the pg_hba rules between a pooler and the target.

use jiff::{SignedDuration, Timestamp};

use crate::{
    reason::{UnservedPooler, Wait},
    snapshot::{PoolerPodState, Snapshot, poolers::Traffic},
};

/// A resumed pooler logs in within a fraction of a second. One that has not after this time
/// probably cannot, and the causes are worth naming.
const USUAL_MAX: SignedDuration = SignedDuration::from_secs(2);
/// How long one pool is waited for whose pooler reaches the target: what keeps it waiting then is a
/// matter of its database or role, and may be older than the cutover. A failed login costs
/// server_login_retry, 5 s in the operator's poolers
/// (docs/operators/zalando.md#connection-poolers).
const ONE_POOL_MAX: SignedDuration = SignedDuration::from_secs(10);

/// The poolers that have not shown yet that they serve their clients from the target, given when
/// the Services were seen to lead there; None when all have.
pub fn missing(routed: Timestamp, seen: &Snapshot) -> Option<Wait> {
    let elapsed = seen.now.duration_since(routed);
    let poolers: Vec<UnservedPooler> = seen
        .poolers
        .iter()
        .filter_map(|pooler| unserved(pooler, elapsed))
        .collect();
    (!poolers.is_empty()).then_some(Wait::PoolersNotServed {
        poolers,
        overdue: elapsed >= USUAL_MAX,
    })
}

/// Pools that still wait for a connection although their pooler reaches the target, as
/// `pod: database/role`.
pub fn waiting_pools(seen: &Snapshot) -> Vec<String> {
    let of_pod = |pooler: &PoolerPodState| {
        let traffic = pooler.traffic.clone().unwrap_or_default();
        let pod = pooler.pod.clone();
        pool_names(&traffic)
            .into_iter()
            .map(move |name| format!("{pod}: {name}"))
    };
    seen.poolers.iter().flat_map(of_pod).collect()
}

fn unserved(pooler: &PoolerPodState, elapsed: SignedDuration) -> Option<UnservedPooler> {
    let traffic = pooler.traffic.clone().unwrap_or_default();
    let served = traffic.connected && (traffic.waiting.is_empty() || elapsed >= ONE_POOL_MAX);
    (!served).then(|| UnservedPooler {
        pod: pooler.pod.clone(),
        pools: if traffic.connected {
            pool_names(&traffic)
        } else {
            Vec::new()
        },
        // In steps, so that the line is not repeated every second.
        waited_seconds: traffic.waited_seconds().map(|seconds| seconds / 10 * 10),
        refusal: traffic.refusal,
    })
}

fn pool_names(traffic: &Traffic) -> Vec<String> {
    let pools = traffic.waiting.iter();
    pools
        .map(|pool| format!("{}/{}", pool.database, pool.user))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Failure,
        simulation::look,
        snapshot::{PoolerState, Reachability, poolers::WaitingPool},
    };

    fn waiting(seconds: u64) -> WaitingPool {
        WaitingPool {
            database: "app".into(),
            user: "web".into(),
            seconds,
        }
    }

    /// What is missing of a resumed pooler, some seconds after the Services lead to the target.
    fn after(seconds: i64, traffic: Option<Traffic>) -> Option<String> {
        let mut seen = look();
        let routed = seen.now;
        seen.now += SignedDuration::from_secs(seconds);
        seen.poolers = vec![PoolerPodState {
            traffic,
            ..PoolerPodState::new("pg-pooler-1", Reachability::Up(PoolerState::Serving))
        }];
        missing(routed, &seen).map(|wait| wait.to_string())
    }

    #[test]
    fn a_connection_is_evidence_and_a_console_that_reports_no_pause_is_none() {
        let connected = Traffic {
            connected: true,
            ..Traffic::default()
        };
        assert_eq!(after(0, Some(connected)), None);
        let unknown = "waiting until the target is reached by pg-pooler-1";
        assert_eq!(after(0, None).as_deref(), Some(unknown));
        let idle = after(0, Some(Traffic::default()));
        assert_eq!(idle.as_deref(), Some(unknown));
    }

    #[test]
    fn a_pooler_that_does_not_reach_the_target_is_named_with_the_likely_causes() {
        let refused = Traffic {
            connected: false,
            waiting: vec![waiting(7), waiting(23)],
            refusal: Some(Failure::transient("connect failed")),
        };
        assert_eq!(
            after(3_600, Some(refused)).as_deref(),
            Some(
                "pooler pg-pooler-1 does not reach the target, and its clients wait, for more \
                 than 20 s (a login through it: connect failed): NetworkPolicy? TLS \
                 (server_tls_sslmode)? pg_hba?"
            )
        );
        let idle = after(2, Some(Traffic::default()));
        assert_eq!(
            idle.as_deref(),
            Some(
                "pooler pg-pooler-1 does not reach the target: NetworkPolicy? TLS \
                 (server_tls_sslmode)? pg_hba?"
            )
        );
    }

    #[test]
    fn one_pool_of_a_pooler_that_reaches_the_target_is_waited_for_until_its_limit() {
        let one = || {
            Some(Traffic {
                connected: true,
                waiting: vec![waiting(1)],
                refusal: None,
            })
        };
        assert_eq!(
            after(9, one()).as_deref(),
            Some("pooler pg-pooler-1 has no server connection yet for app/web")
        );
        assert_eq!(after(10, one()), None);
    }
}
