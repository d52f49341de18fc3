//! The scenario of one cutover: derived from a seed, or written by a test.

use std::fmt;

use fastrand::Rng;

use super::{failpoints::Failpoints, fault::Fault};
use crate::{route::Route, source::Dcs};

/// The most disturbances of one random cutover.
const DISTURBANCES_MAX: usize = 3;

/// Whether CloudNativePG restarts the target after its promotion
/// (docs/operators/cloudnative-pg.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// archive_mode changes from always to on.
    Happens,
    /// The Cluster was created with `cnpg.io/skipWalArchiving`.
    Skipped,
}

/// When a fault is injected.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// At the failpoint of this name.
    Failpoint(String),
    /// At the failpoint at this relative position, from 0 to 1, among those where the fault may be
    /// injected.
    Position(f64),
    /// At each failpoint where the fault may be injected, in one pod.
    Each,
}

/// A fault and when to inject it.
#[derive(Clone, Debug, PartialEq)]
pub struct Disturbance {
    /// The fault.
    pub fault: Fault,
    /// When it is injected.
    pub at: When,
}

/// One cutover and its disturbances.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The seed; None for a scenario that a test has written.
    pub seed: Option<u64>,
    /// Where Patroni keeps its state.
    pub dcs: Dcs,
    /// How the application is routed to the target.
    pub route: Route,
    /// Whether the target restarts after its promotion.
    pub restart: Restart,
    /// The disturbances in order, each in a pod of its own.
    pub disturbances: Vec<Disturbance>,
}

impl Scenario {
    /// The scenario of a seed. Even seeds use Endpoints as DCS, odd ones ConfigMaps, so that one
    /// environment serves many seeds.
    pub fn from_seed(seed: u64) -> Self {
        let mut chance = Rng::with_seed(seed);
        let route = if chance.bool() {
            Route::Service
        } else {
            Route::Config
        };
        let disturbances = (0..chance.usize(1..=DISTURBANCES_MAX)).map(|_| Disturbance {
            fault: Fault::any(&mut chance, route, dcs(seed)),
            at: When::Position(chance.f64()),
        });
        Self {
            seed: Some(seed),
            dcs: dcs(seed),
            route,
            disturbances: disturbances.collect(),
            restart: if chance.bool() {
                Restart::Happens
            } else {
                Restart::Skipped
            },
        }
    }

    /// True if one of its faults has this [name](Fault::name).
    pub fn has(&self, fault: &str) -> bool {
        self.disturbances
            .iter()
            .any(|disturbance| disturbance.fault.name() == fault)
    }

    /// A cutover without disturbances.
    pub fn undisturbed(dcs: Dcs, route: Route) -> Self {
        Self {
            seed: None,
            dcs,
            route,
            restart: Restart::Happens,
            disturbances: Vec::new(),
        }
    }
}

/// The DCS of a seed's scenario.
pub fn dcs(seed: u64) -> Dcs {
    if seed.is_multiple_of(2) {
        Dcs::Endpoints
    } else {
        Dcs::ConfigMaps
    }
}

impl Disturbance {
    /// A fault at one failpoint.
    pub fn at(fault: Fault, failpoint: &str) -> Self {
        Self {
            fault,
            at: When::Failpoint(failpoint.to_owned()),
        }
    }

    /// A fault at a relative position among its failpoints.
    pub fn about(fault: Fault, position: f64) -> Self {
        Self {
            fault,
            at: When::Position(position),
        }
    }

    /// A fault at each of its failpoints.
    pub fn each(fault: Fault) -> Self {
        Self {
            fault,
            at: When::Each,
        }
    }

    /// The failpoint of the fault; None for each.
    pub fn failpoint(&self, failpoints: &Failpoints) -> Option<String> {
        match &self.at {
            When::Failpoint(failpoint) => Some(failpoint.clone()),
            When::Position(position) => {
                let (first, last) = self.fault.phases();
                Some(chosen(failpoints.between(first, last), *position))
            }
            When::Each => None,
        }
    }
}

/// The failpoint at a relative position; sorted by name, so that a seed means the same whatever the
/// order was.
pub fn chosen(mut failpoints: Vec<&str>, position: f64) -> String {
    failpoints.sort_unstable();
    let number = (position * failpoints.len() as f64) as usize;
    failpoints
        .get(number)
        .or(failpoints.last())
        .map(ToString::to_string)
        .unwrap_or_default()
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let restart = match self.restart {
            Restart::Happens => "restart",
            Restart::Skipped => "no restart",
        };
        write!(f, "{}, {:?}, {restart}", self.route.word(), self.dcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same_and_all_together_mean_everything() {
        assert_eq!(Scenario::from_seed(7), Scenario::from_seed(7));
        let all: Vec<Scenario> = (0..500).map(Scenario::from_seed).collect();
        for route in [Route::Service, Route::Config] {
            for restart in [Restart::Happens, Restart::Skipped] {
                for dcs in [Dcs::Endpoints, Dcs::ConfigMaps] {
                    let matches =
                        |s: &&Scenario| (s.route, s.restart, s.dcs) == (route, restart, dcs);
                    assert!(
                        all.iter().any(|s| matches(&s)),
                        "{route:?} {restart:?} {dcs:?}"
                    );
                }
            }
        }
        let names: std::collections::BTreeSet<String> = all
            .iter()
            .flat_map(|scenario| &scenario.disturbances)
            .map(|disturbance| disturbance.fault.name())
            .collect();
        assert!(names.len() >= Fault::KINDS, "{names:?}");
    }
}
