//! Many real cuts in two lanes, one for each route and each DCS: killed right before and right
//! after every effect and every record, asked to end, raced and fought. Nothing acknowledged is
//! lost, nothing is there twice, and who goes back leaves everything as it was.

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

/// Pods that are killed in one cut, each later than the one before.
const KILLS: usize = 6;
/// Pods that are asked to end before the point of no return.
const SIGTERMS: usize = 4;
/// A server that hangs at each moment: longer than the pause between two looks.
const BRIEFLY: Duration = Duration::from_millis(300);
/// A server that hangs longer than a look waits for it.
const LONG: Duration = Duration::from_secs(3);
/// Longer than the Lease lasts, and than Patroni's own retry.
const AWAY_SECONDS: u64 = 20;
/// Blocked, and brought to an end or back. Of both lanes together it must be 60.
const CUTS_MIN: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_services_nothing_is_lost_whatever_happens() {
    Trial::all(Route::Service, Dcs::Endpoints).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_config_map_nothing_is_lost_whatever_happens() {
    Trial::all(Route::Config, Dcs::ConfigMaps).await;
}

/// One lane, and what was seen in it.
struct Trial {
    worker: Worker,
    route: Route,
    statistics: Statistics,
    failpoints: Failpoints,
}

/// What is to happen in one cut, and how some of its pods must end and what they must say.
type Case = (Vec<Disturbance>, Vec<(i32, &'static str)>);

impl Trial {
    async fn all(route: Route, dcs: Dcs) {
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
        trial.killed_at_every_moment().await;
        trial.killed_on_the_way_back().await;
        trial.asked_to_end().await;
        for (disturbances, ends) in trial.cases() {
            let cutover = trial.cutover(disturbances).await;
            for (code, words) in ends {
                let so = cutover
                    .pods
                    .iter()
                    .any(|pod| pod.ended.exit_code == code && pod.ended.text().contains(words));
                assert!(
                    so,
                    "no pod ends with {code} and says {words:?}: {}, {:#?}",
                    cutover.trace(),
                    cutover.pods
                );
            }
        }
        println!("{}: {}", route.word(), trial.statistics);
        assert!(
            trial.statistics.cutovers() >= CUTS_MIN,
            "only {} cuts",
            trial.statistics.cutovers()
        );
    }

    async fn cutover(&mut self, disturbances: Vec<Disturbance>) -> CutoverRun {
        let scenario = self.worker.scenario(self.route, disturbances);
        let cutover = match self.worker.run(&scenario).await {
            Ok(cutover) => cutover,
            Err(error) => self.broken(&error),
        };
        count(&mut self.statistics, &scenario, &cutover);
        cutover
    }

    /// Keeps what explains it.
    fn broken(&self, error: &anyhow::Error) -> ! {
        panic!(
            "{error:?}\n{}",
            self.worker.keep_logs(self.route.word(), error)
        );
    }

    /// SIGKILL at each moment.
    async fn killed_at_every_moment(&mut self) {
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
            self.broken(&error);
        }
        println!(
            "killed at all {} moments: {}",
            self.failpoints.all().len(),
            self.failpoints.all().join(", ")
        );
    }

    /// The same for rollback, whose way begins where the way of a cutover can still end so.
    async fn killed_on_the_way_back(&mut self) {
        let whole = self.worker.roll_back(self.route, &[]).await.unwrap();
        self.statistics.add_rollbacks(&whole.took);
        let all = whole.failpoints.all();
        assert!(all.len() > KILLS, "a way back without steps: {all:?}");
        let mut left = all.to_vec();
        for kills in chunked(all, KILLS) {
            let rollback = match self.worker.roll_back(self.route, &kills).await {
                Ok(rollback) => rollback,
                Err(error) => self.broken(&error),
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
            "rollback killed at all {} moments: {}",
            all.len(),
            all.join(", ")
        );
    }

    /// Before the point of no return it goes back in its grace period; after it it lets the clients
    /// through before it ends, and the next one does what is left.
    async fn asked_to_end(&mut self) {
        let before = self.failpoints.between(Phase::BeforeBlock, Phase::Fenced);
        let after = self
            .failpoints
            .between(Phase::PastReturn, Phase::PastReturn);
        let serving = after
            .iter()
            .position(|failpoint| *failpoint == "after record Serving")
            .unwrap_or_default();
        // Clients wait at the first one, longer or less long.
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
            // What is left after the downtime may be done at once.
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

    /// Everything else, at moments that have proved to be interesting, or at each; what both routes
    /// have in common is shared out.
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

/// Two at once, overtaken, asked to go back from outside; the source's leadership moved; what
/// cannot catch up.
fn common() -> Vec<Case> {
    vec![
        (
            vec![Disturbance::at(Fault::Second, "before record Started")],
            vec![
                (3, "another cutover is running"),
                (3, "this one has changed nothing"),
                (0, "DOWNTIME ENDS"),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::RollBackMeanwhile, "before BlockWrites"),
                Disturbance::at(Fault::RollBack, "after Promote"),
            ],
            vec![
                (0, "ROLLING BACK: rollback was started"),
                (3, "rolled back"),
                (3, "a rollback is no longer possible"),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::Abort, "after Checkpoint"),
                Disturbance::at(Fault::Abort, "after record Fenced"),
                Disturbance::at(Fault::Abort, "before Promote"),
            ],
            vec![
                (3, "ROLLING BACK: asked to roll back"),
                (0, "no longer possible: the promotion is recorded"),
            ],
        ),
        (
            vec![
                Disturbance::at(Fault::ReplayPaused, "before EndSessions"),
                Disturbance::at(Fault::Switchover, "after BlockWrites"),
                Disturbance::each(Fault::SourceSessions),
            ],
            vec![
                (
                    3,
                    "the point of no return was not reached 5 s after the block \
                     (CUTOVER_MAX_SECONDS)",
                ),
                (3, "the target has replayed"),
                (3, "ROLLING BACK: the source failed over"),
                (3, "the application runs on the source as before"),
                (0, "DOWNTIME ENDS"),
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
            vec![(0, "another actor had lifted them")],
        ),
        (vec![Disturbance::each(Fault::PoolersResumed)], vec![]),
        (vec![Disturbance::each(Fault::PoolerReplaced)], vec![]),
        (
            vec![Disturbance::at(Fault::LeaderLost, "before record Fenced")],
            vec![(
                3,
                "ROLLING BACK: the point of no return was not reached 5 s after the block",
            )],
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
            vec![(0, "DOWNTIME ENDS")],
        ),
        (
            vec![Disturbance::each(Fault::ApiServerHangs(BRIEFLY))],
            vec![],
        ),
        (vec![Disturbance::each(Fault::Receiver)], vec![]),
        (vec![Disturbance::each(Fault::ReadOnlyLifted)], vec![]),
        (
            vec![Disturbance::at(
                Fault::ApiServerAway(AWAY_SECONDS),
                "before record Marker",
            )],
            vec![],
        ),
    ]
}
