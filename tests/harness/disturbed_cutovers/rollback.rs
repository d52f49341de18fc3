//! The way back from as far as there is one, by rollback as a Job, which is killed on its way as
//! well.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    LIMIT, SERVICES, Worker,
    failpoints::{Failpoints, waiting_line},
    runner::Runner,
    scenario::Scenario,
};
use crate::{
    migration::CLUSTER,
    objects::{CONFIG_MAP, SERVICE},
    route::Route,
};

/// The source's server is stopped, and nothing is promoted yet.
const LAST_FAILPOINT: &str = "before record Promotion";

/// What one way back was.
pub struct RollbackRun {
    /// Moments at which rollback was killed.
    pub reached: Vec<String>,
    /// The moments of the pod that came to the end.
    pub failpoints: Failpoints,
    /// From the decision to the first write that the source took again.
    pub took: Vec<std::time::Duration>,
}

impl Worker {
    /// A cutover is killed as late as there is a way back, somebody meddles with what leads to the
    /// source, and rollback puts everything back, one pod after the other being killed at these
    /// moments.
    ///
    /// # Errors
    /// It does not, or not everything is as it was.
    pub async fn roll_back(&mut self, route: Route, kills: &[String]) -> Result<RollbackRun> {
        let scenario = Scenario::undisturbed(self.dcs, route);
        self.prepare(&scenario).await?;
        let mut runner = Runner::begin(self, &scenario).await?;
        let cutover = runner
            .worker
            .pod("cutover", route)
            .env("FAILPOINT", LAST_FAILPOINT)
            .start()
            .await?;
        cutover
            .wait_for_line(&waiting_line(Some(LAST_FAILPOINT)), LIMIT)
            .await?;
        cutover.kill();
        cutover.wait(LIMIT).await?;
        runner.worker.tamper(route).await?;
        let mut reached = Vec::new();
        for failpoint in kills {
            let rollback = runner
                .worker
                .pod("rollback", route)
                .env("FAILPOINT", failpoint)
                .start()
                .await?;
            if rollback
                .wait_for_line(&waiting_line(Some(failpoint)), LIMIT)
                .await
                .is_ok()
            {
                rollback.kill();
                reached.push(failpoint.clone());
            }
            rollback.wait(LIMIT).await?;
        }
        let ended = runner
            .worker
            .pod("rollback", route)
            .env("FAILPOINT", "*")
            .run(LIMIT)
            .await?;
        ensure!(ended.exit_code == 0, "rollback: {ended}");
        let journal = runner.worker.migration.journal().await?;
        ensure!(
            journal.contains_key("returned"),
            "rollback exits 0, and nothing is put back: {ended}"
        );
        let checked = runner.check_rolled_back(&journal["going-back"], true).await;
        checked.with_context(|| format!("killed at {kills:?}; {ended}"))?;
        let took = runner.rollbacks;
        Ok(RollbackRun {
            reached,
            failpoints: Failpoints::from_log(&ended.log),
            took,
        })
    }

    /// What a person might do in the window and forget to undo: it is the cutover's own field that
    /// is changed.
    async fn tamper(&self, route: Route) -> Result<()> {
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
