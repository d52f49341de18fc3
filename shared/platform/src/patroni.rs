//! Patroni's REST API, and the addresses of its members (patroni.readthedocs.io, *Patroni REST
//! API*).

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use openssl::ssl::{SslConnector, SslMethod};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::kubernetes::zalando::member_selector;
use job::error::{Context as _, Error, Result};
use job::http::{Http, Limits, http_client, request_body};
use job::pods::Pod;

/// Longest time until a member shows a change of the configuration.
const SHOWN_MAX: Duration = Duration::from_secs(2);
const SHOWN_POLL: Duration = Duration::from_millis(10);
/// Longest time of a call; POST /restart answers when the server runs again.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(2),
    // CALL_TIMEOUT limits the whole call.
    silence: None,
};

/// A member of the source, as its pod's annotations and labels describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the pod and of the member.
    pub name: String,
    /// `scheme://host:port` of its REST API.
    pub api: String,
    /// Address of its server: the pod's own one when Patroni has a name instead of an address.
    /// None when neither is known.
    pub server: Option<SocketAddr>,
    /// Its pod has the leader's label (`spilo-role=master`).
    pub leader: bool,
}

/// The members whose pods have Patroni's annotation, the leader first.
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
    // Patroni writes its addresses into the pod's annotation `status`. They are used instead of the
    // pod's address, because they are where it is configured to be reached.
    let status: Value = serde_json::from_str(pod.annotations().get("status")?).ok()?;
    let api = status
        .get("api_url")?
        .as_str()?
        .trim_end_matches("/patroni")
        .to_owned();
    let server = status
        .get("conn_url")
        .and_then(Value::as_str)
        .and_then(|url| server(url, pod.status.pod_ip.as_deref()));
    let role = pod.labels().get("spilo-role").map(String::as_str);
    Some(Member {
        name: pod.name_any(),
        api,
        server,
        leader: matches!(role, Some("master" | "primary")),
    })
}

/// The address in `postgres://127.0.0.2:5432/postgres`, or of the pod where that has a name.
fn server(url: &str, pod_ip: Option<&str>) -> Option<SocketAddr> {
    let (_, rest) = url.split_once("://")?;
    let host_and_port = rest.split('/').next()?;
    host_and_port.parse().ok().or_else(|| {
        let (_, port) = host_and_port.rsplit_once(':')?;
        Some(SocketAddr::new(pod_ip?.parse().ok()?, port.parse().ok()?))
    })
}

/// One member in the answer of GET /cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MemberState {
    /// Member name.
    pub name: String,
    /// `leader`, `standby_leader`, `replica`, `sync_standby`, …
    pub role: String,
    /// `running`, `streaming`, `stopped`, `starting`, …
    pub state: String,
    /// Timeline, while its server runs.
    #[serde(default)]
    pub timeline: Option<Value>,
}

/// The answer of GET /health: the state of a member's server at the time of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct MemberHealth {
    /// `running`, `stopped`, `starting`, `stopping`, …
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before 4.0), `replica`, `demoted`, …
    #[serde(default)]
    pub role: String,
    /// No member holds the leader lock, as far as this one knows.
    #[serde(default)]
    pub cluster_unlocked: bool,
    /// Positions in the WAL, while its server runs.
    #[serde(default)]
    pub xlog: WalPositions,
}

/// `xlog` in the answer of GET /health, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct WalPositions {
    /// What a standby has received.
    #[serde(default)]
    pub received_location: Option<u64>,
}

impl MemberHealth {
    /// Returns true when its server runs, starts or has not ended yet, and is not a standby.
    ///
    /// A server that was not stopped by Patroni is `unknown` until Patroni's next loop
    /// (patroni/api.py, get_postgresql_status).
    pub fn runs_as_primary(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "master" | "promoted")
            && matches!(
                self.state.as_str(),
                "running" | "starting" | "restarting" | "stopping"
            )
    }

    /// Returns true when its server runs as a standby.
    pub fn runs_as_standby(&self) -> bool {
        !self.runs_as_primary() && self.state == "running"
    }

    /// Returns true while its server starts.
    pub fn starts(&self) -> bool {
        matches!(self.state.as_str(), "starting" | "restarting")
    }
}

/// The answer of GET /cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClusterView {
    /// All members.
    #[serde(default)]
    pub members: Vec<MemberState>,
    /// Patroni is paused: automatic failover is off.
    #[serde(default)]
    pub pause: bool,
}

/// A client of the REST API; it keeps connections between calls.
#[derive(Clone, Default)]
pub struct Patroni {
    /// Created by the first call, because OpenSSL reads all public CAs for it, which would delay
    /// the start of the program.
    http: OnceLock<Http>,
}

impl Patroni {
    fn http(&self) -> Result<&Http> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let created =
            SslConnector::builder(SslMethod::tls_client()).and_then(|tls| http_client(tls, LIMITS));
        let created = created
            .map_err(|error| Error::config("setting up calls to patroni").caused_by(error))?;
        Ok(self.http.get_or_init(|| created))
    }

    /// Reads the dynamic configuration as the member knows it, which may be some seconds old
    /// (docs/operators/zalando.md#configuration-of-patroni).
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn config(&self, member: &Member) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.call(member, Method::GET, "/config", None).await?,
        )?)
    }

    /// Merges `change` into the dynamic configuration of all members; null removes a key. Returns
    /// when a member's answers show it: a question would otherwise find the configuration from
    /// before it.
    ///
    /// # Errors
    /// Transient when no member accepts the change, or none shows it in time; it may have been made
    /// nevertheless.
    pub async fn patch_config(&self, members: &[Member], change: &Value) -> Result<()> {
        let mut last = Error::transient("no member of the source is known");
        // Any member accepts the change for all of them; the leader comes first.
        for member in members {
            match self
                .call(member, Method::PATCH, "/config", Some(change))
                .await
            {
                Ok(_) => return self.until_shown(members, change).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn until_shown(&self, members: &[Member], change: &Value) -> Result<()> {
        let shown_by = |member| async move {
            while !shows(&self.config(member).await?, change) {
                sleep(SHOWN_POLL).await;
            }
            Ok(())
        };
        let asked = members.iter().map(|member| Box::pin(shown_by(member)));
        timeout(SHOWN_MAX, futures::future::select_ok(asked))
            .await
            .map_err(|_| {
                Error::transient(
                    "no member of the source shows a change of patroni's configuration yet",
                )
            })?
            .map(drop)
    }

    /// Reads the state of a member's server, which the member queries for each answer.
    ///
    /// It calls GET /health. GET /patroni has the same body, but retries for seconds before it
    /// answers when the server is down (patroni/api.py 4.0.4, `get_postgresql_status(retry)`).
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn state(&self, member: &Member) -> Result<MemberHealth> {
        // 503 is an answer, too: the status of a member whose server does not run.
        let doing = format!("patroni of {}: GET /health", member.name);
        let (_, answer) = self
            .exchange(member, Method::GET, "/health", None, &doing)
            .await?;
        serde_json::from_slice(&answer).map_err(|error| Error::transient(doing).caused_by(error))
    }

    /// Reads the state of all members as this one knows it.
    ///
    /// # Errors
    /// Transient when the member does not answer.
    pub async fn cluster(&self, member: &Member) -> Result<ClusterView> {
        Ok(serde_json::from_slice(
            &self.call(member, Method::GET, "/cluster", None).await?,
        )?)
    }

    /// Starts the member's server, also when it was stopped while Patroni is paused
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
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        let failure = format!("{doing}: {status}: {text}");
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::config(failure).hint(
                "Patroni's restapi.authentication or restapi.allowlist refuses changes from this \
                 Job: remove it for the time of the migration",
            ),
            _ => Error::transient(failure),
        })
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
        timeout(CALL_TIMEOUT, async {
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

/// Whether a configuration is as this change leaves it.
fn shows(config: &Value, change: &Value) -> bool {
    match change {
        Value::Object(change) => change.iter().all(|(key, wanted)| {
            let found = config.get(key).unwrap_or(&Value::Null);
            shows(found, wanted)
        }),
        _ => config == change,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_configuration_shows_a_change_when_it_has_its_values_and_not_what_it_removes() {
        let parameters = json!({"default_transaction_read_only": "on", "work_mem": "4MB"});
        let blocked = json!({"pause": true, "postgresql": {"parameters": parameters}});
        let change = |pause: Value, read_only: Value| {
            json!({"pause": pause, "postgresql": {"parameters": {
                "default_transaction_read_only": read_only,
            }}})
        };
        assert!(shows(&blocked, &change(json!(true), json!("on"))));
        assert!(!shows(&blocked, &change(Value::Null, json!("on"))));
        assert!(!shows(&blocked, &change(json!(true), Value::Null)));
        assert!(shows(&json!({}), &change(Value::Null, Value::Null)));
    }

    #[test]
    fn a_members_addresses_are_those_of_patronis_annotation() {
        let status = serde_json::json!({
            "conn_url": "postgres://127.0.0.2:5432/postgres",
            "api_url": "http://127.0.0.2:8008/patroni",
            "role": "primary",
        });
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "pg-0", "labels": {"spilo-role": "master"},
                "annotations": {"status": status.to_string()}},
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
