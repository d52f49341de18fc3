//! The HTTP client that object_store works with: hyper over openssl, as all other TLS of these
//! programs, instead of its own reqwest.

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
    // A large part takes its time; the two limits below are for what must come.
    silence: None,
};
/// From a request to the head of its answer: the largest part over a slow line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// A store that sends nothing for so long in the middle of an answer has lost the connection.
const SILENCE: Duration = Duration::from_secs(60);
/// Where images keep the certificates that everybody trusts: this program's own openssl may look
/// elsewhere.
const ROOTS: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Makes requests, over TLS where the URL says so.
#[derive(Clone)]
pub struct Http(http::Http);

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// A client that trusts a CA, or else those that everybody trusts.
    ///
    /// # Errors
    /// Config when the CA file cannot be used.
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
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        let answer = timeout(ANSWER_TIMEOUT, self.0.request(request.map(request_body))).await;
        let answer = answer.map_err(|_| HttpError::new(HttpErrorKind::Timeout, late))?;
        let answer = answer.map_err(|error| HttpError::new(kind(&error), error))?;
        let broken =
            |error| HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other(error));
        Ok(answer
            .map(|body| HttpResponseBody::new(TimeoutBody::new(SILENCE, body).map_err(broken))))
    }
}

/// object_store tries again what did not reach the server, and what may be done twice.
fn kind(error: &ClientError) -> HttpErrorKind {
    if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    }
}
