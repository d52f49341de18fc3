//! The HTTP client for the Kubernetes API, Patroni and buckets: hyper over OpenSSL.
//!
//! All of them use one type: hyper is generic over connection and body, and each pair of types
//! would add another copy of it to a program.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Body as AnyBody;
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use openssl::{error::ErrorStack, ssl::SslConnectorBuilder};
use tower::BoxError;

/// An HTTP client that uses TLS for https URLs and keeps connections between requests.
pub type Http = Client<TimeoutConnector<HttpsConnector<HttpConnector>>, Body>;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Converts a body into the one that [`Http`] takes.
pub fn request_body<B>(body: B) -> Body
where
    B: AnyBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Timeouts of a connection.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Longest time to establish it, TLS included.
    pub connect: Duration,
    /// Longest time between two reads or two writes; None where the caller limits the whole
    /// request.
    pub silence: Option<Duration>,
}

/// Returns a client that verifies servers as `tls` is configured.
///
/// # Errors
/// OpenSSL's, when it cannot set up TLS.
pub fn http_client(tls: SslConnectorBuilder, limits: Limits) -> Result<Http, ErrorStack> {
    let mut tcp = HttpConnector::new();
    // hyper divides the time among the addresses of a name, so that one that does not answer does
    // not use all of it.
    tcp.set_connect_timeout(Some(limits.connect));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let mut connector = TimeoutConnector::new(HttpsConnector::with_connector(tcp, tls)?);
    connector.set_connect_timeout(Some(limits.connect));
    connector.set_read_timeout(limits.silence);
    connector.set_write_timeout(limits.silence);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
