//! One deed at each of many moments, several in one cut, each by a pod later than the one before;
//! what a cut did not come to, because it was through already, has a cut of its own.

use anyhow::{Result, ensure};

use super::{
    Lane,
    course::Cut,
    deed::{API_SECONDS_LONG, Deed},
    scenario::{Act, Scenario},
};
use crate::route::Route;

/// Steps of one cut that are disturbed.
const STEPS: usize = 4;

/// What is done at each step.
const EACH_STEP: [Deed; 4] = [
    Deed::ApiServerAway(API_SECONDS_LONG),
    Deed::LeaderCrashes,
    Deed::Switchover,
    Deed::ReplayPaused,
];

impl Lane {
    /// The deed at each of these moments, so many in a cut; `seen` is told of each cut.
    ///
    /// # Errors
    /// As [`Lane::run`], and a moment did not come even in a cut of its own.
    pub async fn at_all(
        &mut self,
        route: Route,
        deed: Deed,
        moments: &[String],
        per_cut: usize,
        mut seen: impl FnMut(&Scenario, &Cut),
    ) -> Result<()> {
        let mut left = moments.to_vec();
        for meant in dealt(moments, per_cut) {
            let hit = self.deed_at(route, deed, &meant, &mut seen).await?;
            left.retain(|moment| !hit.contains(moment));
        }
        for moment in left {
            let hit = self
                .deed_at(route, deed, std::slice::from_ref(&moment), &mut seen)
                .await?;
            ensure!(hit.contains(&moment), "{deed}: it never came to {moment}");
        }
        Ok(())
    }

    /// What needs seconds at each moment, once before each effect.
    ///
    /// # Errors
    /// As [`Lane::at_all`].
    pub async fn sweep(
        &mut self,
        route: Route,
        mut seen: impl FnMut(&Scenario, &Cut),
    ) -> Result<()> {
        let (moments, quiet) = self.moments(route).await?;
        if let Some(quiet) = quiet {
            seen(&Scenario::quiet(self.dcs, route), &quiet);
        }
        for deed in EACH_STEP {
            let (first, last) = deed.phases();
            let steps: Vec<String> = moments
                .between(first, last)
                .into_iter()
                .filter(|moment| {
                    moment.starts_with("before ") && !moment.starts_with("before record ")
                })
                .map(ToOwned::to_owned)
                .collect();
            self.at_all(route, deed, &steps, STEPS, &mut seen).await?;
        }
        Ok(())
    }

    /// One cut; the moments at which the deed was done.
    async fn deed_at(
        &mut self,
        route: Route,
        deed: Deed,
        moments: &[String],
        seen: &mut impl FnMut(&Scenario, &Cut),
    ) -> Result<Vec<String>> {
        let scenario = self.scenario(
            route,
            moments.iter().map(|moment| Act::at(deed, moment)).collect(),
        );
        let cut = self.run(&scenario).await?;
        seen(&scenario, &cut);
        Ok(cut.hit)
    }
}

/// Moments in as few hands as it takes with at most so many in each; in each they stay in their
/// order, and lie far apart.
pub fn dealt(moments: &[String], most: usize) -> Vec<Vec<String>> {
    let hands = moments.len().div_ceil(most);
    let hand = |first| moments.iter().skip(first).step_by(hands).cloned().collect();
    (0..hands).map(hand).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dealt_in_their_order() {
        let moments = ["a", "b", "c", "d", "e"].map(String::from);
        assert_eq!(
            dealt(&moments, 2),
            [vec!["a", "d"], vec!["b", "e"], vec!["c"]]
        );
        assert!(dealt(&[], 2).is_empty());
    }
}
