//! A certificate authority of the harness: every TLS server in it gets its certificate from one of these.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
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
    /// The library refuses; it has no reason to.
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
        let certificate = params.signed_by(&key, &self.issuer).context("signing an intermediate CA")?.pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its own key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate for servers only (serverAuth), valid for 90 days from an hour ago.
    ///
    /// # Errors
    /// A name is not a DNS name.
    pub fn server(&self, common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<Pair> {
        let mut params = CertificateParams::new(names.to_vec()).context("naming a server")?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.sign(params)
    }

    /// Signs whatever a test needs: an expired certificate, another purpose, a foreign name.
    ///
    /// # Errors
    /// The library refuses the parameters.
    pub fn sign(&self, mut params: CertificateParams) -> Result<Pair> {
        params.use_authority_key_identifier_extension = true;
        let key = key()?;
        let certificate = params.signed_by(&key, &self.issuer).context("signing a certificate")?.pem();
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    }
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
