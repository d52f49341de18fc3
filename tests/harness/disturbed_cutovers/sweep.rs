//! One deed at each of many moments, several in one cut, each by a pod later than the one before;
//! what a cut did not come to, because it was through already, has a cut of its own.

use anyhow::{Result, ensure};

use super::{
    Worker,
    fault::{API_SECONDS_LONG, Fault},
    runner::CutoverRun,
    scenario::{Disturbance, Scenario},
};
use crate::route::Route;

/// Steps of one cut that are disturbed.
const FAILPOINTS_PER_CUTOVER: usize = 4;

/// What is done at each step.
const SLOW_FAULTS: [Fault; 4] = [
    Fault::ApiServerAway(API_SECONDS_LONG),
    Fault::LeaderCrashes,
    Fault::Switchover,
    Fault::ReplayPaused,
];

impl Worker {
    /// The deed at each of these moments, so many in a cut; `observe` is told of each cut.
    ///
    /// # Errors
    /// As [`Worker::run`], and a moment did not come even in a cut of its own.
    pub async fn at_all(
        &mut self,
        route: Route,
        fault: Fault,
        failpoints: &[String],
        per_cut: usize,
        mut observe: impl FnMut(&Scenario, &CutoverRun),
    ) -> Result<()> {
        let mut left = failpoints.to_vec();
        for meant in chunked(failpoints, per_cut) {
            let reached = self
                .inject_at_all(route, fault, &meant, &mut observe)
                .await?;
            left.retain(|failpoint| !reached.contains(failpoint));
        }
        for failpoint in left {
            let reached = self
                .inject_at_all(route, fault, std::slice::from_ref(&failpoint), &mut observe)
                .await?;
            ensure!(
                reached.contains(&failpoint),
                "{fault}: it never came to {failpoint}"
            );
        }
        Ok(())
    }

    /// What needs seconds at each moment, once before each effect.
    ///
    /// # Errors
    /// As [`Worker::at_all`].
    pub async fn sweep(
        &mut self,
        route: Route,
        mut observe: impl FnMut(&Scenario, &CutoverRun),
    ) -> Result<()> {
        let (failpoints, undisturbed) = self.failpoints(route).await?;
        if let Some(undisturbed) = undisturbed {
            observe(&Scenario::undisturbed(self.dcs, route), &undisturbed);
        }
        for fault in SLOW_FAULTS {
            let (first, last) = fault.phases();
            let steps: Vec<String> = failpoints
                .between(first, last)
                .into_iter()
                .filter(|failpoint| {
                    failpoint.starts_with("before ") && !failpoint.starts_with("before record ")
                })
                .map(ToOwned::to_owned)
                .collect();
            self.at_all(route, fault, &steps, FAILPOINTS_PER_CUTOVER, &mut observe)
                .await?;
        }
        Ok(())
    }

    /// One cut; the moments at which the deed was done.
    async fn inject_at_all(
        &mut self,
        route: Route,
        fault: Fault,
        failpoints: &[String],
        observe: &mut impl FnMut(&Scenario, &CutoverRun),
    ) -> Result<Vec<String>> {
        let scenario = self.scenario(
            route,
            failpoints
                .iter()
                .map(|failpoint| Disturbance::at(fault, failpoint))
                .collect(),
        );
        let cutover = self.run(&scenario).await?;
        observe(&scenario, &cutover);
        Ok(cutover.reached)
    }
}

/// Moments in as few hands as it takes with at most so many in each; in each they stay in their
/// order, and lie far apart.
pub fn chunked(failpoints: &[String], most: usize) -> Vec<Vec<String>> {
    let chunks = failpoints.len().div_ceil(most);
    let chunk = |first| {
        failpoints
            .iter()
            .skip(first)
            .step_by(chunks)
            .cloned()
            .collect()
    };
    (0..chunks).map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dealt_in_their_order() {
        let failpoints = ["a", "b", "c", "d", "e"].map(String::from);
        assert_eq!(
            chunked(&failpoints, 2),
            [vec!["a", "d"], vec!["b", "e"], vec!["c"]]
        );
        assert!(chunked(&[], 2).is_empty());
    }
}
