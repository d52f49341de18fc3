//! What comes behind the point of no return is tried before anything is touched: a policy that
//! forbids it, or a webhook that is away, would be met there with the application stopped.

use job::{
    error::{Context as _, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use platform::kubernetes::{cnpg, services};
use protocol::route::Route;
use serde_json::json;

use super::LiveWorld;
use protocol::decide;

impl LiveWorld {
    /// Asks the API server for the late changes as dry runs.
    ///
    /// # Errors
    /// What would have stopped the cut.
    pub async fn try_late_changes(&self) -> Result<()> {
        self.tried()
            .await
            .context("trying what the cut changes at its end")
    }

    async fn tried(&self) -> Result<()> {
        let (client, namespace) = (&self.run.client, &self.run.namespace);
        cnpg::try_promote(&self.clusters, &self.settings.target_cluster).await?;
        match decide::route(&self.settings.limits(), self.last()?) {
            Route::Config => {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                let change = json!({"data": self.settings.app_config_target.0});
                kubernetes::try_merge(&maps, &self.last()?.config.name, change).await?;
            }
            Route::Service => {
                for (name, selector) in self.turned()? {
                    services::try_select(client, namespace, &name, &selector).await?;
                }
            }
        }
        self.run.report.info(
            "the promotion and the change of route would be let through: the API server was \
                asked, and kept nothing",
        );
        Ok(())
    }
}
