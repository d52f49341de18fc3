//! Certificate authorities of the harness: every TLS server in it gets its certificate from one.

use std::net::IpAddr;

use anyhow::{Context, Result};
use openssl::{
    asn1::Asn1Time,
    hash::MessageDigest,
    pkey::PKey,
    x509::{X509, extension::BasicConstraints as OpensslBasicConstraints},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

/// A CA: root or intermediate.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate, followed by the intermediate CAs that a verifier needs.
    pub certificate: String,
    /// The key, PKCS#8.
    pub key: String,
}

impl Authority {
    /// A self-signed root.
    ///
    /// # Errors
    /// The certificate library fails.
    pub fn root(name: &str) -> Result<Self> {
        let (params, key) = (ca(name)?, key()?);
        let certificate = params.self_signed(&key).context("signing a root CA")?.pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A CA signed by this one.
    ///
    /// # Errors
    /// As [`Authority::root`].
    pub fn intermediate(&self, name: &str) -> Result<Self> {
        let (params, key) = (ca(name)?, key()?);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("signing an intermediate CA")?
            .pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A server certificate (serverAuth only), valid for 90 days.
    ///
    /// # Errors
    /// A name is not a DNS name.
    pub fn server(
        &self,
        common_name: &str,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Pair> {
        let mut params = CertificateParams::new(names.to_vec()).context("naming a server")?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.sign(params)
    }

    /// Signs arbitrary parameters: an expired certificate, another key usage, a name outside the
    /// domain.
    ///
    /// # Errors
    /// The library refuses the parameters.
    pub fn sign(&self, mut params: CertificateParams) -> Result<Pair> {
        params.use_authority_key_identifier_extension = true;
        let key = key()?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("signing a certificate")?
            .pem();
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

/// A copy of the CA's certificate, with the same name and key, that expired an hour ago.
///
/// # Errors
/// The arguments are not a CA certificate and its key.
pub fn expired(certificate: &str, key: &str) -> Result<String> {
    let (before, key) = (
        X509::from_pem(certificate.as_bytes())?,
        PKey::private_key_from_pem(key.as_bytes())?,
    );
    let mut after = X509::builder()?;
    after.set_version(2)?;
    after.set_subject_name(before.subject_name())?;
    after.set_issuer_name(before.subject_name())?;
    after.set_pubkey(&key)?;
    after.set_serial_number(before.serial_number())?;
    let now = jiff::Timestamp::now().as_second();
    after.set_not_before(Asn1Time::from_unix(now - 48 * 3600)?.as_ref())?;
    after.set_not_after(Asn1Time::from_unix(now - 3600)?.as_ref())?;
    after.append_extension(OpensslBasicConstraints::new().critical().ca().build()?)?;
    after.sign(&key, MessageDigest::sha256())?;
    Ok(String::from_utf8(after.build().to_pem()?)?)
}

fn key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("generating a key")
}

fn ca(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}
