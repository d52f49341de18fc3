//! Many disturbed cutovers with two workers, one for each route and each DCS. Their pods are killed
//! right before and right after every effect and every record, or receive SIGTERM; other programs
//! compete with them. No acknowledged write is lost, none is there twice, and an attempt that rolls
//! back leaves everything as it was.

use std::time::Duration;

use harness::{
    disturbed_cutovers::{
        Worker,
        failpoints::{Failpoints, Phase},
        fault::Fault,
        runner::CutoverRun,
        scenario::{Disturbance, Scenario},
        statistics::Statistics,
        sweep::chunked,
    },
    route::Route,
    source::Dcs,
};

/// Pods that are killed in one cutover, each later than the one before.
const KILLS: usize = 6;
/// Pods that receive SIGTERM before the point of no return.
const SIGTERMS: usize = 4;
/// A server that hangs at each moment: longer than the pause between two observations.
const BRIEFLY: Duration = Duration::from_millis(300);
/// A server that hangs for longer than an observation waits for it.
const LONG: Duration = Duration::from_secs(3);
/// Seconds without an API server: longer than the Lease is valid, and than Patroni retries.
const API_SERVER_DOWN_SECONDS: u64 = 20;
/// Why a cutover rolled back; how many seconds it took depends on the machine.
const DEADLINE: &str = "s after the block (CUTOVER_MAX_SECONDS)";
const DEMOTED: &str = "patroni has made the source's leader a standby";
const OUTAGE: &str = "the API server did not answer for";
const LOST: &str = "s while clients wait";
/// Attempts of each worker that block writes and then finish or roll back; 60 of both together.
const CUTOVERS_MIN: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_route_service_no_acknowledged_write_is_lost() {
    Trial::run_all(Route::Service, Dcs::Endpoints).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_route_config_no_acknowledged_write_is_lost() {
    Trial::run_all(Route::Config, Dcs::ConfigMaps).await;
}

/// One worker, and the statistics of its cutovers.
struct Trial {
    worker: Worker,
    route: Route,
    statistics: Statistics,
    failpoints: Failpoints,
}

/// The disturbances of one cutover, and the exit codes and log texts that some of its pods must
/// have: one of them, where it depends on the moment of an observation.
type Case = (Vec<Disturbance>, Vec<(i32, &'static [&'static str])>);

impl Trial {
    async fn run_all(route: Route, dcs: Dcs) {
        let mut worker = Worker::start(dcs).await.unwrap();
        let mut statistics = Statistics::default();
        let (failpoints, undisturbed) = worker.failpoints(route).await.unwrap();
        statistics.add(&undisturbed.unwrap());
        let mut trial = Self {
            worker,
            route,
            statistics,
            failpoints,
        };
        trial.killed_at_every_failpoint().await;
        trial.rollback_killed_at_every_failpoint().await;
        trial.terminated().await;
        for (disturbances, ends) in trial.cases() {
            let cutover = trial.cutover(disturbances).await;
            for (code, words) in ends {
                let found = cutover.pods.iter().any(|pod| {
                    let text = pod.ended.text();
                    pod.ended.exit_code == code && words.iter().any(|word| text.contains(word))
                });
                assert!(
                    found,
                    "no pod ends with {code} and logs {words:?}: {}, {:#?}",
                    cutover.trace(),
                    cutover.pods
                );
            }
        }
        println!("{}: {}", route.word(), trial.statistics);
        assert!(
            trial.statistics.cutovers() >= CUTOVERS_MIN,
            "only {} cutovers",
            trial.statistics.cutovers()
        );
    }

    async fn cutover(&mut self, disturbances: Vec<Disturbance>) -> CutoverRun {
        let scenario = self.worker.scenario(self.route, disturbances);
        let cutover = match self.worker.run(&scenario).await {
            Ok(cutover) => cutover,
            Err(error) => self.fail(&error),
        };
        count(&mut self.statistics, &scenario, &cutover);
        cutover
    }

    /// Keeps the logs, and fails the test.
    fn fail(&self, error: &anyhow::Error) -> ! {
        panic!(
            "{error:?}\n{}",
            self.worker.keep_logs(self.route.word(), error)
        );
    }

    /// SIGKILL at each failpoint.
    async fn killed_at_every_failpoint(&mut self) {
        let Self {
            worker, statistics, ..
        } = self;
        let observe =
            |scenario: &Scenario, cutover: &CutoverRun| count(statistics, scenario, cutover);
        if let Err(error) = worker
            .at_all(
                self.route,
                Fault::Kill,
                self.failpoints.all(),
                KILLS,
                observe,
            )
            .await
        {
            self.fail(&error);
        }
        println!(
            "killed at all {} failpoints: {}",
            self.failpoints.all().len(),
            self.failpoints.all().join(", ")
        );
    }

    /// SIGKILL at each failpoint of the step rollback.
    async fn rollback_killed_at_every_failpoint(&mut self) {
        let whole = self.worker.roll_back(self.route, &[]).await.unwrap();
        self.statistics.add_rollbacks(&whole.took);
        let all = whole.failpoints.all();
        assert!(all.len() > KILLS, "a rollback without steps: {all:?}");
        let mut left = all.to_vec();
        for kills in chunked(all, KILLS) {
            let rollback = match self.worker.roll_back(self.route, &kills).await {
                Ok(rollback) => rollback,
                Err(error) => self.fail(&error),
            };
            self.statistics.add_rollbacks(&rollback.took);
            left.retain(|failpoint| !rollback.reached.contains(failpoint));
        }
        for failpoint in left {
            let rollback = self
                .worker
                .roll_back(self.route, std::slice::from_ref(&failpoint))
                .await
                .unwrap();
            assert!(
                rollback.reached.contains(&failpoint),
                "no rollback was ever killed {failpoint}"
            );
        }
        println!(
            "rollback killed at all {} failpoints: {}",
            all.len(),
            all.join(", ")
        );
    }

    /// SIGTERM. Before the point of no return the pod rolls back within its grace period. After it,
    /// it resumes client traffic before it ends, and the next pod does the rest.
    async fn terminated(&mut self) {
        let before = self.failpoints.between(Phase::BeforeBlock, Phase::Fenced);
        let after = self
            .failpoints
            .between(Phase::PastPointOfNoReturn, Phase::PastPointOfNoReturn);
        let serving = after
            .iter()
            .position(|failpoint| *failpoint == "after record Serving")
            .unwrap_or_default();
        // Clients are waiting at this failpoint; where differs by route.
        let first = if self.route == Route::Service {
            0
        } else {
            serving / 2
        };
        let mut disturbances: Vec<Disturbance> = Vec::new();
        let step = before.len().div_ceil(SIGTERMS);
        for failpoint in before
            .iter()
            .step_by(step)
            .chain([&after[first], &after[serving + 1]])
        {
            disturbances.push(Disturbance::at(Fault::Terminate, failpoint));
        }
        let rollback = disturbances.len() - 2;
        let cutover = self.cutover(disturbances).await;
        for pod in &cutover.pods[..rollback] {
            assert_eq!(pod.ended.exit_code, 3, "{}: {}", pod.trace, pod.ended);
        }
        for pod in &cutover.pods[rollback..] {
            // After the downtime, the grace period may be long enough for the rest.
            assert!(
                [0, 1].contains(&pod.ended.exit_code),
                "{}: {}",
                pod.trace,
                pod.ended
            );
        }
        let waited = &cutover.pods[rollback];
        assert!(
            waited.ended.text().contains("DOWNTIME ENDS"),
            "{}: {}",
            waited.trace,
            waited.ended
        );
    }

    /// All other faults: at failpoints where they matter most, or at each. Cases that both routes
    /// have in common run with both.
    fn cases(&self) -> Vec<Case> {
        let mut all = common();
        all.extend(match self.route {
            Route::Service => by_service(),
            Route::Config => by_config(),
        });
        all
    }
}

fn count(statistics: &mut Statistics, scenario: &Scenario, cutover: &CutoverRun) {
    println!("{}", cutover.line(scenario));
    statistics.add(cutover);
}

/// A second cutover, rollback from outside, another leader of the source, and a target that cannot
/// catch up.
fn common() -> Vec<Case> {
    vec![
        (
            vec![Disturbance::at(Fault::Second, "before record Started")],
            vec![
                (3, &["another cutover is running"]),
                (3, &["this one has changed nothing"]),
                (0, &["DOWNTIME ENDS"]),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::RollBackMeanwhile, "before BlockWrites"),
                Disturbance::at(Fault::RollBack, "after Promote"),
            ],
            vec![
                (0, &["ROLLING BACK: rollback was started"]),
                (3, &["rolled back"]),
                (3, &["a rollback is no longer possible"]),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::Abort, "after Checkpoint"),
                Disturbance::at(Fault::Abort, "after record Fenced"),
                Disturbance::at(Fault::Abort, "before Promote"),
            ],
            vec![
                (3, &["ROLLING BACK: asked to roll back"]),
                (0, &["no longer possible: the promotion is recorded"]),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::ReplayPaused, "before EndSessions"),
                Disturbance::at(Fault::Switchover, "after BlockWrites"),
                Disturbance::each(Fault::SourceSessions),
            ],
            vec![
                (3, &[DEADLINE]),
                (3, &["the target has replayed"]),
                (3, &["ROLLING BACK: the source failed over", DEMOTED]),
                (3, &["the application runs on the source as before"]),
                (0, &["DOWNTIME ENDS"]),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::LeaderCrashes, "before EndSessions"),
                Disturbance::at(Fault::SourceStarted, "after Fence"),
                Disturbance::each(Fault::TargetSessions),
            ],
            vec![],
        ),
    ]
}

fn by_service() -> Vec<Case> {
    vec![
        (
            vec![Disturbance::at(Fault::Overtake(0.2), "before BlockWrites")],
            vec![],
        ),
        (
            vec![
                Disturbance::at(Fault::LeaderHangs(LONG), "before BlockWrites"),
                Disturbance::at(Fault::TargetHangs(LONG), "before Restartpoint"),
            ],
            vec![],
        ),
        (
            vec![Disturbance::each(Fault::PatroniHangs(BRIEFLY))],
            vec![],
        ),
        (
            vec![Disturbance::each(Fault::BlockLifted)],
            vec![(0, &["another actor had lifted them"])],
        ),
        (vec![Disturbance::each(Fault::PoolersResumed)], vec![]),
        (vec![Disturbance::each(Fault::PoolerReplaced)], vec![]),
        (
            vec![Disturbance::at(Fault::LeaderLost, "before record Fenced")],
            // The election takes as long as Patroni's leader lock is valid, so that another pod may
            // complete the rollback.
            vec![(3, &[DEADLINE, LOST])],
        ),
    ]
}

fn by_config() -> Vec<Case> {
    vec![
        (
            vec![Disturbance::at(Fault::Overtake(0.8), "before Fence")],
            vec![],
        ),
        (
            vec![
                Disturbance::at(Fault::Hang, "before Fence"),
                Disturbance::at(Fault::SourceStarted, "before VerifyWrite"),
            ],
            vec![(0, &["DOWNTIME ENDS"])],
        ),
        (
            vec![Disturbance::each(Fault::ApiServerHangs(BRIEFLY))],
            vec![],
        ),
        (vec![Disturbance::each(Fault::Receiver)], vec![]),
        (vec![Disturbance::each(Fault::ReadOnlyLifted)], vec![]),
        (
            vec![Disturbance::at(
                Fault::ApiServerAway(API_SERVER_DOWN_SECONDS),
                "before record Marker",
            )],
            // A Patroni that had not seen the pause yet has demoted its leader meanwhile.
            vec![(3, &[OUTAGE, DEMOTED, "the source failed over"])],
        ),
    ]
}
