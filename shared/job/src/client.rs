//! The Kubernetes API client of a Job's ServiceAccount, by kube's in-cluster configuration.
//!
//! Configuration, authentication and the layers of the client are kube's own. Only the connector
//! below them is this project's ([`http_client`]), for two reasons: `Client::try_from` neither
//! accepts an intermediate CA as the trust anchor, which Go's clients do, nor turns off Nagle's
//! algorithm.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Request, Uri};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _, retry::RetryPolicy},
};
use openssl::x509::{X509, verify::X509VerifyFlags};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use crate::error::{Error, Result};
use crate::http::{Limits, http_client, request_body};

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
    Ok((build(&config).map_err(unusable)?, namespace))
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
fn build(config: &Config) -> Result<Client, BoxError> {
    let mut tls = config.openssl_ssl_connector_builder()?;
    // As Go does: a certificate of the file is trusted even when another CA issued it.
    tls.verify_param_mut()
        .set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .map_request(|request: Request<Body>| request.map(request_body))
        .service(http_client(tls, LIMITS)?);
    Ok(ClientBuilder::new(service, &config.default_namespace).build())
}
