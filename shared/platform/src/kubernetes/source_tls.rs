//! TLS of the source: its certificate and its CA, from the Secrets that the `postgresql` resource
//! names, and the strongest sslmode that works with them.
//!
//! The operator mounts `spec.tls.secretName` at /tls and, only when `caFile` is set, `caSecretName`
//! at /tlsca (postgres-operator pkg/cluster/k8sres.go, generateTlsMounts). Without `spec.tls` Spilo
//! signs a certificate for itself.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use openssl::{
    pkey::{PKey, Private},
    x509::X509,
};

use super::zalando::Postgresql;
use crate::pki::{self, Bundle, Flaw, Purpose};
use job::{
    config::SslMode,
    error::{Context as _, Error, Result},
};

/// The TLS configuration of the source. Its methods are pure functions of what was read, and when.
#[derive(Clone, Debug)]
pub enum SourceTls {
    /// No `spec.tls`: each pod has a self-signed certificate, which no client can verify.
    SelfSigned,
    /// `spec.tls` names a certificate.
    Given(Box<Given>),
}

/// The files behind `spec.tls`.
#[derive(Clone, Debug)]
pub struct Given {
    /// The server's certificate and what came with it.
    pub server: Bundle,
    /// Secret and key of the certificate.
    pub server_at: SecretKey,
    /// The CA certificates, completed to their root if one of the Secrets contains it; None when
    /// there are none.
    pub ca: Option<Bundle>,
    /// Secret and key of the CA certificates.
    pub ca_at: SecretKey,
    /// The source's ssl_ca_file, unchanged: the source verifies every client certificate with it.
    /// None without `caFile`: the source then requests no client certificate.
    pub client_ca: Option<Bundle>,
    /// The CA with its private key, when the CA Secret contains it.
    pub signer: Option<Signer>,
    /// When this was read.
    pub read_at: Timestamp,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// The Secret.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} of secret {}", self.key, self.secret)
    }
}

/// A CA with its private key. Its Debug text does not contain the key.
#[derive(Clone)]
pub struct Signer {
    /// Its certificate, followed by the intermediate CAs between it and the root.
    pub chain: Bundle,
    /// Its private key.
    pub key: PKey<Private>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", pki::subject(self.chain.leaf()))
    }
}

/// Reads the Secrets that the `postgresql` resource names.
///
/// # Errors
/// Refused when a Secret or a key of it that is named does not exist, or contains no certificate.
pub async fn read(client: &Client, namespace: &str, cr: &Postgresql) -> Result<SourceTls> {
    let Some(tls) = cr
        .spec
        .tls
        .as_ref()
        .filter(|tls| !tls.secret_name.is_empty())
    else {
        return Ok(SourceTls::SelfSigned);
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let server = named(&secrets, &tls.secret_name, "secretName", cr).await?;
    let ca_name = tls
        .ca_secret_name
        .as_deref()
        .filter(|name| !name.is_empty());
    let ca = match (ca_file(cr), ca_name) {
        (Some(_), Some(name)) if name != tls.secret_name => {
            Some(named(&secrets, name, "caSecretName", cr).await?)
        }
        _ => None,
    };
    from_secrets(cr, &server, ca.as_ref(), Timestamp::now()).map(SourceTls::Given)
}

async fn named(secrets: &Api<Secret>, name: &str, field: &str, cr: &Postgresql) -> Result<Secret> {
    job::kubernetes::get(secrets, name).await?.ok_or_else(|| {
        Error::refused(format!(
            "secret {name} does not exist, but spec.tls.{field} of postgresql {} names it",
            cr.name_any()
        ))
        .hint("correct spec.tls of the postgresql resource, or create the secret that it names")
    })
}

fn ca_file(cr: &Postgresql) -> Option<&str> {
    cr.spec
        .tls
        .as_ref()?
        .ca_file
        .as_deref()
        .filter(|file| !file.is_empty())
}

/// The key of a Secret that a file of spec.tls names, either as the key or as a path to it.
fn key_of(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn from_secrets(
    cr: &Postgresql,
    server: &Secret,
    ca: Option<&Secret>,
    read_at: Timestamp,
) -> Result<Box<Given>> {
    let tls = cr.spec.tls.clone().unwrap_or_default();
    let certificate_file = tls
        .certificate_file
        .as_deref()
        .filter(|file| !file.is_empty());
    let server_at = SecretKey {
        secret: server.name_any(),
        key: key_of(certificate_file.unwrap_or("tls.crt")).into(),
    };
    let chain = bundle(server, &server_at)?;
    let ca_secret = ca.unwrap_or(server);
    // Without caFile the source has no CA file, but the Secret of a certificate usually contains
    // the certificate of its issuer (cert-manager writes it).
    let ca_at = SecretKey {
        secret: ca_secret.name_any(),
        key: key_of(ca_file(cr).unwrap_or("ca.crt")).into(),
    };
    let has_ca = ca_file(cr).is_some() || value(ca_secret, &ca_at.key).is_some();
    let stated = has_ca.then(|| bundle(ca_secret, &ca_at)).transpose()?;
    let at_hand = at_hand(&chain, stated.as_ref(), [server, ca_secret]);
    let ca = match &stated {
        Some(stated) => Some(completed(stated, &at_hand)),
        None => own_root(&chain),
    };
    Ok(Box::new(Given {
        server: chain,
        server_at,
        ca,
        ca_at,
        client_ca: stated.filter(|_| ca_file(cr).is_some()),
        signer: signer(ca_secret, &at_hand),
        read_at,
    }))
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    (!bytes.is_empty()).then_some(bytes.as_slice())
}

fn bundle(secret: &Secret, at: &SecretKey) -> Result<Bundle> {
    let pem = value(secret, &at.key).ok_or_else(|| {
        Error::refused(format!("{at} does not exist"))
            .hint("correct spec.tls of the postgresql resource, or the secret that it names")
    })?;
    Bundle::parse(pem).context(format!("reading {at}"))
}

/// All certificates of the Secrets, which may complete a chain or belong to a key.
fn at_hand(chain: &Bundle, stated: Option<&Bundle>, secrets: [&Secret; 2]) -> Vec<X509> {
    let more = secrets
        .into_iter()
        .flat_map(|secret| ["ca.crt", "tls.crt"].map(|key| value(secret, key)));
    let more: Vec<Bundle> = more
        .flatten()
        .filter_map(|pem| Bundle::parse(pem).ok())
        .collect();
    let all = std::iter::once(chain).chain(stated).chain(&more);
    all.flat_map(Bundle::certificates).cloned().collect()
}

/// `ca`, followed by the issuers up to its root: libpq accepts a chain only with its root.
fn completed(ca: &Bundle, at_hand: &[X509]) -> Bundle {
    let issuers: Vec<X509> = ca
        .certificates()
        .iter()
        .flat_map(|one| pki::issuers(one, at_hand))
        .collect();
    ca.joined(&issuers)
}

/// The root in the server's file, or the server's self-signed certificate.
fn own_root(chain: &Bundle) -> Option<Bundle> {
    let root = chain
        .certificates()
        .iter()
        .find(|one| pki::is_self_signed(one))?;
    Some(Bundle::from(root.clone()))
}

/// A private key of the CA Secret (ca.key, or tls.key as cert-manager writes it), with the
/// certificate to which it belongs.
fn signer(secret: &Secret, at_hand: &[X509]) -> Option<Signer> {
    let keys = ["ca.key", "tls.key"]
        .into_iter()
        .filter_map(|key| PKey::private_key_from_pem(value(secret, key)?).ok());
    keys.into_iter().find_map(|key| {
        let fits = |one: &&X509| one.public_key().is_ok_and(|public| public.public_eq(&key));
        let certificate = at_hand.iter().find(fits)?.clone();
        let between = pki::issuers(&certificate, at_hand)
            .into_iter()
            .filter(|issuer| !pki::is_self_signed(issuer));
        let chain = Bundle::from(certificate.clone()).joined(&between.collect::<Vec<_>>());
        Some(Signer { chain, key })
    })
}

impl SourceTls {
    /// The strongest sslmode that works for `host`, and the reason. With `require` no CA file may
    /// be configured: libpq verifies the chain with it, also in `require`.
    pub fn best_sslmode(&self, host: &str) -> (SslMode, String) {
        let Self::Given(given) = self else {
            return (
                SslMode::Require,
                "the postgresql resource has no spec.tls, and Spilo's self-signed certificate \
                 cannot be checked"
                    .into(),
            );
        };
        if let Err(error) = given.verified() {
            return (
                SslMode::Require,
                format!("the server's certificate cannot be checked: {error}"),
            );
        }
        if given.covers(host) {
            let authority = &given.ca_at;
            return (
                SslMode::VerifyFull,
                format!("the server's certificate chains to {authority} and covers {host}"),
            );
        }
        let names = given.names().join(", ");
        let reason = if names.is_empty() {
            format!("the server's certificate covers no name, and so not {host}")
        } else {
            format!("the server's certificate does not cover {host}; it covers {names}")
        };
        (SslMode::VerifyCa, reason)
    }

    /// The CA file for clients, as PEM; None when the server's certificate does not chain to it.
    pub fn ca_pem(&self) -> Result<Option<String>> {
        match self {
            Self::Given(given) if given.verified().is_ok() => {
                given.ca.as_ref().map(Bundle::to_pem).transpose()
            }
            _ => Ok(None),
        }
    }
}

impl Given {
    /// Verifies by libpq's rules that the server's certificate was valid when it was read and
    /// chains to the CA. Returns the path from it to the root.
    ///
    /// # Errors
    /// Refused, with the reason and a hint.
    pub fn verified(&self) -> Result<Bundle> {
        let Some(ca) = &self.ca else {
            return Err(Error::refused(format!(
                "there is no CA certificate in {} and none in {}",
                self.ca_at, self.server_at
            ))
            .hint(
                "name the CA in spec.tls of the postgresql resource (caFile, caSecretName), or set \
                 SOURCE_SSLMODE=require",
            ));
        };
        pki::verify(&self.server, ca, Purpose::Server, self.read_at).map_err(|flaw| {
            let hint = self.next_step(&flaw);
            Error::refused(format!("verifying {} with {}", self.server_at, self.ca_at))
                .caused_by(flaw)
                .hint(hint)
        })
    }

    fn next_step(&self, flaw: &Flaw) -> String {
        match flaw {
            Flaw::Expired { .. } | Flaw::NotYetValid { .. } => {
                "renew the certificate in its secret; Spilo loads it within five minutes".into()
            }
            Flaw::NoRoot { .. } => format!("append the root's certificate to {}", self.ca_at),
            Flaw::Foreign { issuer, .. } => format!(
                "put the certificate of {issuer} into {}, or name the secret that holds it in \
                 spec.tls",
                self.ca_at
            ),
            Flaw::Other { .. } => "have the source's certificate issued again".into(),
        }
    }

    /// The names that the server's certificate covers.
    pub fn names(&self) -> Vec<String> {
        pki::names(self.server.leaf())
    }

    /// Returns true when sslmode verify-full accepts the certificate for `host`.
    pub fn covers(&self, host: &str) -> bool {
        pki::covers(self.server.leaf(), host)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;
    use crate::pki::authority::{Authority, in_days, self_signed};
    use job::error::ErrorKind;

    const LONG: (i64, i64) = (-10, 1000);
    const HOST: &str = "mastodon-postgresql.mastodon.svc";

    fn cr(tls: serde_json::Value) -> Postgresql {
        serde_json::from_value(json!({
            "apiVersion": "acid.zalan.do/v1",
            "kind": "postgresql",
            "metadata": {"name": "mastodon-postgresql"},
            "spec": {"tls": tls},
        }))
        .unwrap()
    }

    fn secret(name: &str, data: &[(&str, &str)]) -> Secret {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret {
            metadata: kube::api::ObjectMeta {
                name: Some(name.into()),
                ..Default::default()
            },
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    fn with_ca(ca: &[(&str, &str)], server: &[(&str, &str)]) -> Result<Box<Given>> {
        let cr = cr(json!({"secretName": "server", "caSecretName": "ca", "caFile": "ca.crt"}));
        from_secrets(
            &cr,
            &secret("server", server),
            Some(&secret("ca", ca)),
            in_days(0),
        )
    }

    fn judged(given: Box<Given>) -> (SslMode, String) {
        SourceTls::Given(given).best_sslmode(HOST)
    }

    #[test]
    fn a_ca_with_its_key_gives_verify_full_and_can_sign_clients() {
        let root = Authority::root("root", LONG);
        let between = root.below("between", LONG);
        let (leaf, _) = between.server(&[HOST], LONG);
        let chain = [leaf.as_str(), &between.pem].concat();
        let given = with_ca(
            &[
                ("ca.crt", &root.pem),
                ("tls.crt", &between.pem),
                ("tls.key", &between.key),
            ],
            &[("tls.crt", &chain)],
        );
        let given = given.unwrap();
        let signer = given.signer.as_ref().unwrap();
        assert_eq!(pki::subject(signer.chain.leaf()), "CN=between");
        assert_eq!(
            signer.chain.certificates().len(),
            1,
            "a client sends no root"
        );
        assert!(given.client_ca.is_some());
        assert_eq!(judged(given).0, SslMode::VerifyFull);
    }

    #[test]
    fn an_intermediate_ca_is_completed_with_the_root_of_the_other_secret() {
        let root = Authority::root("root", LONG);
        let between = root.below("between", LONG);
        let (leaf, _) = between.server(&[HOST], LONG);
        let given = with_ca(
            &[("ca.crt", &between.pem)],
            &[("tls.crt", &leaf), ("ca.crt", &root.pem)],
        )
        .unwrap();
        assert_eq!(given.ca.as_ref().unwrap().certificates().len(), 2);
        assert_eq!(
            given.client_ca.as_ref().unwrap().certificates().len(),
            1,
            "the source itself has only what was given"
        );
        assert_eq!(judged(given).0, SslMode::VerifyFull);
        let without = with_ca(&[("ca.crt", &between.pem)], &[("tls.crt", &leaf)]).unwrap();
        let hint = without.verified().unwrap_err();
        assert_eq!(
            hint.next_step(),
            Some("append the root's certificate to key ca.crt of secret ca")
        );
        assert_eq!(judged(without).0, SslMode::Require);
    }

    #[test]
    fn another_host_gets_verify_ca_and_the_names_are_listed() {
        let root = Authority::root("root", LONG);
        let (leaf, _) = root.server(&["elsewhere", "else.where"], LONG);
        let (mode, why) = judged(with_ca(&[("ca.crt", &root.pem)], &[("tls.crt", &leaf)]).unwrap());
        assert_eq!(mode, SslMode::VerifyCa);
        assert!(
            why.ends_with(&format!(
                "does not cover {HOST}; it covers elsewhere, else.where"
            )),
            "{why}"
        );
    }

    #[test]
    fn what_cannot_be_checked_is_require_without_a_ca_file() {
        let (root, other) = (
            Authority::root("root", LONG),
            Authority::root("other", LONG),
        );
        let (leaf, _) = root.server(&[HOST], LONG);
        let (ended, _) = root.server(&[HOST], (-10, -1));
        for (ca, server, why) in [
            (&other, &leaf, "was not signed by this CA, but by CN=root"),
            (&root, &ended, "expired at"),
        ] {
            let tls =
                SourceTls::Given(with_ca(&[("ca.crt", &ca.pem)], &[("tls.crt", server)]).unwrap());
            let (mode, reason) = tls.best_sslmode(HOST);
            assert!(mode == SslMode::Require && reason.contains(why), "{reason}");
            assert_eq!(tls.ca_pem().unwrap(), None);
        }
        assert_eq!(SourceTls::SelfSigned.best_sslmode(HOST).0, SslMode::Require);
        assert_eq!(SourceTls::SelfSigned.ca_pem().unwrap(), None);
    }

    #[test]
    fn a_ca_secret_counts_only_with_a_ca_file() {
        let root = Authority::root("root", LONG);
        let (leaf, _) = root.server(&[HOST], LONG);
        let cr = cr(json!({"secretName": "server", "caSecretName": "ca"}));
        let alone = from_secrets(
            &cr,
            &secret("server", &[("tls.crt", &leaf)]),
            None,
            in_days(0),
        )
        .unwrap();
        assert!(alone.ca.is_none() && alone.client_ca.is_none());
        let beside = secret("server", &[("tls.crt", &leaf), ("ca.crt", &root.pem)]);
        let beside = from_secrets(&cr, &beside, None, in_days(0)).unwrap();
        assert!(beside.client_ca.is_none(), "the source has no ssl_ca_file");
        assert_eq!(judged(beside).0, SslMode::VerifyFull);
    }

    #[test]
    fn files_may_be_named_by_their_mounted_path_and_a_missing_one_is_refused_by_name() {
        let (own, _) = self_signed(&[HOST], LONG);
        let cr = cr(json!({"secretName": "server", "certificateFile": "/tls/server.pem"}));
        let given = from_secrets(
            &cr,
            &secret("server", &[("server.pem", &own)]),
            None,
            in_days(0),
        )
        .unwrap();
        assert_eq!(
            judged(given).0,
            SslMode::VerifyFull,
            "a self-signed certificate is its own CA"
        );
        let error = from_secrets(
            &cr,
            &secret("server", &[("tls.crt", &own)]),
            None,
            in_days(0),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            "key server.pem of secret server does not exist"
        );
    }

    #[test]
    fn the_signers_key_is_not_in_its_debug_text() {
        let root = Authority::root("root", LONG);
        let (leaf, _) = root.server(&[HOST], LONG);
        let given = with_ca(
            &[("ca.crt", &root.pem), ("ca.key", &root.key)],
            &[("tls.crt", &leaf)],
        )
        .unwrap();
        assert_eq!(format!("{:?}", given.signer.unwrap()), "Signer(CN=root)");
    }
}
