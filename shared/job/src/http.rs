//! The HTTP client of these programs: hyper over OpenSSL, towards the Kubernetes API, Patroni and
//! buckets.
//!
//! One type for all of them: hyper is generic over connection and body, and each pair would be
//! another copy of it in a program.

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

/// Makes requests, over TLS where the URL says so; keeps connections between them.
pub type Http = Client<TimeoutConnector<HttpsConnector<HttpConnector>>, Body>;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Any body as a request takes it.
pub fn request_body<B>(body: B) -> Body
where
    B: AnyBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Longest times of a connection.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Until it stands, TLS included.
    pub connect: Duration,
    /// Between two reads or two writes; none where the caller has a limit of its own.
    pub silence: Option<Duration>,
}

/// A client that trusts as `tls` says.
///
/// # Errors
/// OpenSSL's.
pub fn http_client(tls: SslConnectorBuilder, limits: Limits) -> Result<Http, ErrorStack> {
    let mut tcp = HttpConnector::new();
    // Shared out among the addresses of a name, so that one that is dead does not take all of it.
    tcp.set_connect_timeout(Some(limits.connect));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let mut connector = TimeoutConnector::new(HttpsConnector::with_connector(tcp, tls)?);
    connector.set_connect_timeout(Some(limits.connect));
    connector.set_read_timeout(limits.silence);
    connector.set_write_timeout(limits.silence);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
