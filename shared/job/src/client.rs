//! The Kubernetes API client of a Job's ServiceAccount, by kube's in-cluster configuration.
//!
//! Address, namespace and CA are read by kube, and its layers are used below in kube's own order.
//! TLS and the token are added here and not by `Client::try_from`: that also takes in kubeconfig
//! files with their plugins (YAML, JSONPath, regular expressions: over 1 MB of a program, which a
//! Job has no use for), does not accept an intermediate CA as the trust anchor as Go's clients do,
//! and does not turn off Nagle's algorithm.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderValue, Request, Uri, header::AUTHORIZATION};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, middleware::BaseUriLayer, retry::RetryPolicy},
};
use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod},
    x509::{X509, store::X509StoreBuilder, verify::X509VerifyFlags},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use crate::{
    error::{Error, Result},
    http::{Limits, http_client, request_body},
};

/// The variable with another directory for token, CA and namespace than the one that the kubelet
/// mounts (`/var/run/secrets/kubernetes.io/serviceaccount`), for environments in which nothing can
/// be mounted there.
const DIRECTORY_VARIABLE: &str = "SERVICE_ACCOUNT_DIRECTORY";
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    // No program uses a watch, which could be silent for longer.
    silence: Some(Duration::from_secs(30)),
};

/// Returns a client for this Job's ServiceAccount, and the namespace in which the Job runs.
///
/// # Errors
/// Config outside of a pod, or in a pod without a token.
pub fn client() -> Result<(Client, String)> {
    let config = match env::var_os(DIRECTORY_VARIABLE) {
        None => Config::incluster().map_err(unusable)?,
        Some(directory) => mounted_at(&PathBuf::from(directory))?,
    };
    let namespace = config.default_namespace.clone();
    Ok((build(config).map_err(unusable)?, namespace))
}

fn unusable(cause: impl Into<BoxError>) -> Error {
    Error::config("finding the kubernetes api")
        .caused_by(cause)
        .hint("run this as a Job of manifests/")
}

/// As [`Config::incluster`], with the files of another directory.
fn mounted_at(directory: &Path) -> Result<Config> {
    let variable =
        |name: &str| env::var(name).map_err(|error| unusable(format!("{name}: {error}")));
    let (host, port) = (
        variable("KUBERNETES_SERVICE_HOST")?,
        variable("KUBERNETES_SERVICE_PORT")?,
    );
    let read = |name: &str| {
        let file = directory.join(name);
        fs::read_to_string(&file).map_err(|error| unusable(format!("{}: {error}", file.display())))
    };
    let url: Uri = format!("https://{host}:{port}").parse().map_err(unusable)?;
    let mut config = Config::new(url);
    config.default_namespace = read("namespace")?.trim().to_owned();
    let authorities = X509::stack_from_pem(read("ca.crt")?.as_bytes()).map_err(unusable)?;
    let authorities: Result<_, _> = authorities.iter().map(|one| one.to_der()).collect();
    config.root_cert = Some(authorities.map_err(unusable)?);
    config.auth_info.token_file = Some(directory.join("token").display().to_string());
    Ok(config)
}

/// The layers and their order are those of kube's own `ClientBuilder::try_from`.
fn build(config: Config) -> Result<Client, BoxError> {
    let tls = trusting(config.root_cert.as_deref().unwrap_or_default())?;
    let token = PathBuf::from(config.auth_info.token_file.ok_or("no token")?);
    bearer(&token)?;
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(config.cluster_url))
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .filter(move |request| authorized(request, &token))
        .map_err(BoxError::from)
        // Error's own Display leaves out that of kube::Error, with its YAML.
        .map_request(|request: Request<Body>| {
            request.map(|body| request_body(body.map_err(Error::from)))
        })
        .service(http_client(tls, LIMITS)?);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Trusts these CAs and no other; an intermediate CA is enough.
fn trusting(authorities: &[Vec<u8>]) -> Result<SslConnectorBuilder, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for authority in authorities {
        store.add_cert(X509::from_der(authority)?)?;
    }
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    tls.set_cert_store(store.build());
    Ok(tls)
}

/// The token is read for every request, because the kubelet renews it.
fn authorized(mut request: Request<Body>, token: &Path) -> Result<Request<Body>, BoxError> {
    request.headers_mut().insert(AUTHORIZATION, bearer(token)?);
    Ok(request)
}

fn bearer(token: &Path) -> Result<HeaderValue, BoxError> {
    let text = fs::read_to_string(token).map_err(|e| format!("{}: {e}", token.display()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_read_for_every_request_and_never_printed() {
        let token = std::env::temp_dir().join(format!("token-{}", std::process::id()));
        for text in ["first", "second\n"] {
            fs::write(&token, text).unwrap();
            let request = authorized(Request::new(Body::empty()), &token).unwrap();
            let value = &request.headers()[AUTHORIZATION];
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", text.trim()));
            assert!(!format!("{request:?}").contains(text.trim()));
        }
        fs::remove_file(&token).unwrap();
        assert!(authorized(Request::new(Body::empty()), &token).is_err());
    }
}
