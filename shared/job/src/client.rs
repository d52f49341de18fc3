//! The client of a Job's ServiceAccount, from what the kubelet gives to a pod.
//!
//! kube also finds its way by a kubeconfig, whose plugins run other programs. A Job has no use for
//! that, and its YAML, JSONPath and regular expressions were a seventh of each program: the stack
//! below is kube's own without them.

use std::{
    fs,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderValue, Request, Uri, header::AUTHORIZATION};
use http_body_util::BodyExt as _;
use kube::{
    Client,
    client::{Body, ClientBuilder, middleware::BaseUriLayer, retry::RetryPolicy},
};
use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod},
    x509::{X509, store::X509StoreBuilder, verify::X509VerifyFlags},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use crate::error::{Error, Result};
use crate::http::{Limits, http_client, request_body};

/// Where the kubelet mounts token, CA and namespace.
const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Names another place, where nothing can be mounted there.
const DIRECTORY_VARIABLE: &str = "SERVICE_ACCOUNT_DIRECTORY";
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    // No call of ours is a watch that stays quiet for longer.
    silence: Some(Duration::from_secs(30)),
};

/// A client as this Job's ServiceAccount, and the namespace that the Job runs in.
///
/// # Errors
/// Config when this is no pod, or one without a token.
pub fn client() -> Result<(Client, String)> {
    let directory =
        std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| DIRECTORY.into(), PathBuf::from);
    let address = address()?;
    let namespace = read(&directory, "namespace")?.trim().to_owned();
    let tls = trusting(&read(&directory, "ca.crt")?)
        .map_err(|error| unusable("the CA of the ServiceAccount").caused_by(error))?;
    bearer(&directory)
        .map_err(|error| unusable("the token of the ServiceAccount").caused_by(error))?;
    let client = build(address, tls, directory, &namespace)
        .map_err(|error| unusable("tls").caused_by(error))?;
    Ok((client, namespace))
}

fn unusable(what: &str) -> Error {
    Error::config(format!("finding the kubernetes api: {what}"))
        .hint("run this as a Job of manifests/")
}

fn address() -> Result<Uri> {
    let variable =
        |name: &str| std::env::var(name).map_err(|error| unusable(name).caused_by(error));
    url(
        &variable("KUBERNETES_SERVICE_HOST")?,
        &variable("KUBERNETES_SERVICE_PORT")?,
    )
}

fn url(host: &str, port: &str) -> Result<Uri> {
    let url = match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("https://[{address}]:{port}"),
        Err(_) => format!("https://{host}:{port}"),
    };
    url.parse::<Uri>()
        .map_err(|error| unusable(&url).caused_by(error))
}

fn read(directory: &Path, name: &str) -> Result<String> {
    let file = directory.join(name);
    fs::read_to_string(&file)
        .map_err(|error| unusable(&file.display().to_string()).caused_by(error))
}

/// Trusts the cluster's CA and nobody else, as Go does: an intermediate CA in the file is enough.
fn trusting(authority: &str) -> Result<SslConnectorBuilder, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for certificate in X509::stack_from_pem(authority.as_bytes())? {
        store.add_cert(certificate)?;
    }
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    tls.set_cert_store(store.build());
    Ok(tls)
}

/// The order of the layers is that of kube's own builder.
fn build(
    address: Uri,
    tls: SslConnectorBuilder,
    directory: PathBuf,
    namespace: &str,
) -> Result<Client, ErrorStack> {
    let http = http_client(tls, LIMITS)?;
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(address))
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .filter(move |request| authorized(request, &directory))
        .map_err(BoxError::from)
        // As an error of ours: the body's own brings along all that kube can fail in.
        .map_request(|request: Request<Body>| {
            request.map(|body| request_body(body.map_err(Error::from)))
        })
        .service(http);
    Ok(ClientBuilder::new(service, namespace).build())
}

/// The token is read for every request, because the kubelet renews it.
fn authorized(mut request: Request<Body>, directory: &Path) -> Result<Request<Body>, BoxError> {
    request
        .headers_mut()
        .insert(AUTHORIZATION, bearer(directory)?);
    Ok(request)
}

fn bearer(directory: &Path) -> Result<HeaderValue, BoxError> {
    let token = fs::read_to_string(directory.join("token"))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_url() {
        for (host, wanted) in [
            ("10.96.0.1", "https://10.96.0.1:6443/"),
            ("fd00::1", "https://[fd00::1]:6443/"),
            (
                "kubernetes.default.svc",
                "https://kubernetes.default.svc:6443/",
            ),
        ] {
            assert_eq!(url(host, "6443").unwrap().to_string(), wanted);
        }
        assert!(
            url("a b", "6443")
                .unwrap_err()
                .to_string()
                .starts_with("finding the kubernetes api: https://a b:6443")
        );
    }

    #[test]
    fn the_token_is_read_anew_and_never_printed() {
        let directory =
            std::env::temp_dir().join(format!("service-account-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for token in ["first", "second\n"] {
            fs::write(directory.join("token"), token).unwrap();
            let request = authorized(Request::new(Body::empty()), &directory).unwrap();
            let value = &request.headers()[AUTHORIZATION];
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", token.trim()));
            assert!(!format!("{request:?}").contains(token.trim()));
        }
        fs::remove_dir_all(&directory).unwrap();
        assert!(authorized(Request::new(Body::empty()), &directory).is_err());
    }
}
