//! What is to happen in one cut: derived from a seed, or written down by a test.

use std::fmt;

use fastrand::Rng;

use super::{deed::Deed, moments::Moments};
use crate::{route::Route, source::Dcs};

/// The most disturbances of one cut.
const ACTS_MAX: usize = 3;

/// Whether CloudNativePG restarts the target after its promotion (facts/cnpg.md §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// archive_mode changes from always to on.
    Follows,
    /// The Cluster was created with `cnpg.io/skipWalArchiving`.
    Spared,
}

/// When something happens.
#[derive(Clone, Debug, PartialEq)]
pub enum At {
    /// At the moment of this name.
    Moment(String),
    /// At the moment that lies so far among those at which it may happen, from 0 to 1.
    Share(f64),
    /// At each moment at which it may happen, in one pod.
    Each,
}

/// One disturbance.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    /// What.
    pub deed: Deed,
    /// When.
    pub at: At,
}

/// One cut with all that disturbs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Where it comes from; None when a test has written it down.
    pub seed: Option<u64>,
    /// Patroni's way to keep its state.
    pub dcs: Dcs,
    /// The way to the target.
    pub route: Route,
    /// Of the target after its promotion.
    pub restart: Restart,
    /// In this order, each with a pod of its own.
    pub acts: Vec<Act>,
}

impl Scenario {
    /// The scenario of a seed. Even ones are for Endpoints as DCS, odd ones for ConfigMaps, so that
    /// a stage serves many.
    pub fn of(seed: u64) -> Self {
        let mut chance = Rng::with_seed(seed);
        let route = if chance.bool() {
            Route::Service
        } else {
            Route::Config
        };
        let acts = (0..chance.usize(1..=ACTS_MAX)).map(|_| Act {
            deed: Deed::any(&mut chance, route),
            at: At::Share(chance.f64()),
        });
        Self {
            seed: Some(seed),
            dcs: dcs(seed),
            route,
            acts: acts.collect(),
            restart: if chance.bool() {
                Restart::Follows
            } else {
                Restart::Spared
            },
        }
    }

    /// A cut that nothing disturbs.
    pub fn quiet(dcs: Dcs, route: Route) -> Self {
        Self {
            seed: None,
            dcs,
            route,
            restart: Restart::Follows,
            acts: Vec::new(),
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

impl Act {
    /// At a moment.
    pub fn at(deed: Deed, moment: &str) -> Self {
        Self {
            deed,
            at: At::Moment(moment.to_owned()),
        }
    }

    /// Somewhere among its moments.
    pub fn about(deed: Deed, share: f64) -> Self {
        Self {
            deed,
            at: At::Share(share),
        }
    }

    /// At each of its moments.
    pub fn each(deed: Deed) -> Self {
        Self { deed, at: At::Each }
    }

    /// The one moment that is meant; None for each.
    pub fn moment(&self, moments: &Moments) -> Option<String> {
        match &self.at {
            At::Moment(moment) => Some(moment.clone()),
            At::Share(share) => {
                let (first, last) = self.deed.phases();
                Some(chosen(moments.between(first, last), *share))
            }
            At::Each => None,
        }
    }
}

/// The moment at a share of these; by their names, so that a seed means the same whatever came
/// first.
pub fn chosen(mut moments: Vec<&str>, share: f64) -> String {
    moments.sort_unstable();
    let number = (share * moments.len() as f64) as usize;
    moments
        .get(number)
        .or(moments.last())
        .map(ToString::to_string)
        .unwrap_or_default()
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let restart = match self.restart {
            Restart::Follows => "restart",
            Restart::Spared => "no restart",
        };
        write!(f, "{}, {:?}, {restart}", self.route.word(), self.dcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same_and_all_together_mean_everything() {
        assert_eq!(Scenario::of(7), Scenario::of(7));
        let all: Vec<Scenario> = (0..500).map(Scenario::of).collect();
        for route in [Route::Service, Route::Config] {
            for restart in [Restart::Follows, Restart::Spared] {
                for dcs in [Dcs::Endpoints, Dcs::ConfigMaps] {
                    let is = |s: &&Scenario| (s.route, s.restart, s.dcs) == (route, restart, dcs);
                    assert!(all.iter().any(|s| is(&s)), "{route:?} {restart:?} {dcs:?}");
                }
            }
        }
        let names: std::collections::BTreeSet<String> = all
            .iter()
            .flat_map(|scenario| &scenario.acts)
            .map(|act| {
                format!("{:?}", act.deed)
                    .split('(')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        assert!(names.len() >= Deed::KINDS, "{names:?}");
    }
}
