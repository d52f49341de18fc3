//! The real world: sessions to both servers, Patroni's REST API, and the Kubernetes API.

mod act;
mod look;
mod narrate;
mod sessions;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use shared::{
    config::Connection,
    error::Result,
    job::Run,
    kubernetes::{
        cnpg::{self, Cluster},
        patroni::Patroni,
        workloads::Replicas,
        zalando::{self, Postgresql},
    },
    record::{Record, Saved},
};

use crate::{
    decision::Action,
    drive::{Pace, World},
    journal::{AppConfig, Fact, Journal, Start},
    observation::Observation,
    settings::Settings,
};
use sessions::Sessions;

/// Between looks while something is on its way: short, because clients wait.
const CLOSE_PAUSE: Duration = Duration::from_millis(20);
/// After a failure.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// The servers and objects of this migration.
pub struct Live {
    run: Run,
    settings: Settings,
    sessions: Sessions,
    patroni: Patroni,
    postgresqls: kube::Api<Postgresql>,
    clusters: kube::Api<Cluster>,
    /// As last read; None until the first look.
    record: Option<Record<Journal>>,
    /// The last look, for the words of the log and for actions that need an address.
    members: Vec<shared::kubernetes::patroni::Member>,
    /// The application at the last look: it is scaled only where it still is so.
    apps: BTreeMap<String, Replicas>,
    /// Its ConfigMap at the last look at it.
    config: AppConfig,
}

impl Live {
    /// Opens nothing yet: every look reconnects what is missing.
    pub fn new(run: Run, settings: Settings, source: Connection, target: Connection) -> Self {
        Self {
            postgresqls: zalando::postgresqls(&run.client, &run.namespace),
            clusters: cnpg::clusters(&run.client, &run.namespace),
            sessions: Sessions::new(source, target, &settings.database),
            patroni: Patroni::default(),
            record: None,
            members: Vec::new(),
            apps: BTreeMap::new(),
            config: AppConfig::default(),
            run,
            settings,
        }
    }

    /// Name of the ConfigMap that holds the journal.
    pub fn record_name(&self) -> String {
        format!("cutover-{}", self.settings.target_cluster)
    }

    async fn load(&self) -> Result<Record<Journal>> {
        Record::load(&self.run.client, &self.run.namespace, &self.record_name()).await
    }

    /// An attempt that went back is over: a new run begins anew. Anything else goes on where it stands.
    pub async fn begin_anew_after_return(&mut self) -> Result<()> {
        let mut record = self.load().await?;
        if record.facts.returned.is_some() && !self.settings.dry_run {
            let reason = record.facts.going_back.as_ref().map_or("", |back| back.reason.as_str()).to_owned();
            self.run
                .report
                .info(format!("an earlier attempt went back ({reason}); beginning anew"));
            let anew = record.facts.with(Fact::Anew);
            record.save(&self.run.client, &self.run.namespace, anew).await?;
        }
        Ok(())
    }
}

impl World for Live {
    async fn observe(&mut self) -> Result<(Journal, Observation)> {
        self.look().await
    }

    async fn record(&mut self, fact: Fact) -> Result<Option<Journal>> {
        // Taken, so that after an error, when it is unknown whether the write arrived, only a new look goes on.
        let Some(mut record) = self.record.take() else {
            return Ok(None);
        };
        if let Fact::Started(start) = &fact {
            // The guide's own record of the counts comes first: it must never be missing when the journal has begun.
            self.save_replica_counts(start).await?;
        }
        let facts = record.facts.with(fact.clone());
        match record.save(&self.run.client, &self.run.namespace, facts).await? {
            Saved::Yes => {
                self.narrate_fact(&fact, &record.facts);
                let journal = record.facts.clone();
                self.record = Some(record);
                Ok(Some(journal))
            }
            Saved::Conflict => {
                self.run
                    .report
                    .warning("Conflict", "another cutover has written to the record; looking again");
                Ok(None)
            }
        }
    }

    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>> {
        self.narrate_action(action);
        self.act(action, start).await
    }

    async fn pause(&mut self, missing: &str, pace: Pace) {
        self.run.report.waiting(missing);
        tokio::time::sleep(match pace {
            Pace::Close => CLOSE_PAUSE,
            Pace::Failed => FAILED_PAUSE,
        })
        .await;
    }

    fn stop_asked(&self) -> bool {
        self.run.stop.asked()
    }
}

/// The wall clock, for the record.
fn now() -> Timestamp {
    Timestamp::now()
}
