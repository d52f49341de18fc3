//! Patroni's REST API (patroni.readthedocs.io, *Patroni REST API*): plain HTTP without a password,
//! as in Spilo.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;

/// POST /restart and /switchover respond when they are done.
const ANSWER_SECONDS_MAX: u64 = 60;

/// Sends a request; returns status and body. A body that is not JSON is returned as a JSON string.
///
/// # Errors
/// No answer within a minute.
pub async fn request(method: Method, url: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(&method)
        .uri(url)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(text)))?;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let exchange = async {
        let answer = client.request(request).await?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await?.to_bytes();
        anyhow::Ok((
            status,
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()),
        ))
    };
    let answer = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), exchange).await;
    answer
        .with_context(|| format!("{method} {url}: no answer"))?
        .with_context(|| format!("{method} {url}"))
}

/// GET; any status is accepted (Patroni may respond 503 with a useful body).
///
/// # Errors
/// As [`request`].
pub async fn get(url: &str) -> Result<Value> {
    Ok(request(Method::GET, url, None).await?.1)
}

/// A request that must succeed (2xx).
///
/// # Errors
/// As [`request`], or another status; the error holds Patroni's response.
pub async fn demand(method: Method, url: &str, body: &Value) -> Result<Value> {
    let (status, answer) = request(method.clone(), url, Some(body)).await?;
    if !(200..300).contains(&status) {
        bail!("{method} {url}: {status} {answer}");
    }
    Ok(answer)
}

/// The member that leads and runs, in an answer of GET /cluster.
pub(super) fn leader_name(cluster: &Value) -> Option<&str> {
    let leads = |member: &&Value| {
        matches!(member["role"].as_str(), Some("leader" | "standby_leader"))
            && member["state"] == "running"
    };
    cluster["members"].as_array()?.iter().find(leads)?["name"].as_str()
}

/// True if there is a leader and every member runs.
pub(super) fn all_run(cluster: &Value, members: usize) -> bool {
    let list = cluster["members"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let running = list
        .iter()
        .filter(|member| member["state"] == "running" || member["state"] == "streaming")
        .count();
    leader_name(cluster).is_some() && running == members
}
