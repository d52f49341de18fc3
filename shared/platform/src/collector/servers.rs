//! What the servers answer in one observation.

use std::{collections::BTreeMap, net::SocketAddr};

use job::{
    config::{Connection, NonEmptyString, ObjectName, SslMode},
    error::{Error, Result},
};
use kube::Client;
use protocol::{
    snapshot::{
        PatroniState, ServiceAnswer, SourceState, TargetState,
        prechecks::{Answers, Side},
    },
    wal::Lsn,
};
use serde_json::Value;

use super::{
    endpoints::Login,
    queries,
    session::{Connect as _, limited},
};
use crate::{
    patroni::{self, Member, Patroni},
    postgres::{self, Source, Target},
};

/// The port of the source's Services (docs/operators/zalando.md#objects-and-labels).
const POSTGRES_PORT: u16 = 5432;

/// The source's leader, and its answers to the questions of the checks.
pub async fn source(
    source: &Source,
    login: Login,
    prechecks: bool,
) -> Result<(SourceState, Answers)> {
    let (identity, standby, read_only, restarts_after_crash, clients, postmaster_start, answers) =
        futures::try_join!(
            source.identity(),
            postgres::in_recovery(source),
            async {
                if login.read_only {
                    source.read_only_by_default_of_others().await
                } else {
                    source.read_only_by_default().await
                }
            },
            source.restarts_after_crash(),
            source.client_sessions(),
            source.postmaster_start(),
            answers(source, Side::Source, prechecks)
        )?;
    let insert = if standby {
        None
    } else {
        Some(source.insert_lsn().await?)
    };
    let state = SourceState {
        identity,
        primary: !standby,
        read_only,
        restarts_after_crash,
        insert,
        postmaster_start,
        clients,
    };
    Ok((state, answers))
}

/// The target, and its answers to the questions of the checks.
pub async fn target(target: &Target, prechecks: bool) -> Result<(TargetState, Answers)> {
    // Control first, replay after it: were replay read first, it could be older than the checkpoint
    // it is compared with.
    let (control, identity, in_recovery, running, log, answers) = futures::try_join!(
        target.control_checkpoint(),
        target.identity(),
        target.in_recovery(),
        target.running(),
        async {
            futures::try_join!(
                target.wal_segment_bytes(),
                target.history(),
                target.standbys()
            )
        },
        answers(target, Side::Target, prechecks)
    )?;
    let (segment_bytes, history, standbys) = log;
    let replay = target.replay().await?;
    let state = TargetState {
        identity,
        in_recovery,
        replay,
        control,
        running,
        segment_bytes,
        history,
        standbys,
    };
    Ok((state, answers))
}

async fn answers(session: &postgres::Session, side: Side, asked: bool) -> Result<Answers> {
    if asked {
        queries::answers(session, side).await
    } else {
        Ok(BTreeMap::new())
    }
}

/// The server that answers behind a Service, given by its name in this namespace and its address,
/// where that is known. Each call opens a new connection, because an existing one stays at its
/// server. `server` is the one that is expected there: the target's certificate does not contain
/// the Service's name.
pub async fn behind_service(
    (service, address): (&ObjectName, Option<SocketAddr>),
    server: &Connection,
    database: &NonEmptyString,
    login: Login,
) -> Result<ServiceAnswer> {
    let mut at = server.clone();
    at.host = NonEmptyString::from(service);
    at.hostaddr = address.map(|address| address.ip());
    at.port = address.map_or(POSTGRES_PORT, |address| address.port());
    if at.sslmode == SslMode::VerifyFull {
        at.sslmode = SslMode::VerifyCa;
    }
    limited(async {
        let session = Target::dial(at, database.clone(), login).await?;
        let (identity, standby) = futures::try_join!(session.identity(), session.in_recovery())?;
        Ok(ServiceAnswer {
            identity,
            primary: !standby,
        })
    })
    .await
}

/// The state of Patroni: its configuration, and its servers where each member is asked for its own.
pub async fn patroni(
    patroni: &Patroni,
    client: &Client,
    namespace: &str,
    cluster: &ObjectName,
    each_member: bool,
) -> Result<(PatroniState, Vec<Member>)> {
    let members = patroni::members(client, namespace, cluster).await?;
    if members.is_empty() {
        return Err(Error::transient(format!("no member of {cluster} is known")));
    }
    let asked = members.iter().filter(|_| each_member);
    let states = asked.map(|member| limited(patroni.state(member)));
    let config = async {
        if each_member {
            config(patroni, &members).await
        } else {
            config_of_any(patroni, &members).await
        }
    };
    let (config, states) = futures::join!(config, futures::future::join_all(states));
    let config = config?;
    let mut observed = PatroniState {
        paused: config.get("pause").and_then(Value::as_bool),
        read_only: parameter(&config, "default_transaction_read_only"),
        restart_after_crash: parameter(&config, "restart_after_crash"),
        leader: members
            .iter()
            .find(|member| member.leader)
            .map(|member| member.name.clone()),
        primaries: Vec::new(),
        standbys: Vec::new(),
        unlocked: false,
        starting: false,
        answering: Vec::new(),
        silent: Vec::new(),
        received: BTreeMap::new(),
    };
    for (member, state) in members.iter().zip(states) {
        let Ok(state) = state else {
            observed.silent.push(member.name.clone());
            continue;
        };
        observed.answering.push(member.name.clone());
        if let Some(received) = state.xlog.received_location {
            observed.received.insert(member.name.clone(), Lsn(received));
        }
        if state.runs_as_primary() {
            observed.primaries.push(member.name.clone());
            observed.unlocked |= state.cluster_unlocked;
            observed.starting |= state.starts();
        } else if state.runs_as_standby() {
            observed.standbys.push(member.name.clone());
        }
    }
    Ok((observed, members))
}

/// A parameter of PostgreSQL in Patroni's configuration.
fn parameter(config: &Value, name: &str) -> Option<String> {
    match config.get("postgresql")?.get("parameters")?.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Bool(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        _ => None,
    }
}

/// The configuration that blocks most among the members' answers. They differ while a change is on
/// its way to the members: a block counts when the first of them shows it, and it is lifted when
/// the last one does.
async fn config(patroni: &Patroni, members: &[Member]) -> Result<Value> {
    let asked = members.iter().map(|member| limited(patroni.config(member)));
    let answers = futures::future::join_all(asked).await;
    let mut last = Error::transient("no member of the source is known");
    let mut known = Vec::new();
    for answer in answers {
        match answer {
            Ok(config) => known.push(config),
            Err(error) => last = error,
        }
    }
    let blocks = |config: &Value| {
        let paused = config.get("pause").and_then(Value::as_bool) == Some(true);
        let read_only = parameter(config, "default_transaction_read_only").as_deref() == Some("on");
        let stops = parameter(config, "restart_after_crash").as_deref() == Some("off");
        u8::from(paused) + u8::from(read_only) + u8::from(stops)
    };
    known.into_iter().max_by_key(blocks).ok_or(last)
}

/// The configuration as the member that answers first knows it: no hanging member delays it, but it
/// may be older than another one's.
pub async fn config_of_any(patroni: &Patroni, members: &[Member]) -> Result<Value> {
    let asked = members
        .iter()
        .map(|member| Box::pin(patroni.config(member)));
    limited(async { Ok(futures::future::select_ok(asked).await?.0) }).await
}
