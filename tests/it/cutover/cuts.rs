//! Many real cuts in two lanes, one for each route and each DCS: killed right before and right
//! after every effect and every record, asked to end, raced and fought. Nothing acknowledged is
//! lost, nothing is there twice, and who goes back leaves everything as it was.

use std::time::Duration;

use harness::{
    cuts::{
        Lane,
        course::Cut,
        deed::Deed,
        moments::{Moments, Phase},
        scenario::{Act, Scenario},
        sweep::dealt,
        tally::Tally,
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
    lane: Lane,
    route: Route,
    tally: Tally,
    moments: Moments,
}

/// What is to happen in one cut, and how some of its pods must end and what they must say.
type Case = (Vec<Act>, Vec<(i32, &'static str)>);

impl Trial {
    async fn all(route: Route, dcs: Dcs) {
        let mut lane = Lane::stage(dcs).await.unwrap();
        let mut tally = Tally::default();
        let (moments, quiet) = lane.moments(route).await.unwrap();
        tally.add(&quiet.unwrap());
        let mut trial = Self {
            lane,
            route,
            tally,
            moments,
        };
        trial.killed_at_every_moment().await;
        trial.killed_on_the_way_back().await;
        trial.asked_to_end().await;
        for (acts, ends) in trial.cases() {
            let cut = trial.cut(acts).await;
            for (code, words) in ends {
                let so = cut
                    .pods
                    .iter()
                    .any(|pod| pod.ended.exit_code == code && pod.ended.text().contains(words));
                assert!(
                    so,
                    "no pod ends with {code} and says {words:?}: {}, {:#?}",
                    cut.story(),
                    cut.pods
                );
            }
        }
        println!("{}: {}", route.word(), trial.tally);
        assert!(
            trial.tally.cuts() >= CUTS_MIN,
            "only {} cuts",
            trial.tally.cuts()
        );
    }

    async fn cut(&mut self, acts: Vec<Act>) -> Cut {
        let scenario = self.lane.scenario(self.route, acts);
        let cut = match self.lane.run(&scenario).await {
            Ok(cut) => cut,
            Err(error) => self.broken(&error),
        };
        count(&mut self.tally, &scenario, &cut);
        cut
    }

    /// Keeps what explains it.
    fn broken(&self, error: &anyhow::Error) -> ! {
        panic!(
            "{error:?}\n{}",
            self.lane.keep_logs(self.route.word(), error)
        );
    }

    /// SIGKILL at each moment.
    async fn killed_at_every_moment(&mut self) {
        let Self { lane, tally, .. } = self;
        let seen = |scenario: &Scenario, cut: &Cut| count(tally, scenario, cut);
        if let Err(error) = lane
            .at_all(self.route, Deed::Kill, self.moments.all(), KILLS, seen)
            .await
        {
            self.broken(&error);
        }
        println!(
            "killed at all {} moments: {}",
            self.moments.all().len(),
            self.moments.all().join(", ")
        );
    }

    /// The same for rollback, whose way begins where the way of a cutover can still end so.
    async fn killed_on_the_way_back(&mut self) {
        let whole = self.lane.go_back(self.route, &[]).await.unwrap();
        self.tally.add_ways_back(&whole.took);
        let all = whole.moments.all();
        assert!(all.len() > KILLS, "a way back without steps: {all:?}");
        let mut left = all.to_vec();
        for kills in dealt(all, KILLS) {
            let back = match self.lane.go_back(self.route, &kills).await {
                Ok(back) => back,
                Err(error) => self.broken(&error),
            };
            self.tally.add_ways_back(&back.took);
            left.retain(|moment| !back.hit.contains(moment));
        }
        for moment in left {
            let back = self
                .lane
                .go_back(self.route, std::slice::from_ref(&moment))
                .await
                .unwrap();
            assert!(
                back.hit.contains(&moment),
                "no rollback was ever killed {moment}"
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
        let before = self.moments.between(Phase::BeforeBlock, Phase::Fenced);
        let after = self.moments.between(Phase::PastReturn, Phase::PastReturn);
        let serving = after
            .iter()
            .position(|moment| *moment == "after record Serving")
            .unwrap_or_default();
        // Clients wait at the first one, longer or less long.
        let first = if self.route == Route::Service {
            0
        } else {
            serving / 2
        };
        let mut acts: Vec<Act> = Vec::new();
        let step = before.len().div_ceil(SIGTERMS);
        for moment in before
            .iter()
            .step_by(step)
            .chain([&after[first], &after[serving + 1]])
        {
            acts.push(Act::at(Deed::Terminate, moment));
        }
        let back = acts.len() - 2;
        let cut = self.cut(acts).await;
        for pod in &cut.pods[..back] {
            assert_eq!(pod.ended.exit_code, 3, "{}: {}", pod.story, pod.ended);
        }
        for pod in &cut.pods[back..] {
            // What is left after the downtime may be done at once.
            assert!(
                [0, 1].contains(&pod.ended.exit_code),
                "{}: {}",
                pod.story,
                pod.ended
            );
        }
        let waited = &cut.pods[back];
        assert!(
            waited.ended.text().contains("DOWNTIME ENDS"),
            "{}: {}",
            waited.story,
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

fn count(tally: &mut Tally, scenario: &Scenario, cut: &Cut) {
    println!("{}", cut.line(scenario));
    tally.add(cut);
}

/// Two at once, overtaken, asked to go back from outside; the source's leadership moved; what
/// cannot catch up.
fn common() -> Vec<Case> {
    vec![
        (
            vec![Act::at(Deed::Second, "before record Started")],
            vec![
                (3, "another cutover is running"),
                (3, "this one has changed nothing"),
                (0, "DOWNTIME ENDS"),
            ],
        ),
        (
            vec![
                Act::at(Deed::RollBackMeanwhile, "before Block"),
                Act::at(Deed::RollBack, "after Promote"),
            ],
            vec![
                (0, "GOING BACK: rollback was started"),
                (3, "went back"),
                (3, "there is no way back"),
            ],
        ),
        (
            vec![
                Act::at(Deed::Abort, "after Checkpoint"),
                Act::at(Deed::Abort, "after record Fenced"),
                Act::at(Deed::Abort, "before Promote"),
            ],
            vec![
                (3, "GOING BACK: asked to go back"),
                (0, "no longer possible: the promotion is recorded"),
            ],
        ),
        (
            vec![
                Act::at(Deed::ReplayPaused, "before EndSessions"),
                Act::at(Deed::Switchover, "after Block"),
                Act::each(Deed::SourceSessions),
            ],
            vec![
                (
                    3,
                    "the cut was not through 5 s after the block (CUTOVER_MAX_SECONDS)",
                ),
                (3, "the target has replayed"),
                (3, "GOING BACK: the source failed over"),
                (3, "the application runs on the source as before"),
                (0, "DOWNTIME ENDS"),
            ],
        ),
        (
            vec![
                Act::at(Deed::LeaderCrashes, "before EndSessions"),
                Act::at(Deed::SourceStarted, "after Fence"),
                Act::each(Deed::TargetSessions),
            ],
            vec![],
        ),
    ]
}

fn by_service() -> Vec<Case> {
    vec![
        (vec![Act::at(Deed::Overtake(0.2), "before Block")], vec![]),
        (
            vec![
                Act::at(Deed::LeaderHangs(LONG), "before Block"),
                Act::at(Deed::TargetHangs(LONG), "before Restartpoint"),
            ],
            vec![],
        ),
        (vec![Act::each(Deed::PatroniHangs(BRIEFLY))], vec![]),
        (
            vec![Act::each(Deed::BlockLifted)],
            vec![(0, "somebody had lifted them")],
        ),
        (vec![Act::each(Deed::PoolersResumed)], vec![]),
        (vec![Act::each(Deed::PoolerReplaced)], vec![]),
        (
            vec![Act::at(Deed::LeaderLost, "before record Fenced")],
            vec![(3, "GOING BACK: the cut was not through 5 s after the block")],
        ),
    ]
}

fn by_config() -> Vec<Case> {
    vec![
        (vec![Act::at(Deed::Overtake(0.8), "before Fence")], vec![]),
        (
            vec![
                Act::at(Deed::Hang, "before Fence"),
                Act::at(Deed::SourceStarted, "before ProveWrite"),
            ],
            vec![(0, "DOWNTIME ENDS")],
        ),
        (vec![Act::each(Deed::ApiServerHangs(BRIEFLY))], vec![]),
        (vec![Act::each(Deed::Receiver)], vec![]),
        (vec![Act::each(Deed::ReadOnlyLifted)], vec![]),
        (
            vec![Act::at(
                Deed::ApiServerAway(AWAY_SECONDS),
                "before record Marker",
            )],
            vec![],
        ),
    ]
}
