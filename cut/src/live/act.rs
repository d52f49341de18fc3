//! The effects, one short function each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use shared::{
    error::{Context as _, Error, Result},
    kubernetes::{
        self, cnpg,
        patroni::Member,
        workloads,
        zalando::{self, FROZEN},
    },
    postgres::source::Incarnation,
    record::labels,
};

use super::{Live, now};
use crate::{
    decision::Action,
    journal::{Fact, Marker, Promoted, Start},
};

impl Live {
    pub(super) async fn act(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>> {
        match action {
            Action::FreezeOperator => self.controller(Some(FROZEN)).await?,
            Action::UnfreezeOperator => self.controller(start.controller.as_deref()).await?,
            Action::Checkpoint => return self.checkpoint().await.map(Some),
            Action::Hold => self.hold().await?,
            Action::Block => self.block(start).await?,
            Action::EndSessions => return self.end_sessions().await.map(Some),
            Action::Fence(incarnation) => self.stop(*incarnation).await?,
            Action::Restartpoint => self.sessions.target()?.checkpoint().await?,
            Action::Promote => cnpg::promote(&self.clusters, &self.settings.target_cluster).await?,
            Action::ProveWrite => return self.prove_write().await.map(Some),
            Action::Route => self.point_to(start, &some(&self.settings.app_config_target.0)).await?,
            Action::Unroute => self.point_to(start, &start.config.values).await?,
            Action::ScaleUp => workloads::scale(&self.run.client, &self.run.namespace, &start.replicas, &self.apps).await?,
            Action::WriteReceipt => return self.write_receipt(start).await.map(Some),
            Action::RestartSource => self.patroni.restart(self.member(&start.leader)?).await?,
            Action::Unblock => {
                let change =
                    json!({"pause": start.paused, "postgresql": {"parameters": {"default_transaction_read_only": start.read_only}}});
                self.patch_patroni(&change).await?;
            }
        }
        Ok(None)
    }

    async fn controller(&self, value: Option<&str>) -> Result<()> {
        zalando::set_controller(&self.postgresqls, &self.settings.source_cluster, value).await
    }

    async fn checkpoint(&self) -> Result<Fact> {
        self.sessions.source()?.checkpoint().await?;
        self.sessions.target()?.checkpoint().await?;
        Ok(Fact::Checkpointed(now()))
    }

    async fn hold(&self) -> Result<()> {
        self.patch_patroni(&json!({"pause": true, "postgresql": {"parameters": {"default_transaction_read_only": "on"}}}))
            .await
    }

    async fn block(&self, start: &Start) -> Result<()> {
        let nothing: BTreeMap<String, i32> = start.replicas.keys().map(|name| (name.clone(), 0)).collect();
        let (held, scaled) = futures::join!(
            self.hold(),
            workloads::scale(&self.run.client, &self.run.namespace, &nothing, &self.apps)
        );
        held.and(scaled)
    }

    async fn end_sessions(&self) -> Result<Fact> {
        let source = self.sessions.source()?;
        let ended = source.end_client_sessions().await?;
        Ok(Fact::Marker(Marker {
            at: now(),
            lsn: source.marker().await?,
            sessions_ended: ended,
        }))
    }

    /// Stops the run of the server that was decided on. The session ends with that run, so a late stop cannot hit another.
    async fn stop(&self, incarnation: Incarnation) -> Result<()> {
        let source = self.sessions.source()?;
        match source.incarnation().await {
            Ok(running) if running == incarnation => source.stop_server().await,
            // Another run, or this one is ending already: the next look tells.
            _ => Ok(()),
        }
    }

    async fn prove_write(&self) -> Result<Fact> {
        let target = self.sessions.target()?;
        target.prove_write().await?;
        Ok(Fact::Promoted(Promoted {
            at: now(),
            timeline: target.identity().await?.timeline,
        }))
    }

    async fn point_to(&self, start: &Start, values: &BTreeMap<String, Option<String>>) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.run.client.clone(), &self.run.namespace);
        kubernetes::merge(&maps, &start.config.name, json!({"data": values}))
            .await
            .map(drop)
    }

    async fn patch_patroni(&self, change: &serde_json::Value) -> Result<()> {
        let mut last = Error::transient("no member of the source has introduced itself");
        // Any member takes the change for all of them; the leader comes first.
        for member in &self.members {
            match self.patroni.patch_config(member, change).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.members
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| Error::transient(format!("the member {name} has no pod")))
    }

    /// The ConfigMap `cutover-replica-counts` of guide.md, from which a person can restore the counts by hand.
    pub(super) async fn save_replica_counts(&self, start: &Start) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.run.client.clone(), &self.run.namespace);
        let mut map = ConfigMap::default();
        map.metadata.name = Some("cutover-replica-counts".into());
        map.metadata.labels = Some(labels());
        map.data = Some(
            start
                .replicas
                .iter()
                .map(|(name, count)| (name.clone(), count.to_string()))
                .collect(),
        );
        kubernetes::apply(&maps, &map.name_any(), &map)
            .await
            .context("recording the replica counts")
            .map(drop)
    }
}

fn some(values: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    values.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect()
}
