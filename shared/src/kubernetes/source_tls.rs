//! What the source shows and trusts over TLS: the Secrets that the CR really names, and what follows from them.
//!
//! The operator mounts `spec.tls.secretName` at /tls and, only when `caFile` is set, `caSecretName` at /tlsca
//! (postgres-operator pkg/cluster/k8sres.go, generateTlsMounts). Without `spec.tls` Spilo signs a certificate for itself.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use openssl::{
    pkey::{PKey, Private},
    x509::X509,
};

use super::zalando::Postgresql;
use crate::{
    config::SslMode,
    error::{Context as _, Error, Result},
    pki::{self, Bundle, Purpose},
};

/// How the source presents itself. Every judgement on it is a pure function of what was read, and of when.
#[derive(Clone, Debug)]
pub enum SourceTls {
    /// No `spec.tls`: each pod has a certificate of its own that nobody can check.
    SelfSigned,
    /// `spec.tls` names a certificate.
    Given(Box<Given>),
}

/// The files behind `spec.tls`.
#[derive(Clone, Debug)]
pub struct Given {
    /// The server's certificate and what came with it.
    pub server: Bundle,
    /// Where it stands.
    pub server_at: Place,
    /// The certificates to trust, completed to their root where the root was at hand; None when there are none.
    pub ca: Option<Bundle>,
    /// Where they stand.
    pub ca_at: Place,
    /// `caFile` is set: the source has an ssl_ca_file, and checks every client certificate against it.
    pub checks_clients: bool,
    /// The CA's private key, when its Secret holds one that fits.
    pub ca_key: Option<CaKey>,
    /// When this was read.
    pub read_at: Timestamp,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The Secret.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} of secret {}", self.key, self.secret)
    }
}

/// A CA that can sign: its certificate and the key to it. Its Debug tells neither.
#[derive(Clone)]
pub struct CaKey {
    /// The certificate whose key this is.
    pub certificate: X509,
    /// The private key.
    pub key: PKey<Private>,
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaKey(…)")
    }
}

/// Reads the Secrets that the CR names.
///
/// # Errors
/// The API's; Refused when a Secret, or a key in it, is named but missing, or is not what its name says.
pub async fn read(client: &Client, namespace: &str, cr: &Postgresql) -> Result<SourceTls> {
    let Some(tls) = cr.spec.tls.as_ref().filter(|tls| !tls.secret_name.is_empty()) else {
        return Ok(SourceTls::SelfSigned);
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let server = named(&secrets, &tls.secret_name, "secretName", cr).await?;
    let ca_name = tls.ca_secret_name.as_deref().filter(|name| !name.is_empty());
    let ca = match (ca_file(cr), ca_name) {
        (Some(_), Some(name)) if name != tls.secret_name => Some(named(&secrets, name, "caSecretName", cr).await?),
        _ => None,
    };
    from_secrets(cr, &server, ca.as_ref(), Timestamp::now()).map(SourceTls::Given)
}

async fn named(secrets: &Api<Secret>, name: &str, field: &str, cr: &Postgresql) -> Result<Secret> {
    super::get(secrets, name).await?.ok_or_else(|| {
        Error::refused(format!(
            "secret {name} does not exist, but spec.tls.{field} of postgresql {} names it",
            cr.name_any()
        ))
        .hint("mend spec.tls of the postgresql resource, or create the secret that it names")
    })
}

fn ca_file(cr: &Postgresql) -> Option<&str> {
    cr.spec.tls.as_ref()?.ca_file.as_deref().filter(|file| !file.is_empty())
}

/// A file of spec.tls is a key of its Secret, or that key below the mount point.
fn key_of(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn from_secrets(cr: &Postgresql, server: &Secret, ca: Option<&Secret>, read_at: Timestamp) -> Result<Box<Given>> {
    let tls = cr.spec.tls.clone().unwrap_or_default();
    let certificate_file = tls.certificate_file.as_deref().filter(|file| !file.is_empty());
    let server_at = Place {
        secret: server.name_any(),
        key: key_of(certificate_file.unwrap_or("tls.crt")).into(),
    };
    let chain = bundle(server, &server_at)?;
    let ca_secret = ca.unwrap_or(server);
    // Without caFile the source has no CA file, but the Secret of a certificate customarily holds its issuer's (cert-manager).
    let ca_at = Place {
        secret: ca_secret.name_any(),
        key: key_of(ca_file(cr).unwrap_or("ca.crt")).into(),
    };
    let checks_clients = ca_file(cr).is_some();
    let stated = match checks_clients || value(ca_secret, &ca_at.key).is_some() {
        true => Some(bundle(ca_secret, &ca_at)?),
        false => None,
    };
    let at_hand = at_hand(&chain, [server, ca_secret]);
    let ca = match stated {
        Some(stated) => Some(completed(&stated, &at_hand)),
        None => own_root(&chain),
    };
    let ca_key = ca.as_ref().and_then(|ca| ca_key(ca_secret, ca));
    Ok(Box::new(Given {
        server: chain,
        server_at,
        ca,
        ca_at,
        checks_clients,
        ca_key,
        read_at,
    }))
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    (!bytes.is_empty()).then_some(bytes.as_slice())
}

fn bundle(secret: &Secret, place: &Place) -> Result<Bundle> {
    let pem = value(secret, &place.key).ok_or_else(|| {
        Error::refused(format!("{place} does not exist")).hint("mend spec.tls of the postgresql resource, or the secret that it names")
    })?;
    Bundle::parse(pem).context(format!("reading {place}"))
}

/// Certificates in the same Secrets that may complete a chain.
fn at_hand(chain: &Bundle, secrets: [&Secret; 2]) -> Vec<X509> {
    let more = secrets
        .into_iter()
        .flat_map(|secret| ["ca.crt", "tls.crt"].map(|key| value(secret, key)));
    let more = more.flatten().filter_map(|pem| Bundle::parse(pem).ok());
    let mut all = chain.certificates()[1..].to_vec();
    all.extend(more.flat_map(|bundle| bundle.certificates().to_vec()));
    all
}

/// `ca` as given, and the issuers that lead from it to a root: libpq accepts a chain only with its root.
fn completed(ca: &Bundle, at_hand: &[X509]) -> Bundle {
    let mut bundle = ca.clone();
    // Each round adds one issuer, so there are no more rounds than certificates.
    for _ in at_hand {
        let orphan = |one: &&X509| !pki::is_self_signed(one) && !bundle.certificates().iter().any(|issuer| pki::signed_by(one, issuer));
        let issuer = bundle
            .certificates()
            .iter()
            .filter(orphan)
            .find_map(|one| at_hand.iter().find(|issuer| pki::signed_by(one, issuer)));
        match issuer.cloned() {
            Some(issuer) => bundle = bundle.joined(&[issuer]),
            None => break,
        }
    }
    bundle
}

/// The root at the end of the server's own file, or its self-signed certificate.
fn own_root(chain: &Bundle) -> Option<Bundle> {
    let root = chain.certificates().iter().find(|one| pki::is_self_signed(one))?;
    Some(Bundle::from(root.clone()))
}

/// A private key of the CA Secret (tls.key as cert-manager writes it, or ca.key) and the certificate of the bundle that it fits.
fn ca_key(secret: &Secret, ca: &Bundle) -> Option<CaKey> {
    let keys = ["ca.key", "tls.key"]
        .into_iter()
        .filter_map(|key| PKey::private_key_from_pem(value(secret, key)?).ok());
    keys.into_iter().find_map(|key| {
        let fits = |one: &&X509| one.public_key().is_ok_and(|public| public.public_eq(&key));
        let certificate = ca.certificates().iter().find(fits)?.clone();
        Some(CaKey { certificate, key })
    })
}

impl SourceTls {
    /// The strongest sslmode that works for `host`, and why. Only when it is not `require` may a CA file be given: libpq checks the
    /// chain in `require`, too, as soon as there is one.
    pub fn best_sslmode(&self, host: &str) -> (SslMode, String) {
        let Self::Given(given) = self else {
            return (
                SslMode::Require,
                "the postgresql resource has no spec.tls, and Spilo's self-signed certificate cannot be checked".into(),
            );
        };
        if let Err(error) = given.verified() {
            return (SslMode::Require, format!("the server's certificate cannot be checked: {error}"));
        }
        let names = given.names().join(", ");
        match given.covers(host) {
            true => (
                SslMode::VerifyFull,
                format!("the server's certificate chains to {} and covers {host}", given.ca_at),
            ),
            false if names.is_empty() => (
                SslMode::VerifyCa,
                format!("the server's certificate covers no name at all, and so not {host}"),
            ),
            false => (
                SslMode::VerifyCa,
                format!("the server's certificate does not cover {host}; it covers {names}"),
            ),
        }
    }

    /// The CA file for clients, as PEM; None when the server's certificate cannot be checked with it.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn ca_pem(&self) -> Result<Option<String>> {
        match self {
            Self::Given(given) if given.verified().is_ok() => given.ca.as_ref().map(Bundle::to_pem).transpose(),
            _ => Ok(None),
        }
    }
}

impl Given {
    /// Whether the server's certificate is valid now and chains to the CA, by libpq's rules.
    ///
    /// # Errors
    /// Refused, with the reason.
    pub fn verified(&self) -> Result<()> {
        let Some(ca) = &self.ca else {
            return Err(Error::refused(format!(
                "there is no CA certificate in {} and none in {}",
                self.ca_at, self.server_at
            )));
        };
        pki::verify(&self.server, ca, Purpose::Server, self.read_at).context(format!("verifying {} with {}", self.server_at, self.ca_at))
    }

    /// When the first of the server's certificate, its chain and its CA expires, and which.
    pub fn first_to_expire(&self) -> (String, Timestamp) {
        let ends = std::iter::once(&self.server).chain(&self.ca).map(Bundle::first_to_expire);
        let (certificate, at) = ends.min_by_key(|(_, at)| *at).expect("the server's bundle is never empty");
        (pki::subject(certificate), at)
    }

    /// The names that the server's certificate covers.
    pub fn names(&self) -> Vec<String> {
        pki::names(self.server.leaf())
    }

    /// Whether sslmode verify-full accepts the certificate for `host`.
    pub fn covers(&self, host: &str) -> bool {
        pki::covers(self.server.leaf(), host)
    }
}
