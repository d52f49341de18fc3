//! The way back from as far as there is one, by rollback as a Job, which is killed on its way as
//! well.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    LIMIT, Lane, SERVICES,
    course::Course,
    moments::{Moments, waits_at},
    scenario::Scenario,
};
use crate::{
    migration::CLUSTER,
    objects::{CONFIG_MAP, SERVICE},
    route::Route,
};

/// The source's server is stopped, and nothing is promoted yet.
const LAST_MOMENT: &str = "before record Promotion";

/// What one way back was.
pub struct Back {
    /// Moments at which rollback was killed.
    pub hit: Vec<String>,
    /// The moments of the pod that came to the end.
    pub moments: Moments,
    /// From the decision to the first write that the source took again.
    pub took: Vec<std::time::Duration>,
}

impl Lane {
    /// A cutover is killed as late as there is a way back, somebody meddles with what leads to the
    /// source, and rollback puts everything back, one pod after the other being killed at these
    /// moments.
    ///
    /// # Errors
    /// It does not, or not everything is as it was.
    pub async fn go_back(&mut self, route: Route, kills: &[String]) -> Result<Back> {
        let scenario = Scenario::quiet(self.dcs, route);
        self.prepared(&scenario).await?;
        let mut course = Course::begin(self, &scenario).await?;
        let cutover = course
            .lane
            .pod("cutover", route)
            .env("FAILPOINT", LAST_MOMENT)
            .start()
            .await?;
        cutover.says(&waits_at(Some(LAST_MOMENT)), LIMIT).await?;
        cutover.kill();
        cutover.wait(LIMIT).await?;
        course.lane.meddle(route).await?;
        let mut hit = Vec::new();
        for moment in kills {
            let rollback = course
                .lane
                .pod("rollback", route)
                .env("FAILPOINT", moment)
                .start()
                .await?;
            if rollback.says(&waits_at(Some(moment)), LIMIT).await.is_ok() {
                rollback.kill();
                hit.push(moment.clone());
            }
            rollback.wait(LIMIT).await?;
        }
        let ended = course
            .lane
            .pod("rollback", route)
            .env("FAILPOINT", "*")
            .run(LIMIT)
            .await?;
        ensure!(ended.exit_code == 0, "rollback: {ended}");
        let journal = course.lane.migration.journal().await?;
        ensure!(
            journal.contains_key("returned"),
            "rollback exits 0, and nothing is put back: {ended}"
        );
        let returned = course.returned(&journal["going-back"], true).await;
        returned.with_context(|| format!("killed at {kills:?}; {ended}"))?;
        let took = course.ways_back;
        Ok(Back {
            hit,
            moments: Moments::of(&ended.log),
            took,
        })
    }

    /// What a person might do in the window and forget to undo: it is the cutover's own field that
    /// is changed.
    async fn meddle(&self, route: Route) -> Result<()> {
        let objects = self.migration.objects();
        match route {
            Route::Service => {
                let selector = json!({"cnpg.io/cluster": CLUSTER});
                objects
                    .patch(
                        SERVICE,
                        SERVICES[0],
                        json!({"spec": {"selector": selector}}),
                    )
                    .await
            }
            Route::Config => {
                let host = json!({"data": {"DB_HOST": "database-pooler-rw"}});
                objects
                    .patch(CONFIG_MAP, &self.settings.config_map, host)
                    .await
            }
        }
    }
}
