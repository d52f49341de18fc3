//! The HTTP client for object_store: hyper over OpenSSL, like all other TLS of these programs, in
//! place of object_store's reqwest. The price of one TLS stack is this file and `crypto.rs`.

use std::{fmt, path::Path, time::Duration};

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Error as ClientError;
use job::error::{Error, Result};
use job::http::{self, Limits, http_client, request_body};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector as MakeClient, HttpError, HttpErrorKind, HttpRequest,
        HttpResponse, HttpResponseBody, HttpService,
    },
};
use openssl::ssl::{SslConnector, SslMethod};
use tokio::time::timeout;
use tower_http::timeout::TimeoutBody;

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    // Sending a large part takes long. The two limits below apply to the answer.
    silence: None,
};
/// Time from a request to the head of its answer: enough for the largest part on a slow connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest silence in the middle of an answer. After that the connection counts as lost.
const SILENCE: Duration = Duration::from_secs(60);
/// Trust stores of common images. The statically linked OpenSSL may search another path.
const ROOTS: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Makes requests, over TLS if the URL's scheme is https.
#[derive(Clone)]
pub struct Http(http::Http);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// A client that trusts the given CA bundle, or else the image's trust store.
    ///
    /// # Errors
    /// Config if the CA file cannot be used.
    pub fn trusting(ca: Option<&Path>) -> Result<Self> {
        let failed = |error: openssl::error::ErrorStack| {
            Error::config("preparing tls towards the bucket").caused_by(error)
        };
        let mut tls = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
        let roots = ROOTS.iter().map(Path::new).find(|file| file.exists());
        if let Some(file) = ca.or(roots) {
            tls.set_ca_file(file).map_err(|error| {
                Error::config(format!("the CA file {}", file.display())).caused_by(error)
            })?;
        }
        http_client(tls, LIMITS).map(Self).map_err(failed)
    }
}

impl MakeClient for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let timed_out = std::io::Error::from(std::io::ErrorKind::TimedOut);
        let answer = timeout(ANSWER_TIMEOUT, self.0.request(request.map(request_body))).await;
        let answer = answer.map_err(|_| HttpError::new(HttpErrorKind::Timeout, timed_out))?;
        let answer = answer.map_err(|error| HttpError::new(kind(&error), error))?;
        let interrupted =
            |error| HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other(error));
        Ok(answer.map(|body| {
            HttpResponseBody::new(TimeoutBody::new(SILENCE, body).map_err(interrupted))
        }))
    }
}

/// object_store repeats requests that did not reach the server, and those that are idempotent.
fn kind(error: &ClientError) -> HttpErrorKind {
    if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    }
}
