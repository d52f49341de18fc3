//! Checks that the API server would admit the changes behind the point of no return, before
//! anything is changed: a policy that forbids one of them, or a webhook that is unreachable, would
//! otherwise show itself while the application is stopped.

use job::{
    error::{Context as _, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use platform::kubernetes::{cnpg, manifest, services};
use protocol::{decide, route::Route};
use serde_json::json;

use super::LiveWorld;

impl LiveWorld {
    /// Sends the late changes to the API server as dry runs.
    ///
    /// # Errors
    /// The error that would have stopped the cutover.
    pub async fn check_late_changes(&self) -> Result<()> {
        self.dry_run_late_changes()
            .await
            .context("checking that the late changes of the cutover would be admitted")
    }

    async fn dry_run_late_changes(&self) -> Result<()> {
        let (client, namespace) = (&self.run.client, &self.run.namespace);
        cnpg::try_promote(&self.clusters, &self.settings.target_cluster).await?;
        manifest::try_rewrite(client, namespace, &self.settings.target_cluster).await?;
        match decide::route(&self.settings.limits(), self.last()?) {
            Route::Config => {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                let change = json!({"data": self.settings.app_config_target.0});
                kubernetes::try_merge(&maps, &self.last()?.config.name, change).await?;
            }
            Route::Service => {
                for (name, selector) in self.repointed_services()? {
                    services::try_select(client, namespace, &name, &selector).await?;
                }
            }
        }
        self.run
            .report
            .info("dry runs show that the API server admits the promotion and the change of route");
        Ok(())
    }
}
