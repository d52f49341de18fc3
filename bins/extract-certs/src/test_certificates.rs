//! Certificates for tests, and a source that uses them.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use openssl::pkey::{PKey, Private};
use platform::{
    kubernetes::source_tls::{Given, SecretKey, Signer},
    pki::Bundle,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

pub(crate) const HOST: &str = "mastodon-postgresql.mastodon.svc";

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    key: PKey<Private>,
}

impl Authority {
    /// A root CA that is valid for this number of days.
    pub(crate) fn root(name: &str, days: u64) -> Self {
        let (params, key) = ca(name, days);
        let pem = params.self_signed(&key).unwrap().pem();
        Self::new(params, key, pem)
    }

    /// An intermediate CA that this one has signed.
    pub(crate) fn intermediate(&self, name: &str, days: u64) -> Self {
        let (params, key) = ca(name, days);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self::new(params, key, pem)
    }

    fn new(params: CertificateParams, key: KeyPair, pem: String) -> Self {
        let openssl = PKey::private_key_from_pem(key.serialize_pem().as_bytes()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            pem,
            key: openssl,
        }
    }

    pub(crate) fn signer(&self) -> Signer {
        Signer {
            chain: bundle(&self.pem),
            key: self.key.clone(),
        }
    }

    /// A server certificate for these DNS names.
    pub(crate) fn server(&self, names: &[&str], days: u64) -> String {
        let (mut params, key) = params("server", names, days);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(&key, &self.issuer).unwrap().pem()
    }
}

/// A source with this certificate and CA, and with the CA key of `signer`.
pub(crate) fn given(server: &str, ca: &Authority, signer: &Authority) -> Given {
    let place = |secret: &str, key: &str| SecretKey {
        secret: secret.into(),
        key: key.into(),
    };
    Given {
        server: bundle(server),
        server_at: place("server", "tls.crt"),
        ca: Some(bundle(&ca.pem)),
        ca_at: place("ca", "ca.crt"),
        client_ca: Some(bundle(&ca.pem)),
        signer: Some(signer.signer()),
        read_at: Timestamp::now(),
    }
}

pub(crate) fn bundle(pem: &str) -> Bundle {
    Bundle::parse(pem.as_bytes()).unwrap()
}

fn params(name: &str, names: &[&str], days: u64) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - Duration::from_secs(86_400)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400 + 600)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params, KeyPair::generate().unwrap())
}

fn ca(name: &str, days: u64) -> (CertificateParams, KeyPair) {
    let (mut params, key) = params(name, &[], days);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params, key)
}
