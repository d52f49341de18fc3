//! Verification of chains: whether a certificate chains to a trusted root, and the reason when it
//! does not.

use std::fmt;

use jiff::Timestamp;
use openssl::{
    error::ErrorStack,
    stack::Stack,
    x509::{
        X509, X509PurposeId, X509Ref, X509StoreContext, X509VerifyResult,
        store::{X509Store, X509StoreBuilder},
        verify::X509VerifyParam,
    },
};

use super::{Bundle, begins, expires, is_self_signed, issuer, signed_by, subject};

/// OpenSSL's security level in Debian and therefore in CNPG's images: keys of at least 2048 bits,
/// no SHA-1.
const SECURITY_LEVEL: i32 = 2;

/// The use of a certificate for which its chain is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Authentication of a server (serverAuth).
    Server,
    /// Authentication of a client (clientAuth).
    Client,
}

/// The reason why a chain is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A certificate of the chain has expired.
    Expired {
        /// Its subject.
        subject: String,
        /// When it expired.
        at: Timestamp,
    },
    /// A certificate of the chain is not valid yet.
    NotYetValid {
        /// Its subject.
        subject: String,
        /// When its validity begins.
        at: Timestamp,
    },
    /// The chain ends at this certificate of the CA file, whose issuer is missing; libpq needs the
    /// root.
    NoRoot {
        /// The subject whose issuer is missing.
        subject: String,
    },
    /// No certificate of the CA file has signed it, or an intermediate CA that the server sends.
    Foreign {
        /// The subject whose issuer is unknown.
        subject: String,
        /// The issuer that it names.
        issuer: String,
    },
    /// Any other reason, as OpenSSL describes it.
    Other {
        /// Subject of the certificate.
        subject: String,
        /// OpenSSL's text.
        reason: String,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { subject, at } => write!(f, "the certificate {subject} expired at {at}"),
            Self::NotYetValid { subject, at } => {
                write!(f, "the certificate {subject} is valid only from {at}")
            }
            Self::NoRoot { subject } => write!(
                f,
                "the root that signed {subject} is missing, and libpq accepts no chain without it"
            ),
            Self::Foreign { subject, issuer } => write!(
                f,
                "the certificate {subject} was not signed by this CA, but by {issuer}"
            ),
            Self::Other { subject, reason } => write!(f, "the certificate {subject}: {reason}"),
        }
    }
}

impl std::error::Error for Flaw {}

/// Verifies that the first certificate of `chain` is valid at `now` for `purpose`, with the rest of
/// `chain` as intermediate CAs and `anchors` as the CA file. Returns the path from it to the root.
///
/// # Errors
/// The first flaw that OpenSSL reports.
pub fn verify(
    chain: &Bundle,
    anchors: &Bundle,
    purpose: Purpose,
    now: Timestamp,
) -> std::result::Result<Bundle, Flaw> {
    let verification = || -> std::result::Result<_, ErrorStack> {
        let store = store(anchors, purpose, now)?;
        let mut untrusted = Stack::new()?;
        for certificate in &chain.certificates[1..] {
            untrusted.push(certificate.clone())?;
        }
        X509StoreContext::new()?.init(&store, chain.leaf(), &untrusted, |context| {
            context.verify_cert()?;
            let path = context
                .chain()
                .map(|path| path.iter().map(ToOwned::to_owned).collect::<Vec<_>>());
            Ok((
                context.error(),
                context.current_cert().map(ToOwned::to_owned),
                path.unwrap_or_default(),
            ))
        })
    };
    let about_leaf = |reason: String| Flaw::Other {
        subject: subject(chain.leaf()),
        reason,
    };
    match verification().map_err(|error| about_leaf(error.to_string()))? {
        (X509VerifyResult::OK, _, certificates) if !certificates.is_empty() => {
            Ok(Bundle { certificates })
        }
        (reason, Some(certificate), _) => Err(flaw(reason, &certificate)),
        (reason, None, _) => Err(about_leaf(reason.error_string().to_owned())),
    }
}

/// Translates OpenSSL's codes (x509_vfy.h).
fn flaw(reason: X509VerifyResult, certificate: &X509Ref) -> Flaw {
    const ISSUER_OF_A_CA_MISSING: i32 = 2;
    const NOT_YET_VALID: i32 = 9;
    const EXPIRED: i32 = 10;
    const SELF_SIGNED_LEAF: i32 = 18;
    const SELF_SIGNED_IN_CHAIN: i32 = 19;
    const ISSUER_MISSING: i32 = 20;
    let (subject, issuer) = (subject(certificate), issuer(certificate));
    match reason.as_raw() {
        EXPIRED => Flaw::Expired {
            subject,
            at: expires(certificate),
        },
        NOT_YET_VALID => Flaw::NotYetValid {
            subject,
            at: begins(certificate),
        },
        ISSUER_OF_A_CA_MISSING => Flaw::NoRoot { subject },
        SELF_SIGNED_LEAF | SELF_SIGNED_IN_CHAIN | ISSUER_MISSING => {
            Flaw::Foreign { subject, issuer }
        }
        _ => Flaw::Other {
            subject,
            reason: reason.error_string().to_owned(),
        },
    }
}

/// The chain of issuers of `certificate` that are in `pool`, its direct issuer first; the last one
/// is the root if `pool` contains it.
pub fn issuers(certificate: &X509Ref, pool: &[X509]) -> Vec<X509> {
    let mut path: Vec<X509> = Vec::new();
    // A path is never longer than the pool.
    for _ in pool {
        let last = path.last().map_or(certificate, AsRef::as_ref);
        let next = pool
            .iter()
            .find(|issuer| !is_self_signed(last) && signed_by(last, issuer));
        match next.cloned() {
            Some(issuer) => path.push(issuer),
            None => break,
        }
    }
    path
}

fn store(
    anchors: &Bundle,
    purpose: Purpose,
    now: Timestamp,
) -> std::result::Result<X509Store, ErrorStack> {
    let mut builder = X509StoreBuilder::new()?;
    let mut rules = X509VerifyParam::new()?;
    rules.set_time(now.as_second());
    rules.set_auth_level(SECURITY_LEVEL);
    rules.set_purpose(match purpose {
        Purpose::Server => X509PurposeId::SSL_SERVER,
        Purpose::Client => X509PurposeId::SSL_CLIENT,
    })?;
    builder.set_param(&rules)?;
    for certificate in &anchors.certificates {
        builder.add_cert(certificate.clone())?;
    }
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;

    use super::{
        super::authority::{Authority, bundle, in_days, self_signed},
        *,
    };

    const LONG: (i64, i64) = (-10, 1000);

    fn flaw(chain: &[&str], anchors: &[&str]) -> Flaw {
        verify(
            &bundle(chain),
            &bundle(anchors),
            Purpose::Server,
            in_days(0),
        )
        .unwrap_err()
    }

    /// psql 17.10 behaves in the same way with a server of the same version.
    #[test]
    fn the_root_must_be_in_the_ca_file_and_the_intermediate_in_either() {
        let root = Authority::root("root", LONG);
        let between = root.below("between", LONG);
        let (leaf, _) = between.server(&["db"], LONG);
        let ok = |chain: &[&str], anchors: &[&str]| {
            verify(
                &bundle(chain),
                &bundle(anchors),
                Purpose::Server,
                in_days(0),
            )
            .is_ok()
        };
        assert!(ok(&[&leaf, &between.pem], &[&root.pem]));
        assert!(ok(&[&leaf], &[&between.pem, &root.pem]));
        let no_root = Flaw::NoRoot {
            subject: "CN=between".into(),
        };
        assert_eq!(flaw(&[&leaf, &between.pem], &[&between.pem]), no_root);
        assert_eq!(
            flaw(&[&leaf, &between.pem, &root.pem], &[&between.pem]),
            no_root
        );
        assert!(matches!(flaw(&[&leaf], &[&root.pem]), Flaw::Foreign { .. }));
        let path = verify(
            &bundle(&[&leaf, &between.pem]),
            &bundle(&[&root.pem]),
            Purpose::Server,
            in_days(0),
        )
        .unwrap();
        let subjects: Vec<String> = path.certificates().iter().map(|one| subject(one)).collect();
        assert_eq!(subjects, ["CN=db", "CN=between", "CN=root"]);
    }

    #[test]
    fn a_foreign_ca_and_a_foreign_self_signed_server_are_refused() {
        let (root, other) = (
            Authority::root("root", LONG),
            Authority::root("other", LONG),
        );
        let (leaf, _) = root.server(&["db"], LONG);
        let foreign = Flaw::Foreign {
            subject: "CN=db".into(),
            issuer: "CN=root".into(),
        };
        assert_eq!(flaw(&[&leaf], &[&other.pem]), foreign);
        let (own, _) = self_signed(&["db"], LONG);
        assert!(matches!(flaw(&[&own], &[&root.pem]), Flaw::Foreign { .. }));
        assert!(
            verify(
                &bundle(&[&own]),
                &bundle(&[&own]),
                Purpose::Server,
                in_days(0)
            )
            .is_ok()
        );
        // The same name is not the same CA.
        let namesake = Authority::root("root", LONG);
        assert!(
            verify(
                &bundle(&[&leaf]),
                &bundle(&[&namesake.pem]),
                Purpose::Server,
                in_days(0)
            )
            .is_err()
        );
    }

    #[test]
    fn dates_count_on_every_certificate_of_the_chain() {
        let (root, ended) = (
            Authority::root("root", LONG),
            Authority::root("ended", (-10, -1)),
        );
        let (leaf, _) = root.server(&["db"], (-10, -1));
        let expired = |leaf: &str, ca: &str, name: &str| {
            let flaw = flaw(&[leaf], &[ca]);
            matches!(flaw, Flaw::Expired { subject, .. } if subject == name)
        };
        assert!(expired(&leaf, &root.pem, "CN=db"));
        let (leaf, _) = ended.server(&["db"], LONG);
        assert!(expired(&leaf, &ended.pem, "CN=ended"));
        let (leaf, _) = root.server(&["db"], (1, 10));
        assert!(matches!(
            flaw(&[&leaf], &[&root.pem]),
            Flaw::NotYetValid { .. }
        ));
        assert!(
            verify(
                &bundle(&[&leaf]),
                &bundle(&[&root.pem]),
                Purpose::Server,
                in_days(2)
            )
            .is_ok()
        );
    }

    #[test]
    fn a_server_certificate_is_no_client_certificate() {
        let root = Authority::root("root", LONG);
        let (server, _) = root.server(&["db"], LONG);
        let (client, _) = root.leaf(ExtendedKeyUsagePurpose::ClientAuth, &["standby"], LONG);
        let verdict = |pem: &str, purpose| {
            verify(&bundle(&[pem]), &bundle(&[&root.pem]), purpose, in_days(0)).is_ok()
        };
        assert!(verdict(&server, Purpose::Server) && !verdict(&server, Purpose::Client));
        assert!(verdict(&client, Purpose::Client) && !verdict(&client, Purpose::Server));
    }

    #[test]
    fn issuers_are_found_in_any_order_and_end_at_the_root() {
        let root = Authority::root("root", LONG);
        let between = root.below("between", LONG);
        let (leaf, _) = between.server(&["db"], LONG);
        let pool = bundle(&[&root.pem, &leaf, &between.pem]);
        let found = issuers(bundle(&[&leaf]).leaf(), pool.certificates());
        assert_eq!(
            found.iter().map(|one| subject(one)).collect::<Vec<_>>(),
            ["CN=between", "CN=root"]
        );
        assert!(issuers(bundle(&[&root.pem]).leaf(), pool.certificates()).is_empty());
    }
}
