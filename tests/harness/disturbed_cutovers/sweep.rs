//! Injects one fault at each of many failpoints, several in one cutover, each in a pod later than
//! the one before. Failpoints that a cutover did not reach, because it had already finished, get a
//! cutover of their own.

use anyhow::{Result, ensure};

use super::{
    Worker,
    fault::{API_SECONDS_LONG, Fault},
    runner::CutoverRun,
    scenario::{Disturbance, Scenario},
};
use crate::route::Route;

/// Failpoints that are disturbed in one cutover.
const FAILPOINTS_PER_CUTOVER: usize = 4;

/// Faults that take seconds, injected before each effect.
const SLOW_FAULTS: [Fault; 4] = [
    Fault::ApiServerAway(API_SECONDS_LONG),
    Fault::LeaderCrashes,
    Fault::Switchover,
    Fault::ReplayPaused,
];

impl Worker {
    /// Injects the fault at each of these failpoints, `per_cutover` in one cutover; `observe` is
    /// called with each result.
    ///
    /// # Errors
    /// As [`Worker::run`], or a failpoint was not reached even in a cutover of its own.
    pub async fn at_all(
        &mut self,
        route: Route,
        fault: Fault,
        failpoints: &[String],
        per_cutover: usize,
        mut observe: impl FnMut(&Scenario, &CutoverRun),
    ) -> Result<()> {
        let mut left = failpoints.to_vec();
        for chunk in chunked(failpoints, per_cutover) {
            let reached = self
                .inject_at_all(route, fault, &chunk, &mut observe)
                .await?;
            left.retain(|failpoint| !reached.contains(failpoint));
        }
        for failpoint in left {
            let reached = self
                .inject_at_all(route, fault, std::slice::from_ref(&failpoint), &mut observe)
                .await?;
            ensure!(
                reached.contains(&failpoint),
                "{fault}: {failpoint} was never reached"
            );
        }
        Ok(())
    }

    /// Injects the faults that take seconds, once before each effect.
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

    /// Runs one cutover; returns the failpoints that were reached.
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

/// Splits the failpoints into as few chunks of at most `most` as possible; each chunk keeps their
/// order and spreads them widely.
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
    fn chunks_keep_the_order() {
        let failpoints = ["a", "b", "c", "d", "e"].map(String::from);
        assert_eq!(
            chunked(&failpoints, 2),
            [vec!["a", "d"], vec!["b", "e"], vec!["c"]]
        );
        assert!(chunked(&[], 2).is_empty());
    }
}
