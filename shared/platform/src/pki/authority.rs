//! A CA that issues certificates for tests.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::Bundle;

/// A CA that can sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub(crate) pem: String,
    /// Its key, PEM.
    pub(crate) key: String,
}

/// Beginning and end of validity, in days from now.
pub(crate) type Days = (i64, i64);

impl Authority {
    pub(crate) fn root(name: &str, days: Days) -> Self {
        let (params, key) = ca(name, days);
        let pem = params.self_signed(&key).unwrap().pem();
        Self::new(params, key, pem)
    }

    pub(crate) fn below(&self, name: &str, days: Days) -> Self {
        let (params, key) = ca(name, days);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self::new(params, key, pem)
    }

    fn new(params: CertificateParams, key: KeyPair, pem: String) -> Self {
        let text = key.serialize_pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
            key: text,
        }
    }

    /// A certificate and its key, PEM.
    pub(crate) fn leaf(
        &self,
        purpose: ExtendedKeyUsagePurpose,
        names: &[&str],
        days: Days,
    ) -> (String, String) {
        let (mut params, key) = named(names.first().unwrap_or(&"client"), names, days);
        params.extended_key_usages = vec![purpose];
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    pub(crate) fn server(&self, names: &[&str], days: Days) -> (String, String) {
        self.leaf(ExtendedKeyUsagePurpose::ServerAuth, names, days)
    }
}

/// A self-signed server certificate and its key, PEM.
pub(crate) fn self_signed(names: &[&str], days: Days) -> (String, String) {
    let (params, key) = named(names[0], names, days);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

pub(crate) fn bundle(pems: &[&str]) -> Bundle {
    Bundle::parse(pems.concat().as_bytes()).unwrap()
}

pub(crate) fn in_days(days: i64) -> Timestamp {
    Timestamp::try_from(at(days)).unwrap()
}

fn at(days: i64) -> SystemTime {
    let distance = Duration::from_secs(days.unsigned_abs() * 86_400);
    if days < 0 {
        SystemTime::now() - distance
    } else {
        SystemTime::now() + distance
    }
}

fn named(name: &str, names: &[&str], days: Days) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(days.0).into();
    params.not_after = at(days.1).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params, KeyPair::generate().unwrap())
}

fn ca(name: &str, days: Days) -> (CertificateParams, KeyPair) {
    let (mut params, key) = named(name, &[], days);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params, key)
}
