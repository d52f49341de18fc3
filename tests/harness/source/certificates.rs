//! The source's certificates, as the cluster's owner or cert-manager created them before the
//! migration.

use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};

use super::options::{SourceOptions, Tls};
use crate::authority::{Authority, Pair};

/// The server's files and the content of the two Secrets.
pub(super) struct Certificates {
    /// Server certificate with its chain, and its key.
    pub(super) server: Pair,
    /// The CA Secret's data; None without `spec.tls`.
    pub(super) secret: Option<Vec<(&'static str, String)>>,
    /// The root for `ssl_ca_file`.
    pub(super) root: Option<String>,
}

/// Creates the certificates that the options select.
pub(super) fn make(options: &SourceOptions) -> Result<Certificates> {
    let root = Authority::root("mastodon root")?;
    let intermediate = root.intermediate("mastodon databases")?;
    let (cluster, namespace) = (&options.cluster, &options.namespace);
    let service = [
        "",
        &format!(".{namespace}"),
        &format!(".{namespace}.svc"),
        &format!(".{namespace}.svc.cluster.local"),
    ];
    let names = match &options.tls {
        Tls::SelfSigned => return self_signed(),
        Tls::ServerNamed(names) => names.clone(),
        _ => service.map(|suffix| format!("{cluster}{suffix}")).to_vec(),
    };
    let mut params = CertificateParams::new(names).context("naming the source's server")?;
    params
        .distinguished_name
        .push(DnType::CommonName, cluster.as_str());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let now = std::time::SystemTime::now();
    let hours = |hours: u64| std::time::Duration::from_secs(hours * 3600);
    params.not_before = (now - hours(48)).into();
    params.not_after = if options.tls == Tls::Expired {
        now - hours(1)
    } else {
        now + hours(24 * 365)
    }
    .into();
    let mut server = intermediate.sign(params)?;
    server.certificate.push_str(intermediate.certificate());
    let secret = match options.tls {
        Tls::ServerWithoutCaKey => vec![("ca.crt", root.certificate().to_owned())],
        Tls::ForeignCa => vec![(
            "ca.crt",
            Authority::root("another CA")?.certificate().to_owned(),
        )],
        _ => vec![
            ("ca.crt", root.certificate().to_owned()),
            ("tls.crt", intermediate.certificate().to_owned()),
            ("tls.key", intermediate.key().to_owned()),
        ],
    };
    Ok(Certificates {
        server,
        secret: Some(secret),
        root: Some(root.certificate().to_owned()),
    })
}

/// The certificate of Spilo's `openssl req -nodes -new -x509 -subj /CN=spilo.example.org`, valid
/// for 30 days.
fn self_signed() -> Result<Certificates> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "spilo.example.org");
    params.not_before = std::time::SystemTime::now().into();
    params.not_after =
        (std::time::SystemTime::now() + std::time::Duration::from_secs(30 * 24 * 3600)).into();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params
        .self_signed(&key)
        .context("signing Spilo's own certificate")?
        .pem();
    Ok(Certificates {
        server: Pair {
            certificate,
            key: key.serialize_pem(),
        },
        secret: None,
        root: None,
    })
}
