//! The effects of the cutover, one short function each.

use std::{collections::BTreeMap, time::Duration};

use job::{
    error::{Context as _, Error, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt as _};
use platform::{
    collector::{
        controllers::Where,
        servers,
        session::{Connect as _, limited},
    },
    kubernetes::{cnpg, manifest, services, workloads},
    patroni::Member,
    postgres::Source,
};
use protocol::{
    controllers::suspension::Suspension,
    decision::Action,
    record::{Fact, Marker, Promoted, Readers, Start, labels},
    route::Route,
    snapshot::{kubernetes::Selector, source::ServerRun},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{LiveWorld, now};

/// How long restartpoints are repeated before the next observation.
const RESTARTPOINTS: Duration = Duration::from_millis(200);
const RESTARTPOINT_PAUSE: Duration = Duration::from_millis(5);
/// How long Patroni's loop sleeps after it has reloaded the server's configuration (reload_config
/// in patroni/postgresql/config.py), and the queries after that.
const PATRONI_RELOAD: Duration = Duration::from_millis(1_200);

impl LiveWorld {
    pub(super) async fn act(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>> {
        let (client, namespace) = (self.run.client.clone(), self.run.namespace.clone());
        match action {
            Action::SuspendController(key) => {
                self.set_field(start, key, |suspension| suspension.suspended.clone())
                    .await?
            }
            Action::ResumeController(key) => {
                self.set_field(start, key, |suspension| suspension.original.clone())
                    .await?
            }
            Action::DisableCrashRestart => {
                let change = json!({"postgresql": {"parameters": {"restart_after_crash": "off"}}});
                self.patch_patroni(&change).await?;
            }
            Action::Checkpoint => return self.checkpoint().await.map(Some),
            Action::PausePoolers => {
                let observed = self.last()?.poolers.clone();
                self.collector.poolers.pause(&observed).await?;
            }
            Action::ReapplyBlock => self.patch_block().await?,
            Action::BlockWrites => self.block_writes(start).await?,
            Action::EndSessions => return self.end_sessions().await.map(Some),
            Action::Fence(run) => self.fence(*run).await?,
            Action::Restartpoint => self.restartpoint().await?,
            Action::Promote => cnpg::promote(&self.clusters, &self.settings.target_cluster).await?,
            Action::VerifyWrite => return self.verify_write().await.map(Some),
            Action::RepointConfig => {
                self.point_to(start, &some(&self.settings.app_config_target.0))
                    .await?
            }
            Action::RestoreConfig => self.point_to(start, &start.config.values).await?,
            Action::ScaleDown => self.scale(&nothing(start)).await?,
            Action::ScaleUp => self.scale(&self.scaled_to_zero(start)?).await?,
            Action::RepointServices => {
                let services = self.repointed_services()?;
                let each = services.iter().map(|(name, selector)| {
                    services::select(&client, &namespace, name, Some(selector))
                });
                futures::future::try_join_all(each).await?;
            }
            Action::RestoreServices => {
                for name in self.last()?.services.keys() {
                    let before = start.services.get(name).cloned().flatten();
                    services::select(&client, &namespace, name, before.as_ref()).await?;
                    if before.is_none() {
                        services::remove_slices(&client, &namespace, name).await?;
                    }
                }
            }
            Action::ResumePoolers => {
                let observed = self.last()?.poolers.clone();
                self.collector.poolers.resume(&observed).await?;
            }
            Action::RewriteManifest => {
                manifest::rewrite(&client, &namespace, &self.settings.target_cluster).await?;
            }
            Action::FindReaders => {
                return Ok(Some(Fact::Readers(self.readers(start.route).await)));
            }
            Action::WriteReceipt => return self.write_receipt(start).await.map(Some),
            Action::RestartSource => {
                self.collector
                    .patroni
                    .restart(self.member(&start.leader)?)
                    .await?
            }
            Action::UnblockWrites => {
                let (read_only, restart) = (&start.read_only, &start.restart_after_crash);
                self.patch_patroni(&patroni_config(
                    start.paused,
                    read_only.as_deref(),
                    restart.as_deref(),
                ))
                .await?;
            }
        }
        Ok(None)
    }

    /// The existing Services of the source and their selectors after the cutover.
    pub(super) fn repointed_services(&self) -> Result<BTreeMap<String, Selector>> {
        let existing = &self.last()?.services;
        let mut selectors = self.settings.services();
        selectors.retain(|name, _| existing.contains_key(name));
        Ok(selectors)
    }

    /// Sets a recorded field, unless its object has changed since it was observed.
    async fn set_field(
        &self,
        start: &Start,
        key: &str,
        value: impl Fn(&Suspension) -> Value,
    ) -> Result<()> {
        let Some(suspension) = start
            .suspensions
            .iter()
            .find(|suspension| suspension.key() == key)
        else {
            return Err(Error::manual_intervention(format!("{key} is not recorded")));
        };
        let standing = self.last()?.standing(suspension);
        let Some(version) = standing.and_then(|standing| standing.version.as_deref()) else {
            return Ok(());
        };
        let namespace = Where {
            client: &self.run.client,
            namespace: &self.run.namespace,
        };
        namespace.set(suspension, &value(suspension), version).await
    }

    /// The recorded counts of the workloads that are scaled to 0; any other number was requested by
    /// another actor and stays.
    fn scaled_to_zero(&self, start: &Start) -> Result<BTreeMap<String, i32>> {
        let apps = &self.last()?.apps;
        let at_zero = |name: &String| apps.get(name).is_some_and(|app| app.wanted == 0);
        let idle = start.replicas.iter().filter(|(name, _)| at_zero(name));
        Ok(idle.map(|(name, count)| (name.clone(), *count)).collect())
    }

    async fn scale(&self, wanted: &BTreeMap<String, i32>) -> Result<()> {
        workloads::scale(
            &self.run.client,
            &self.run.namespace,
            wanted,
            &self.last()?.apps,
        )
        .await
    }

    /// Takes at least as long as Patroni does nothing after the reload that has brought
    /// `restart_after_crash` to the server: it would notice the block that much later.
    async fn checkpoint(&self) -> Result<Fact> {
        let both = async {
            self.collector.source.session()?.checkpoint().await?;
            self.collector.target.session()?.checkpoint().await
        };
        let (done, ()) = futures::join!(both, sleep(PATRONI_RELOAD));
        done?;
        Ok(Fact::Checkpointed(now()))
    }

    async fn patch_block(&self) -> Result<()> {
        self.patch_patroni(&patroni_config(Some(true), Some("on"), Some("off")))
            .await
    }

    async fn block_writes(&self, start: &Start) -> Result<()> {
        if start.route == Route::Service {
            return self.patch_block().await;
        }
        let nothing = nothing(start);
        let (blocked, scaled) = futures::join!(self.patch_block(), self.scale(&nothing));
        blocked.and(scaled)
    }

    async fn end_sessions(&mut self) -> Result<Fact> {
        let source = self.collector.source.session()?;
        let ended = source.end_client_sessions().await?;
        let (at, lsn) = (now(), source.marker().await?);
        Ok(Fact::Marker(Marker {
            at,
            lsn,
            sessions_ended: self
                .collector
                .pods
                .named(&self.run.client, &self.run.namespace, &ended)
                .await,
        }))
    }

    /// Stops the server if it is the run on the timeline that was decided on. The session ends with
    /// the server, so a late stop cannot hit a server that was started again.
    async fn fence(&self, run: ServerRun) -> Result<()> {
        let source = self.collector.source.session()?;
        let asked = futures::try_join!(source.postmaster_start(), source.identity());
        let found = asked.map(|(postmaster_start, identity)| ServerRun {
            timeline: identity.timeline,
            postmaster_start,
        });
        // The server was started again or is stopping: the next observation shows which.
        if !found.is_ok_and(|found| found == run) {
            return Ok(());
        }
        let final_stop = self
            .record
            .as_ref()
            .is_some_and(|record| record.facts.past_point_of_no_return());
        if !final_stop && !self.still_paused().await {
            // Another program has rolled back meanwhile: clients use this server.
            return Ok(());
        }
        let walsenders = source.walsenders(&self.settings.target_cluster).await?;
        if walsenders.others > 0 {
            self.run.report.info(format!(
                "ending {} walsenders of logical slots or of standbys that do not answer",
                walsenders.others
            ));
        }
        source
            .stop_server(self.limits.fence_max, &walsenders.confirming)
            .await
    }

    /// Whether Patroni is paused, by the first member that answers. Asked immediately before the
    /// server is stopped.
    async fn still_paused(&self) -> bool {
        let (patroni, members) = (&self.collector.patroni, &self.collector.members);
        let config = servers::config_of_any(patroni, members).await;
        config.is_ok_and(|config| config.get("pause").and_then(Value::as_bool) == Some(true))
    }

    /// Repeats restartpoints for at most [`RESTARTPOINTS`], until the target has the shutdown
    /// checkpoint behind the source's position: asking the target alone is quicker than a complete
    /// observation. `decide` judges the outcome from the next snapshot.
    async fn restartpoint(&self) -> Result<()> {
        let target = self.collector.target.session()?;
        let fenced = self
            .record
            .as_ref()
            .and_then(|record| record.facts.fenced.as_ref());
        let since = fenced.map(|fenced| fenced.lsn);
        let until = Instant::now() + RESTARTPOINTS;
        loop {
            target.checkpoint().await?;
            let control = target.control_checkpoint().await?;
            let stopped = since.is_some_and(|since| control.ends_a_run_after(since));
            if stopped || Instant::now() >= until {
                return Ok(());
            }
            sleep(RESTARTPOINT_PAUSE).await;
        }
    }

    /// Finds the sessions at the source's standbys that can be reached, because these standbys
    /// answer reads with outdated data. Where the Services were repointed they are ended, and the
    /// clients reconnect to the target. Otherwise they would come back to the same standby.
    async fn readers(&mut self, route: Route) -> Readers {
        let endpoints = self.collector.endpoints();
        let each = self.collector.members.iter().map(|member| async move {
            let mut at = endpoints.source.clone();
            let address = member.server?;
            (at.hostaddr, at.port) = (Some(address.ip()), address.port());
            let asked = limited(async {
                let session = Source::dial(at, endpoints.database.clone(), endpoints.login).await?;
                match route {
                    Route::Service => session.end_client_sessions().await,
                    Route::Config => session.client_sessions().await,
                }
            });
            asked.await.ok()
        });
        let found: Vec<_> = futures::future::join_all(each)
            .await
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        let pods = &mut self.collector.pods;
        let names = pods
            .named(&self.run.client, &self.run.namespace, &found)
            .await;
        let (ended, left) = match route {
            Route::Service => (names, Vec::new()),
            Route::Config => (Vec::new(), names),
        };
        Readers {
            at: now(),
            ended,
            left,
        }
    }

    async fn verify_write(&self) -> Result<Fact> {
        let target = self.collector.target.session()?;
        target.verify_write().await?;
        Ok(Fact::Promoted(Promoted {
            at: now(),
            timeline: target.identity().await?.timeline,
        }))
    }

    async fn point_to(
        &self,
        start: &Start,
        values: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.run.client.clone(), &self.run.namespace);
        kubernetes::merge(&maps, &start.config.name, json!({"data": values}))
            .await
            .map(drop)
    }

    pub(super) async fn patch_patroni(&self, change: &Value) -> Result<()> {
        let (patroni, members) = (&self.collector.patroni, &self.collector.members);
        patroni.patch_config(members, change).await
    }

    fn member(&self, name: &str) -> Result<&Member> {
        self.collector
            .members
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| Error::transient(format!("the member {name} has no pod")))
    }

    /// Writes the ConfigMap `cutover-replica-counts`, from which an operator can restore the counts
    /// by hand.
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

/// The change of Patroni's configuration that sets its pause, whether writes are blocked, and
/// whether the server starts again after a crash; None removes a setting.
fn patroni_config(pause: Option<bool>, read_only: Option<&str>, restart: Option<&str>) -> Value {
    json!({
        "pause": pause,
        "postgresql": {"parameters": {
            "default_transaction_read_only": read_only,
            "restart_after_crash": restart,
        }},
    })
}

fn nothing(start: &Start) -> BTreeMap<String, i32> {
    start
        .replicas
        .keys()
        .map(|name| (name.clone(), 0))
        .collect()
}

fn some(values: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    values
        .iter()
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect()
}
