//! The client certificate that the target presents: reused, issued, or absent for a reason. Pure.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, ToSpan as _};
use openssl::pkey::PKey;
use platform::{
    kubernetes::source_tls::{Given, Signer, SourceTls},
    pki::{self, Bundle, Purpose},
    postgres::ClientCertificate,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use secrecy::ExposeSecret as _;

/// Days that a new certificate is valid beyond CERT_MIN_DAYS, so that later runs during a migration
/// reuse it.
const DAYS_BEYOND_MIN: i64 = 60;
/// How far the clocks of the source and of this program may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// What the target presents to the source.
pub(crate) enum PresentedCertificate {
    /// The certificate of an earlier run, which is still valid for long enough.
    Reused(ClientCertificate),
    /// A new certificate.
    Issued(ClientCertificate),
    /// No certificate, for this reason.
    Absent(String),
}

impl PresentedCertificate {
    /// One line for the log.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Reused(_) => "client certificate: reused from an earlier run, still valid".into(),
            Self::Issued(_) => "client certificate: issued by the source's CA".into(),
            Self::Absent(reason) => {
                format!("client certificate: none, the password is sufficient: {reason}")
            }
        }
    }

    /// The certificate; None when it is absent.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Reused(certificate) | Self::Issued(certificate) => Some(certificate),
            Self::Absent(_) => None,
        }
    }
}

/// Reuses `existing` if the source will accept it for another `days_min` days; otherwise issues a
/// new one; otherwise returns why there is none.
pub(crate) fn choose(
    tls: &SourceTls,
    role: &str,
    existing: Option<ClientCertificate>,
    now: Timestamp,
    days_min: u16,
) -> PresentedCertificate {
    let SourceTls::Given(given) = tls else {
        return PresentedCertificate::Absent("the source has no CA file (no spec.tls)".into());
    };
    let Some(client_ca) = &given.client_ca else {
        return PresentedCertificate::Absent(
            "the source has no CA file (spec.tls names no caFile), so it trusts no client \
             certificate"
                .into(),
        );
    };
    let lasts_until = now + (24 * i64::from(days_min)).hours();
    if let Some(certificate) =
        existing.filter(|one| accepted(one, role, client_ca, lasts_until).is_ok())
    {
        return PresentedCertificate::Reused(certificate);
    }
    let Some(signer) = &given.signer else {
        return PresentedCertificate::Absent(format!(
            "secret {} does not hold the CA's private key",
            given.ca_at.secret
        ));
    };
    match issue(given, signer, role, lasts_until) {
        Ok(certificate) => match accepted(&certificate, role, client_ca, now) {
            Ok(()) => PresentedCertificate::Issued(certificate),
            Err(reason) => PresentedCertificate::Absent(format!(
                "the source would refuse what its CA signs: {reason}"
            )),
        },
        Err(reason) => {
            PresentedCertificate::Absent(format!("the CA's private key cannot be used: {reason}"))
        }
    }
}

/// Checks that a server with `client_ca` as ssl_ca_file accepts the certificate for `role` at `at`.
///
/// # Errors
/// The reason why it does not.
fn accepted(
    certificate: &ClientCertificate,
    role: &str,
    client_ca: &Bundle,
    at: Timestamp,
) -> Result<(), String> {
    let chain = Bundle::parse(certificate.chain.as_bytes()).map_err(|e| e.to_string())?;
    let key = PKey::private_key_from_pem(certificate.key.expose_secret().as_bytes())
        .map_err(|_| "its key cannot be read".to_owned())?;
    if pki::common_name(chain.leaf()).as_deref() != Some(role) {
        return Err(format!("it is not for the role {role}"));
    }
    if !chain
        .leaf()
        .public_key()
        .is_ok_and(|public| public.public_eq(&key))
    {
        return Err("its key belongs to another certificate".into());
    }
    pki::verify(&chain, client_ca, Purpose::Client, at)
        .map(drop)
        .map_err(|flaw| flaw.to_string())
}

/// Issues a certificate for TLS clients with the role as its common name, which PostgreSQL's `cert`
/// authentication compares.
///
/// # Errors
/// The reason why the CA's key cannot sign it.
fn issue(
    given: &Given,
    signer: &Signer,
    role: &str,
    lasts_until: Timestamp,
) -> Result<ClientCertificate, String> {
    let message = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(Vec::new()).map_err(message)?;
    params.distinguished_name.push(DnType::CommonName, role);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let end = (lasts_until + (24 * DAYS_BEYOND_MIN).hours()).min(pki::expires(signer.chain.leaf()));
    params.not_before = (SystemTime::from(given.read_at) - CLOCK_SKEW).into();
    params.not_after = SystemTime::from(end).into();
    // rcgen reads PKCS#8 only, and cert-manager's default is PKCS#1.
    let key = signer
        .key
        .private_key_to_pem_pkcs8()
        .map_err(|e| e.to_string())?;
    let key = KeyPair::from_pem(&String::from_utf8_lossy(&key)).map_err(message)?;
    let ca = signer.chain.leaf().to_der().map_err(|e| e.to_string())?;
    let issuer = Issuer::from_ca_cert_der(&ca.into(), key).map_err(message)?;
    let own = KeyPair::generate().map_err(message)?;
    let certificate = params.signed_by(&own, &issuer).map_err(message)?;
    // The server has the root certificate itself.
    let intermediates = signer
        .chain
        .certificates()
        .iter()
        .filter(|one| !pki::is_self_signed(one));
    let intermediates: Vec<u8> = intermediates
        .flat_map(|one| one.to_pem().unwrap_or_default())
        .collect();
    Ok(ClientCertificate {
        chain: certificate.pem() + &String::from_utf8_lossy(&intermediates),
        key: own.serialize_pem().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_certificates::{Authority, HOST, bundle, given};

    fn source(change: impl FnOnce(&mut Given)) -> SourceTls {
        let root = Authority::root("root", 400);
        let intermediate = root.intermediate("intermediate", 300);
        let mut given = given(
            &(intermediate.server(&[HOST], 90) + &intermediate.pem),
            &root,
            &intermediate,
        );
        change(&mut given);
        SourceTls::Given(Box::new(given))
    }

    fn chosen(
        tls: &SourceTls,
        existing: Option<ClientCertificate>,
        days_min: u16,
    ) -> PresentedCertificate {
        choose(tls, "standby", existing, Timestamp::now(), days_min)
    }

    fn issued(tls: &SourceTls) -> ClientCertificate {
        match chosen(tls, None, 30) {
            PresentedCertificate::Issued(certificate) => certificate,
            other => panic!("{}", other.describe()),
        }
    }

    fn reason(presented: PresentedCertificate) -> String {
        match presented {
            PresentedCertificate::Absent(reason) => reason,
            other => panic!("{}", other.describe()),
        }
    }

    #[test]
    fn an_issued_certificate_names_the_role_has_its_chain_and_is_valid_for_long_enough() {
        let certificate = issued(&source(|_| {}));
        let chain = bundle(&certificate.chain);
        let subjects: Vec<String> = chain
            .certificates()
            .iter()
            .map(|one| pki::subject(one))
            .collect();
        assert_eq!(subjects, ["CN=standby", "CN=intermediate"]);
        let days = pki::expires(chain.leaf())
            .duration_since(Timestamp::now())
            .as_hours()
            / 24;
        assert!((89..=90).contains(&days), "{days}");
    }

    #[test]
    fn a_certificate_expires_no_later_than_its_ca() {
        let root = Authority::root("root", 40);
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &root, &root)));
        assert_eq!(
            pki::expires(bundle(&issued(&tls).chain).leaf()),
            pki::expires(bundle(&root.pem).leaf())
        );
    }

    #[test]
    fn a_valid_certificate_is_reused_and_any_other_is_replaced() {
        let tls = source(|_| {});
        let certificate = issued(&tls);
        let reused = chosen(&tls, Some(certificate.clone()), 30);
        assert!(matches!(&reused, PresentedCertificate::Reused(_)));
        assert_eq!(reused.certificate().unwrap().chain, certificate.chain);
        assert!(
            matches!(
                chosen(&tls, Some(certificate.clone()), 91),
                PresentedCertificate::Issued(_)
            ),
            "too short"
        );
        assert!(
            matches!(
                choose(
                    &tls,
                    "streaming_replica",
                    Some(certificate.clone()),
                    Timestamp::now(),
                    30
                ),
                PresentedCertificate::Issued(_)
            ),
            "another role"
        );
        assert!(
            matches!(
                chosen(&source(|_| {}), Some(certificate.clone()), 30),
                PresentedCertificate::Issued(_)
            ),
            "another CA"
        );
        let mixed = ClientCertificate {
            key: issued(&tls).key,
            ..certificate
        };
        assert!(
            matches!(
                chosen(&tls, Some(mixed), 30),
                PresentedCertificate::Issued(_)
            ),
            "another key"
        );
        let garbage = ClientCertificate {
            chain: "no".into(),
            key: "no".into(),
        };
        assert!(
            matches!(
                chosen(&tls, Some(garbage), 30),
                PresentedCertificate::Issued(_)
            ),
            "garbage"
        );
    }

    #[test]
    fn rsa_keys_in_pkcs1_encoding_can_sign() {
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let pkcs1 = rsa.private_key_to_pem().unwrap();
        let key = KeyPair::from_pem(
            &String::from_utf8(
                PKey::from_rsa(rsa)
                    .unwrap()
                    .private_key_to_pem_pkcs8()
                    .unwrap(),
            )
            .unwrap(),
        )
        .unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = bundle(&params.self_signed(&key).unwrap().pem());
        let tls = source(|given| {
            given.client_ca = Some(ca.clone());
            given.signer = Some(Signer {
                chain: ca,
                key: PKey::private_key_from_pem(&pkcs1).unwrap(),
            });
        });
        issued(&tls);
    }

    #[test]
    fn without_a_usable_ca_key_the_certificate_is_absent_and_the_reason_is_given() {
        assert_eq!(
            reason(chosen(&SourceTls::SelfSigned, None, 30)),
            "the source has no CA file (no spec.tls)"
        );
        assert!(
            reason(chosen(&source(|given| given.client_ca = None), None, 30))
                .contains("names no caFile")
        );
        assert_eq!(
            reason(chosen(&source(|given| given.signer = None), None, 30)),
            "secret ca does not hold the CA's private key"
        );
        let unrelated = Authority::root("unrelated", 400);
        let untrusted = source(|given| given.signer = Some(unrelated.signer()));
        assert!(
            reason(chosen(&untrusted, None, 30)).starts_with(
                "the source would refuse what its CA signs: the certificate CN=standby"
            )
        );
        let ed448 =
            source(|given| given.signer.as_mut().unwrap().key = PKey::generate_ed448().unwrap());
        assert!(
            reason(chosen(&ed448, None, 30)).starts_with("the CA's private key cannot be used")
        );
    }
}
