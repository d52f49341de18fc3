//! Certificates as libpq verifies them: chains, dates and names. The functions are pure: they use
//! neither network nor clock. OpenSSL parses and verifies.
//!
//! Two clients must accept the same files: libpq (pg_basebackup, WAL receiver;
//! src/interfaces/libpq/fe-secure-openssl.c) and pgx (the probe of CNPG's clone Job). The rules
//! here are therefore the stricter ones of the two: the chain ends at a self-signed root that is in
//! the CA file (libpq sets no X509_V_FLAG_PARTIAL_CHAIN), and only subjectAltName counts (Go
//! ignores the common name).
//!
//! An error of OpenSSL itself is Refused.

#[cfg(test)]
pub(crate) mod authority;
mod chain;

use std::{cmp::Ordering, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    error::ErrorStack,
    nid::Nid,
    x509::{X509, X509NameRef, X509Ref},
};

pub use chain::{Flaw, Purpose, issuers, verify};

use job::error::{Error, Result};

/// The certificates of one PEM file in their order, at least one.
#[derive(Clone, Debug)]
pub struct Bundle {
    certificates: Vec<X509>,
}

impl Bundle {
    /// Parses PEM; other blocks, such as a key in the same file, are ignored.
    ///
    /// # Errors
    /// Refused when it contains no certificate.
    pub fn parse(pem: &[u8]) -> Result<Self> {
        let certificates =
            X509::stack_from_pem(pem).map_err(|e| Error::refused("it is not PEM").caused_by(e))?;
        if certificates.is_empty() {
            return Err(Error::refused("it holds no certificate"));
        }
        Ok(Self { certificates })
    }

    /// The first certificate; in a server's or a client's file it is the server's or the client's.
    pub fn leaf(&self) -> &X509Ref {
        &self.certificates[0]
    }

    /// All certificates, in the order of the file.
    pub fn certificates(&self) -> &[X509] {
        &self.certificates
    }

    /// The certificates as PEM, without other blocks of the file.
    pub fn to_pem(&self) -> Result<String> {
        let mut text = String::new();
        for certificate in &self.certificates {
            text.push_str(&String::from_utf8_lossy(
                &certificate.to_pem().map_err(failed)?,
            ));
        }
        Ok(text)
    }

    /// These certificates, followed by those of `others` that are not among them.
    #[must_use]
    pub fn joined(&self, others: &[X509]) -> Self {
        let mut certificates = self.certificates.clone();
        for other in others {
            // PartialEq of X509 compares the whole encoding.
            if !certificates.contains(other) {
                certificates.push(other.clone());
            }
        }
        Self { certificates }
    }

    /// The certificate that expires first, and when it does.
    pub fn first_to_expire(&self) -> (&X509Ref, Timestamp) {
        self.certificates
            .iter()
            .map(|certificate| (certificate.as_ref(), expires(certificate)))
            .min_by_key(|(_, at)| *at)
            .expect("a bundle is never empty")
    }
}

impl From<X509> for Bundle {
    fn from(certificate: X509) -> Self {
        Self {
            certificates: vec![certificate],
        }
    }
}

/// The names that a server certificate covers: DNS names and addresses of its subjectAltName.
pub fn names(certificate: &X509Ref) -> Vec<String> {
    let Some(names) = certificate.subject_alt_names() else {
        return Vec::new();
    };
    let name = |name: &openssl::x509::GeneralNameRef| match (name.dnsname(), name.ipaddress()) {
        (Some(dns), _) => Some(dns.to_owned()),
        (None, Some(bytes)) => address(bytes).map(|address| address.to_string()),
        (None, None) => None,
    };
    names.iter().filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Returns true when sslmode verify-full accepts `certificate` for `host`.
pub fn covers(certificate: &X509Ref, host: &str) -> bool {
    names(certificate)
        .iter()
        .any(|name| name_matches(name, host))
}

/// libpq's rule (fe-secure-common.c): the names are equal without regard to case, or `*.` at the
/// beginning stands for exactly one label.
fn name_matches(name: &str, host: &str) -> bool {
    if let (Ok(name), Ok(host)) = (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return name == host;
    }
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(tail), Some((label, rest))) => {
            !label.is_empty() && !tail.is_empty() && tail.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

/// The end of a certificate's validity (notAfter).
pub fn expires(certificate: &X509Ref) -> Timestamp {
    timestamp(certificate.not_after())
}

/// The beginning of a certificate's validity (notBefore).
pub fn begins(certificate: &X509Ref) -> Timestamp {
    timestamp(certificate.not_before())
}

/// Converts a date; one beyond the range of [`Timestamp`] becomes its last value.
fn timestamp(time: &Asn1TimeRef) -> Timestamp {
    let since_epoch = Asn1Time::from_unix(0).and_then(|epoch| epoch.diff(time));
    since_epoch
        .ok()
        .map(|d| SignedDuration::from_secs(i64::from(d.days) * 86_400 + i64::from(d.secs)))
        .and_then(|since| Timestamp::UNIX_EPOCH.checked_add(since).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Returns true when it is signed by its own key: a root, or a self-signed server certificate.
pub fn is_self_signed(certificate: &X509Ref) -> bool {
    signed_by(certificate, certificate)
}

/// Returns true when `issuer`'s key has signed `certificate`; [`verify`] checks whether it may.
pub fn signed_by(certificate: &X509Ref, issuer: &X509Ref) -> bool {
    let named = certificate
        .issuer_name()
        .try_cmp(issuer.subject_name())
        .is_ok_and(Ordering::is_eq);
    named
        && issuer
            .public_key()
            .is_ok_and(|key| certificate.verify(&key).unwrap_or(false))
}

/// The subject on one line, such as `CN=mastodon-postgresql`.
pub fn subject(certificate: &X509Ref) -> String {
    one_line(certificate.subject_name())
}

/// The issuer on one line.
pub fn issuer(certificate: &X509Ref) -> String {
    one_line(certificate.issuer_name())
}

/// The common name, which PostgreSQL's `cert` authentication compares with the role.
pub fn common_name(certificate: &X509Ref) -> Option<String> {
    let entry = certificate
        .subject_name()
        .entries_by_nid(Nid::COMMONNAME)
        .next()?;
    entry.data().to_string().ok()
}

fn one_line(name: &X509NameRef) -> String {
    let part = |entry: &openssl::x509::X509NameEntryRef| {
        let key = entry.object().nid().short_name().unwrap_or("?").to_owned();
        let value = entry.data().to_string().unwrap_or_else(|_| "?".into());
        format!("{key}={value}")
    };
    let parts: Vec<String> = name.entries().map(part).collect();
    if parts.is_empty() {
        "no subject".into()
    } else {
        parts.join(", ")
    }
}

fn failed(error: ErrorStack) -> Error {
    Error::refused("openssl").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::{authority::*, *};

    #[test]
    fn a_host_is_covered_by_its_name_its_address_or_one_label_of_a_wildcard() {
        let names = ["db", "DB.ns.svc", "*.wild.svc", "127.0.0.1"];
        let (pem, _) = Authority::root("ca", (-1, 100)).server(&names, (-1, 90));
        let server = bundle(&[&pem]);
        assert_eq!(super::names(server.leaf()), names);
        for host in ["db", "db.ns.svc", "a.wild.svc", "127.0.0.1"] {
            assert!(covers(server.leaf(), host), "{host}");
        }
        for host in [
            "d",
            "db.ns",
            "wild.svc",
            ".wild.svc",
            "a.b.wild.svc",
            "127.0.0.2",
            "",
        ] {
            assert!(!covers(server.leaf(), host), "{host}");
        }
    }

    #[test]
    fn a_common_name_alone_covers_nothing_because_pgx_ignores_it() {
        let (pem, _) = Authority::root("ca", (-1, 100)).server(&[], (-1, 90));
        assert_eq!(
            common_name(bundle(&[&pem]).leaf()).as_deref(),
            Some("client")
        );
        assert!(!covers(bundle(&[&pem]).leaf(), "client"));
    }

    #[test]
    fn dates_and_subjects_are_read() {
        let ca = Authority::root("ca", (-1, 100));
        let (pem, _) = ca.server(&["db"], (-1, 90));
        let both = bundle(&[&ca.pem, &pem]);
        let (first, at) = both.first_to_expire();
        assert_eq!(
            (subject(first).as_str(), issuer(first).as_str()),
            ("CN=db", "CN=ca")
        );
        assert!(at.duration_since(in_days(90)).as_secs().abs() < 60);
    }

    #[test]
    fn a_key_in_the_same_file_is_ignored_and_not_written() {
        let (pem, key) = self_signed(&["db"], (-1, 90));
        let read = bundle(&[&key, &pem]);
        assert_eq!(read.certificates().len(), 1);
        assert!(!read.to_pem().unwrap().contains("PRIVATE"));
        assert!(Bundle::parse(key.as_bytes()).is_err());
        assert!(
            Bundle::parse(b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n").is_err()
        );
    }
}
