//! Rollback from the latest possible state, by rollback as a Job, which is itself killed at
//! failpoints.

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

/// The last failpoint before the point of no return: the source's server is stopped, nothing is
/// promoted.
const LAST_FAILPOINT: &str = "before record Promotion";

/// The result of one rollback.
pub struct RollbackRun {
    /// Failpoints at which rollback was killed.
    pub reached: Vec<String>,
    /// The failpoints of the pod that finished.
    pub failpoints: Failpoints,
    /// From the decision to the first write accepted by the source.
    pub took: Vec<std::time::Duration>,
}

impl Worker {
    /// Kills a cutover at the last failpoint before the point of no return, changes a field that
    /// routes clients to the source, and runs rollback, killing one pod after the other at the
    /// failpoints `kills`.
    ///
    /// # Errors
    /// Rollback does not finish, or does not restore everything.
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
            "rollback exits 0, and nothing is rolled back: {ended}"
        );
        let checked = runner.check_rolled_back(&journal["going-back"], true).await;
        checked.with_context(|| format!("killed at {kills:?}; {ended}"))?;
        let took = runner.rollbacks.iter().map(|one| one.took).collect();
        Ok(RollbackRun {
            reached,
            failpoints: Failpoints::from_log(&ended.log),
            took,
        })
    }

    /// Changes a field that the cutover owns, as a person might during the downtime.
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
