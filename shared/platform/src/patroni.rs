//! Patroni's REST API, and where its members are (patroni.readthedocs.io, *Patroni REST API*).

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use openssl::ssl::{SslConnector, SslMethod};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kubernetes::zalando::member_selector;
use job::error::{Context as _, Error, Result};
use job::http::{Http, Limits, http_client, request_body};
use job::pods::Pod;

/// Longest answer to wait for; POST /restart answers when the server is up again.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(2),
    // CALL_TIMEOUT ends a whole call.
    silence: None,
};

/// A member as its pod tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of pod and member.
    pub name: String,
    /// `scheme://host:port` of its REST API.
    pub api: String,
    /// Where its server listens, when Patroni was told an address and no name.
    pub server: Option<SocketAddr>,
    /// Holds the leader label (`spilo-role=master`).
    pub leader: bool,
}

/// The members that have introduced themselves, the leader first.
///
/// # Errors
/// The API's.
pub async fn members(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<Member>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods
        .list(&ListParams::default().labels(&member_selector(cluster)))
        .await
        .context("listing the members of the source")?;
    let mut members: Vec<Member> = list.iter().filter_map(member).collect();
    members.sort_by_key(|member| (!member.leader, member.name.clone()));
    Ok(members)
}

fn member(pod: &Pod) -> Option<Member> {
    // Patroni writes its own view into the pod's annotation `status`; its addresses are its own to
    // say.
    let status: Value = serde_json::from_str(pod.annotations().get("status")?).ok()?;
    let api = status
        .get("api_url")?
        .as_str()?
        .trim_end_matches("/patroni")
        .to_owned();
    let server = status
        .get("conn_url")
        .and_then(Value::as_str)
        .and_then(server);
    let role = pod.labels().get("spilo-role").map(String::as_str);
    Some(Member {
        name: pod.name_any(),
        api,
        server,
        leader: matches!(role, Some("master" | "primary")),
    })
}

/// The address in `postgres://127.0.0.2:5432/postgres`.
fn server(url: &str) -> Option<SocketAddr> {
    let (_, rest) = url.split_once("://")?;
    rest.split('/').next()?.parse().ok()
}

/// One member in the answer of GET /cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MemberState {
    /// Member name.
    pub name: String,
    /// leader, standby_leader, replica, sync_standby, …
    pub role: String,
    /// running, streaming, stopped, starting, …
    pub state: String,
    /// Timeline, when its server runs.
    #[serde(default)]
    pub timeline: Option<Value>,
}

/// GET /health: a member's own, live word about its server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct MemberHealth {
    /// running, stopped, starting, stopping, …
    #[serde(default)]
    pub state: String,
    /// primary (4.x; master before), replica, demoted, …
    #[serde(default)]
    pub role: String,
    /// Nobody holds the leader lock, as far as it knows.
    #[serde(default)]
    pub cluster_unlocked: bool,
}

impl MemberHealth {
    /// Its server runs, or is about to or has not quite ended, and is no standby.
    ///
    /// A server stopped behind Patroni's back is `unknown` until its next loop (patroni/api.py,
    /// get_postgresql_status).
    pub fn runs_as_primary(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "master" | "promoted")
            && matches!(
                self.state.as_str(),
                "running" | "starting" | "restarting" | "stopping"
            )
    }

    /// Its server is on its way to run.
    pub fn starts(&self) -> bool {
        matches!(self.state.as_str(), "starting" | "restarting")
    }
}

/// GET /cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClusterView {
    /// All members.
    #[serde(default)]
    pub members: Vec<MemberState>,
    /// Automatic failover is switched off.
    #[serde(default)]
    pub pause: bool,
}

/// Calls Patroni; keeps connections between calls.
#[derive(Clone, Default)]
pub struct Patroni {
    /// Made by the first call: OpenSSL reads all the CAs that everybody trusts for it, which no
    /// start should wait for.
    http: OnceLock<Http>,
}

impl Patroni {
    fn http(&self) -> Result<&Http> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let made =
            SslConnector::builder(SslMethod::tls_client()).and_then(|tls| http_client(tls, LIMITS));
        let made =
            made.map_err(|error| Error::config("setting up calls to patroni").caused_by(error))?;
        Ok(self.http.get_or_init(|| made))
    }

    /// The dynamic configuration.
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn config(&self, member: &Member) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.call(member, Method::GET, "/config", None).await?,
        )?)
    }

    /// Merges into the dynamic configuration; null removes a key. Takes effect at once on all
    /// members.
    ///
    /// # Errors
    /// Transient when the member does not answer; the change may have been made all the same.
    pub async fn patch_config(&self, member: &Member, change: &Value) -> Result<()> {
        self.call(member, Method::PATCH, "/config", Some(change))
            .await
            .map(drop)
    }

    /// What a member says of its own server; it asks the server for each answer.
    ///
    /// GET /health and not GET /patroni, which has the same body: that one asks a server that is
    /// down again and again, for seconds, before it answers (patroni/api.py 4.0.4,
    /// `get_postgresql_status(retry)`).
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn state(&self, member: &Member) -> Result<MemberHealth> {
        // 503 is part of the answer here: it is the status of a member whose server does not run.
        let doing = format!("patroni of {}: GET /health", member.name);
        let (_, answer) = self
            .exchange(member, Method::GET, "/health", None, &doing)
            .await?;
        serde_json::from_slice(&answer).map_err(|error| Error::transient(doing).caused_by(error))
    }

    /// What this member knows of all members.
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn cluster(&self, member: &Member) -> Result<ClusterView> {
        Ok(serde_json::from_slice(
            &self.call(member, Method::GET, "/cluster", None).await?,
        )?)
    }

    /// Starts the member's server, also one that was stopped while paused
    /// (docs/operators/zalando.md#starting-a-stopped-member).
    ///
    /// # Errors
    /// Transient when the member does not answer or could not start it.
    pub async fn restart(&self, member: &Member) -> Result<()> {
        self.call(
            member,
            Method::POST,
            "/restart",
            Some(&serde_json::json!({})),
        )
        .await
        .map(drop)
    }

    async fn call(
        &self,
        member: &Member,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes> {
        let doing = format!("patroni of {}: {method} {path}", member.name);
        let (status, answer) = self.exchange(member, method, path, body, &doing).await?;
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let said = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        Err(Error::transient(format!("{doing}: {status}: {said}")))
    }

    async fn exchange(
        &self,
        member: &Member,
        method: Method,
        path: &str,
        body: Option<&Value>,
        doing: &str,
    ) -> Result<(StatusCode, Bytes)> {
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::transient(doing.to_owned()).caused_by(cause)
        };
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", member.api))
            .header("content-type", "application/json");
        let request = request
            .body(request_body(Full::new(bytes)))
            .map_err(|e| failed(e.into()))?;
        let http = self.http()?;
        tokio::time::timeout(CALL_TIMEOUT, async {
            let response = http.request(request).await.map_err(|e| failed(e.into()))?;
            let status = response.status();
            let answer = response
                .into_body()
                .collect()
                .await
                .map_err(|e| failed(e.into()))?
                .to_bytes();
            Ok((status, answer))
        })
        .await
        .map_err(|_| {
            Error::transient(format!(
                "{doing}: no answer within {} s",
                CALL_TIMEOUT.as_secs()
            ))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_where_patroni_says_it_is() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "pg-0", "labels": {"spilo-role": "master"},
                "annotations": {"status": r#"{"conn_url":"postgres://127.0.0.2:5432/postgres","api_url":"http://127.0.0.2:8008/patroni","role":"primary"}"#}},
            "status": {"podIP": "10.0.0.2"}
        }))
        .unwrap();
        assert_eq!(
            member(&pod),
            Some(Member {
                name: "pg-0".into(),
                api: "http://127.0.0.2:8008".into(),
                server: Some(([127, 0, 0, 2], 5432).into()),
                leader: true
            })
        );
    }
}
