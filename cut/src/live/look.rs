//! One look at everything, all questions at the same time.

use std::{collections::BTreeMap, net::SocketAddr};

use kube::ResourceExt as _;
use serde_json::Value;
use shared::{
    config::Name,
    error::{Error, ErrorKind, Result},
    kubernetes::{
        self,
        cnpg::Cluster,
        patroni::{self, Member, Patroni},
        workloads::{self, Replicas},
        zalando::{CONTROLLER, Postgresql},
    },
    postgres::{Source, Target},
};

use super::{Live, now, sessions::limited};
use crate::{
    journal::{AppConfig, Journal},
    observation::{Observation, PatroniSeen, Sight, SourceSeen, TargetSeen},
    preflight,
};

impl Live {
    /// Reads the record and looks at both sides.
    pub(super) async fn look(&mut self) -> Result<(Journal, Observation)> {
        let record = self.load().await?;
        let began = record.facts.blocked.is_some();
        if let Some(start) = &record.facts.started {
            let address = self.source_address(&start.leader).await?;
            self.sessions.source_is_at(address);
        }
        let (source_open, target_open) = self.sessions.open().await;
        let source_session = source_open.and_then(|()| self.sessions.source());
        let target_session = target_open.and_then(|()| self.sessions.target());
        let client = &self.run.client;
        let namespace = &self.run.namespace;
        let (source, target, patroni, postgresql, cluster, apps, config) = futures::join!(
            see(source_session, source_seen),
            see(target_session, target_seen),
            patroni_seen(&self.patroni, client, namespace, &self.settings.source_cluster),
            existing(&self.postgresqls, &self.settings.source_cluster, "SOURCE_CLUSTER"),
            existing(&self.clusters, &self.settings.target_cluster, "TARGET_CLUSTER"),
            self.apps_seen(&record.facts),
            self.config_seen(&record.facts),
        );
        let (postgresql, cluster): (Postgresql, Cluster) = (postgresql?, cluster?);
        let (patroni, members) = match patroni {
            Ok((seen, members)) => (Sight::Answers(seen), members),
            Err(error) => (Sight::Silent(heeded(error)?), Vec::new()),
        };
        self.members = members;
        let source = self.sight(source, Side::Source, began)?;
        let target = self.sight(target, Side::Target, began)?;
        let mut seen = Observation {
            now: now(),
            source,
            patroni,
            controller: postgresql.annotations().get(CONTROLLER).cloned(),
            target,
            follows: cluster.follows(),
            apps: apps?,
            config: config?,
            readiness: Vec::new(),
            abort: self.run.stop.asked().then(|| "asked to end (SIGTERM)".to_owned()),
        };
        if !began && record.facts.returned.is_none() {
            seen.readiness = preflight::findings(
                &seen,
                &cluster,
                self.sessions.source().ok(),
                self.sessions.target().ok(),
                &self.settings,
                record.facts.started.is_some(),
            )
            .await?;
            seen.now = now();
        }
        (self.apps, self.config) = (seen.apps.clone(), seen.config.clone());
        let journal = record.facts.clone();
        self.record = Some(record);
        Ok((journal, seen))
    }

    /// Where the source's leader listens, by the members as last seen; of one without a leader the recorded one counts.
    async fn source_address(&mut self, recorded: &str) -> Result<Option<SocketAddr>> {
        if self.members.is_empty() {
            self.members = patroni::members(&self.run.client, &self.run.namespace, &self.settings.source_cluster).await?;
        }
        let leader = self.members.iter().find(|member| member.leader);
        let meant = leader.or_else(|| self.members.iter().find(|member| member.name == recorded));
        Ok(meant.and_then(|member| member.server))
    }

    /// Between marker and promotion the application has no say, and each call is time that clients wait: the last look at it stands.
    async fn apps_seen(&self, journal: &Journal) -> Result<BTreeMap<String, Replicas>> {
        if application_rests(journal) && !self.apps.is_empty() {
            return Ok(self.apps.clone());
        }
        workloads::replicas(&self.run.client, &self.run.namespace, &self.settings.apps.0).await
    }

    async fn config_seen(&self, journal: &Journal) -> Result<AppConfig> {
        if application_rests(journal) && !self.config.name.is_empty() {
            return Ok(self.config.clone());
        }
        let recorded = journal.started.as_ref().map(|start| start.config.name.as_str());
        let name = recorded.unwrap_or(&self.settings.app_configmap);
        let map = workloads::find_config(&self.run.client, &self.run.namespace, name).await?;
        let data = map.data.clone().unwrap_or_default();
        let keys = self.settings.app_config_target.0.keys();
        Ok(AppConfig {
            name: map.name_any(),
            values: keys.map(|key| (key.clone(), data.get(key).cloned())).collect(),
        })
    }

    /// Silence is part of a look; what a person must mend (a password, a certificate) is an error while nothing was touched.
    fn sight<T>(&mut self, seen: Result<T>, side: Side, began: bool) -> Result<Sight<T>> {
        match seen {
            Ok(seen) => Ok(Sight::Answers(seen)),
            Err(error) if !began && error.kind() == ErrorKind::Config => Err(error),
            Err(error) => {
                match side {
                    Side::Source => self.sessions.forget_source(),
                    Side::Target => self.sessions.forget_target(),
                }
                Ok(Sight::Silent(error.to_string()))
            }
        }
    }
}

/// Writes are blocked and ended, and it is not yet time to route.
fn application_rests(journal: &Journal) -> bool {
    journal.marker.is_some() && journal.promoted.is_none() && journal.going_back.is_none()
}

enum Side {
    Source,
    Target,
}

/// An RBAC error is never mere silence.
fn heeded(error: Error) -> Result<String> {
    match error.kind() {
        ErrorKind::Config => Err(error),
        _ => Ok(error.to_string()),
    }
}

async fn see<'a, S, T>(session: Result<&'a S>, question: impl AsyncFnOnce(&'a S) -> Result<T>) -> Result<T> {
    let session = session?;
    limited(question(session)).await
}

async fn source_seen(source: &Source) -> Result<SourceSeen> {
    let (identity, standby, read_only, clients, incarnation) = futures::try_join!(
        source.identity(),
        shared::postgres::in_recovery(source),
        source.read_only_by_default(),
        source.client_sessions(),
        source.incarnation()
    )?;
    let insert = if standby { None } else { Some(source.insert_lsn().await?) };
    let named = |session: shared::postgres::source::ClientSession| {
        format!(
            "{} {} {}",
            session.role,
            session.application_name,
            session.address.unwrap_or_else(|| "local".into())
        )
    };
    Ok(SourceSeen {
        identity,
        primary: !standby,
        read_only,
        insert,
        incarnation,
        clients: clients.into_iter().map(named).collect(),
    })
}

async fn target_seen(target: &Target) -> Result<TargetSeen> {
    // Control first, replay after it: were replay read first, it could be older than the checkpoint it is compared with.
    let (control, identity, in_recovery, running, segment_bytes) = futures::try_join!(
        target.control_checkpoint(),
        target.identity(),
        target.in_recovery(),
        target.running(),
        target.wal_segment_bytes()
    )?;
    let replay = target.replay().await?;
    Ok(TargetSeen {
        identity,
        in_recovery,
        replay,
        control,
        running,
        segment_bytes,
    })
}

async fn patroni_seen(patroni: &Patroni, client: &kube::Client, namespace: &str, cluster: &Name) -> Result<(PatroniSeen, Vec<Member>)> {
    let members = patroni::members(client, namespace, cluster).await?;
    let Some(first) = members.first() else {
        return Err(Error::transient(format!("no member of {cluster} has introduced itself")));
    };
    let states = futures::future::join_all(members.iter().map(|member| patroni.state(member)));
    let (config, states) = futures::join!(config_of_any(patroni, &members, first), states);
    let config = config?;
    let mut seen = PatroniSeen {
        paused: config.get("pause").and_then(Value::as_bool),
        read_only: config
            .pointer("/postgresql/parameters/default_transaction_read_only")
            .and_then(|v| match v {
                Value::String(text) => Some(text.clone()),
                Value::Bool(on) => Some(if *on { "on" } else { "off" }.to_owned()),
                _ => None,
            }),
        leader: members.iter().find(|member| member.leader).map(|member| member.name.clone()),
        primaries: Vec::new(),
        silent: Vec::new(),
    };
    for (member, state) in members.iter().zip(states) {
        match state {
            Ok(state) if state.runs_as_primary() => seen.primaries.push(member.name.clone()),
            Ok(_) => {}
            Err(_) => seen.silent.push(member.name.clone()),
        }
    }
    Ok((seen, members))
}

/// Every member answers for the whole cluster's configuration; one may be down.
async fn config_of_any(patroni: &Patroni, members: &[Member], first: &Member) -> Result<Value> {
    let mut answer = patroni.config(first).await;
    for member in members.iter().skip(1) {
        if answer.is_ok() {
            break;
        }
        answer = patroni.config(member).await;
    }
    answer
}

async fn existing<K>(api: &kube::Api<K>, name: &Name, setting: &str) -> Result<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    kubernetes::get(api, name).await?.ok_or_else(|| {
        Error::config(format!("the {} {name} does not exist", K::kind(&())))
            .hint(format!("correct {setting} in the ConfigMap replica-migration"))
    })
}
