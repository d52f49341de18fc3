//! The source: a Zalando cluster with TLS Secrets, two members and both poolers.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use harness::{authority::Authority, ledger::Key};
use serde_json::{Value, json};

use crate::{
    kubectl::{Kubectl, until},
    settings::Settings,
};

/// The `postgresql` resource.
pub const SOURCE: &str = "mastodon-postgresql";
/// The application's database and its owner.
pub const DATABASE: &str = "mastodon";
const POOLERS: [&str; 2] = [
    "deployment/mastodon-postgresql-pooler",
    "deployment/mastodon-postgresql-pooler-repl",
];
/// Limit for pulling images and starting two servers one after the other.
const UP: Duration = Duration::from_secs(600);
/// The label selector of the source's pods.
const MEMBERS: &str = "application=spilo,cluster-name=mastodon-postgresql";

/// The example application's tables, and the ledger. The ledger has no unique constraint, so that a
/// duplicated row is visible.
const SCHEMA: &str = "set role mastodon;
create table accounts (id bigserial primary key, username text not null);
create table statuses (id bigserial primary key, account_id bigint not null, body text not null);
create table users (id bigserial primary key, email text not null unique);
insert into accounts (username) select 'account ' || n from generate_series(1, 20000) n;
insert into statuses (account_id, body) select 1 + n % 20000, repeat(md5(n::text), 8) from \
    generate_series(1, 100000) n;
insert into users (email) select n || '@example.org' from generate_series(1, 5000) n;
create index on statuses (body);
create table ledger (id bigserial primary key, client text not null, sequence bigint not null, \
    payload text not null,
    written_at timestamptz not null default clock_timestamp());
insert into ledger (client, sequence, payload) values ('e2e', 0, 'so that a reader finds a row');";

/// Creates the source and its tables.
pub async fn up(kubectl: &Kubectl, settings: &Settings) -> Result<()> {
    let mut objects = secrets(&settings.namespace)?;
    objects.push(resource(settings));
    println!("\nthe source: {SOURCE}, two members, both poolers");
    kubectl.apply(&objects).await?;
    let running = [
        "wait",
        "--for=jsonpath={.status.PostgresClusterStatus}=Running",
        "postgresql/mastodon-postgresql",
    ];
    kubectl
        .wait(&running, UP)
        .await
        .context("the Zalando operator does not bring the source up")?;
    for pooler in POOLERS {
        kubectl.wait(&["rollout", "status", pooler], UP).await?;
    }
    // The status says Running once the operator has done its part; the second member may still be
    // cloning.
    until("both members", UP, async || {
        Ok((members(kubectl).await?.len() == 2).then_some(()))
    })
    .await?;
    let leader = leader(kubectl).await?;
    let psql = [
        "exec",
        "-i",
        &leader,
        "--",
        "psql",
        "-XqU",
        "postgres",
        "-d",
        DATABASE,
        "-v",
        "ON_ERROR_STOP=1",
    ];
    kubectl
        .run_with_input(&psql, SCHEMA, UP)
        .await
        .context("making the tables")?;
    // A reader of a standby that has not replayed them yet would see an error.
    until("the tables on both members", UP, async || {
        Ok(replayed(kubectl).await?.then_some(()))
    })
    .await
}

/// Whether every member has the schema's last row.
async fn replayed(kubectl: &Kubectl) -> Result<bool> {
    for pod in pods(kubectl).await?.lines() {
        let query = "select from public.ledger";
        let psql = ["psql", "-XqU", "postgres", "-d", DATABASE, "-c", query];
        if kubectl
            .query(&[&["exec", pod, "--"], &psql[..]].concat())
            .await
            .is_err()
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Server certificate and CA as an owner would create them: root, intermediate, and a certificate
/// for the server's names only.
fn secrets(namespace: &str) -> Result<Vec<Value>> {
    let root = Authority::root("mastodon root")?;
    let intermediate = root.intermediate("mastodon databases")?;
    let suffixes = [
        "",
        &format!(".{namespace}"),
        &format!(".{namespace}.svc"),
        &format!(".{namespace}.svc.cluster.local"),
    ];
    let names: Vec<String> = suffixes
        .iter()
        .map(|suffix| format!("{SOURCE}{suffix}"))
        .collect();
    let server = intermediate.server(SOURCE, &names, &[])?;
    let chain = format!("{}{}", server.certificate, intermediate.certificate());
    let secret = |name: &str, data: Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data
        })
    };
    Ok(vec![
        secret(
            "mastodon-postgresql-server",
            json!({"tls.crt": chain, "tls.key": server.key}),
        ),
        secret(
            "mastodon-postgresql-ca",
            json!({
                "ca.crt": root.certificate(), "tls.crt": intermediate.certificate(),
                "tls.key": intermediate.key()
            }),
        ),
    ])
}

fn resource(settings: &Settings) -> Value {
    json!({
        "apiVersion": "acid.zalan.do/v1", "kind": "postgresql",
        "metadata": {"name": SOURCE, "labels": {"team": DATABASE}},
        "spec": {
            "teamId": DATABASE,
            "dockerImage": settings.source_image,
            "numberOfInstances": 2,
            "volume": {"size": "2Gi"},
            "postgresql": {"version": "17"},
            "users": {DATABASE: []},
            "databases": {DATABASE: DATABASE},
            "enableConnectionPooler": true,
            "enableReplicaConnectionPooler": true,
            "tls": {
                "secretName": "mastodon-postgresql-server",
                "caSecretName": "mastodon-postgresql-ca", "caFile": "ca.crt"
            },
            // The certificates are mounted with mode 0640 for Spilo's group.
            "spiloFSGroup": 103,
            "resources": {
                "requests": {"cpu": "10m", "memory": "100Mi"},
                "limits": {"cpu": "2", "memory": "1Gi"}
            },
        },
    })
}

/// Addresses of the ready members.
pub async fn members(kubectl: &Kubectl) -> Result<BTreeSet<String>> {
    let pods = kubectl.json(&["get", "pods", "-l", MEMBERS]).await?;
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions
            .clone()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let pods = pods["items"].as_array().into_iter().flatten().filter(ready);
    Ok(pods
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect())
}

/// The names of the members' pods, a line each.
async fn pods(kubectl: &Kubectl) -> Result<String> {
    kubectl
        .query(&["get", "pods", "-l", MEMBERS, "-o", "name"])
        .await
}

async fn leader(kubectl: &Kubectl) -> Result<String> {
    let selector = format!("{MEMBERS},spilo-role=master");
    until("the source's leader", UP, async || {
        let pod = kubectl
            .query(&["get", "pods", "-l", &selector, "-o", "name"])
            .await?;
        Ok(pod.lines().next().map(str::to_owned))
    })
    .await
}

/// The ledger's rows on the members that answer: after a cutover the leader is stopped, the other
/// member still runs.
pub async fn rows(kubectl: &Kubectl) -> Result<Vec<Key>> {
    let mut all = Vec::new();
    for pod in pods(kubectl).await?.lines() {
        // A stopped server cannot be queried.
        all.extend(ledger(kubectl, &[pod, "--"]).await.unwrap_or_default());
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// The ledger's rows on one server; `pod` is the pod's part of the `kubectl exec` arguments.
///
/// # Errors
/// The server does not answer.
pub async fn ledger(kubectl: &Kubectl, pod: &[&str]) -> Result<Vec<Key>> {
    let query = "select client, sequence from public.ledger where client <> 'e2e'";
    let psql = [
        "psql", "-XAtqU", "postgres", "-d", DATABASE, "-F", " ", "-c", query,
    ];
    let text = kubectl.query(&[&["exec"], pod, &psql].concat()).await?;
    let key = |line: &str| {
        let (client, sequence) = line
            .split_once(' ')
            .with_context(|| format!("a row of the ledger: {line:?}"))?;
        Ok(Key {
            client: client.to_owned(),
            sequence: sequence.parse()?,
        })
    };
    text.lines().map(key).collect()
}
