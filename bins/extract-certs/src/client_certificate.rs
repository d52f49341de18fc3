//! The certificate with which the target shows who it is: kept, minted, or none with a reason.
//! Pure.

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

/// Longer than CERT_MIN_DAYS by this, so that runs during a migration keep the one that there is.
const DAYS_BEYOND_MIN: i64 = 60;
/// Clocks differ.
const SKEW: Duration = Duration::from_secs(3600);

/// What the target will show the source.
pub(crate) enum Shown {
    /// The certificate of an earlier run, which still lasts.
    Kept(ClientCertificate),
    /// A new certificate.
    Minted(ClientCertificate),
    /// No certificate, and why.
    Nothing(String),
}

impl Shown {
    /// For the log.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Kept(_) => "client certificate: that of an earlier run still lasts".into(),
            Self::Minted(_) => "client certificate: minted with the source's CA".into(),
            Self::Nothing(reason) => {
                format!("client certificate: none, the password suffices: {reason}")
            }
        }
    }

    /// The certificate, when there is one.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Kept(certificate) | Self::Minted(certificate) => Some(certificate),
            Self::Nothing(_) => None,
        }
    }
}

/// Keeps `existing` when it would be accepted for `days_min` days more; else mints one; else tells
/// why there is none.
pub(crate) fn choose(
    tls: &SourceTls,
    role: &str,
    existing: Option<ClientCertificate>,
    now: Timestamp,
    days_min: u16,
) -> Shown {
    let SourceTls::Given(given) = tls else {
        return Shown::Nothing("the source has no CA file (no spec.tls)".into());
    };
    let Some(client_ca) = &given.client_ca else {
        return Shown::Nothing(
            "the source has no CA file (spec.tls names no caFile), so it trusts \
            no client certificate"
                .into(),
        );
    };
    let lasts_until = now + (24 * i64::from(days_min)).hours();
    if let Some(certificate) =
        existing.filter(|one| accepted(one, role, client_ca, lasts_until).is_ok())
    {
        return Shown::Kept(certificate);
    }
    let Some(signer) = &given.signer else {
        return Shown::Nothing(format!(
            "secret {} does not hold the CA's private key",
            given.ca_at.secret
        ));
    };
    match minted(given, signer, role, lasts_until) {
        Ok(certificate) => match accepted(&certificate, role, client_ca, now) {
            Ok(()) => Shown::Minted(certificate),
            Err(reason) => Shown::Nothing(format!(
                "the source would refuse what its CA signs: {reason}"
            )),
        },
        Err(reason) => Shown::Nothing(format!("the CA's private key cannot be used: {reason}")),
    }
}

/// Whether a server with `client_ca` as ssl_ca_file takes the certificate for `role` at `at`.
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
        return Err("its key is another certificate's".into());
    }
    pki::verify(&chain, client_ca, Purpose::Client, at)
        .map(drop)
        .map_err(|flaw| flaw.to_string())
}

/// A certificate for clients only, with the role as common name: what PostgreSQL's `cert`
/// authentication compares.
fn minted(
    given: &Given,
    signer: &Signer,
    role: &str,
    lasts_until: Timestamp,
) -> Result<ClientCertificate, String> {
    let told = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(Vec::new()).map_err(told)?;
    params.distinguished_name.push(DnType::CommonName, role);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let end = (lasts_until + (24 * DAYS_BEYOND_MIN).hours()).min(pki::expires(signer.chain.leaf()));
    params.not_before = (SystemTime::from(given.read_at) - SKEW).into();
    params.not_after = SystemTime::from(end).into();
    // rcgen reads PKCS#8 only; cert-manager writes PKCS#1 unless told otherwise.
    let key = signer
        .key
        .private_key_to_pem_pkcs8()
        .map_err(|e| e.to_string())?;
    let key = KeyPair::from_pem(&String::from_utf8_lossy(&key)).map_err(told)?;
    let ca = signer.chain.leaf().to_der().map_err(|e| e.to_string())?;
    let issuer = Issuer::from_ca_cert_der(&ca.into(), key).map_err(told)?;
    let own = KeyPair::generate().map_err(told)?;
    let certificate = params.signed_by(&own, &issuer).map_err(told)?;
    // The server has the root itself.
    let between = signer
        .chain
        .certificates()
        .iter()
        .filter(|one| !pki::is_self_signed(one));
    let between: Vec<u8> = between
        .flat_map(|one| one.to_pem().unwrap_or_default())
        .collect();
    Ok(ClientCertificate {
        chain: certificate.pem() + &String::from_utf8_lossy(&between),
        key: own.serialize_pem().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, HOST, bundle, given};

    fn source(change: impl FnOnce(&mut Given)) -> SourceTls {
        let root = Authority::root("root", 400);
        let between = root.below("between", 300);
        let mut given = given(
            &(between.server(&[HOST], 90) + &between.pem),
            &root,
            &between,
        );
        change(&mut given);
        SourceTls::Given(Box::new(given))
    }

    fn chosen(tls: &SourceTls, existing: Option<ClientCertificate>, days_min: u16) -> Shown {
        choose(tls, "standby", existing, Timestamp::now(), days_min)
    }

    fn minted(tls: &SourceTls) -> ClientCertificate {
        match chosen(tls, None, 30) {
            Shown::Minted(certificate) => certificate,
            other => panic!("{}", other.words()),
        }
    }

    fn reason(shown: Shown) -> String {
        match shown {
            Shown::Nothing(reason) => reason,
            other => panic!("{}", other.words()),
        }
    }

    #[test]
    fn a_minted_certificate_is_the_roles_has_its_chain_and_lasts() {
        let certificate = minted(&source(|_| {}));
        let chain = bundle(&certificate.chain);
        let subjects: Vec<String> = chain
            .certificates()
            .iter()
            .map(|one| pki::subject(one))
            .collect();
        assert_eq!(subjects, ["CN=standby", "CN=between"]);
        let days = pki::expires(chain.leaf())
            .duration_since(Timestamp::now())
            .as_hours()
            / 24;
        assert!((89..=90).contains(&days), "{days}");
    }

    #[test]
    fn it_never_outlives_the_ca_that_signed_it() {
        let root = Authority::root("root", 40);
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &root, &root)));
        assert_eq!(
            pki::expires(bundle(&minted(&tls).chain).leaf()),
            pki::expires(bundle(&root.pem).leaf())
        );
    }

    #[test]
    fn one_that_lasts_is_kept_and_any_other_is_minted_anew() {
        let tls = source(|_| {});
        let certificate = minted(&tls);
        assert!(
            matches!(chosen(&tls, Some(certificate.clone()), 30), Shown::Kept(kept) if kept.chain == certificate.chain)
        );
        assert!(
            matches!(
                chosen(&tls, Some(certificate.clone()), 91),
                Shown::Minted(_)
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
                Shown::Minted(_)
            ),
            "another role"
        );
        assert!(
            matches!(
                chosen(&source(|_| {}), Some(certificate.clone()), 30),
                Shown::Minted(_)
            ),
            "another CA"
        );
        let mixed = ClientCertificate {
            key: minted(&tls).key,
            ..certificate
        };
        assert!(
            matches!(chosen(&tls, Some(mixed), 30), Shown::Minted(_)),
            "another key"
        );
        let garbage = ClientCertificate {
            chain: "no".into(),
            key: "no".into(),
        };
        assert!(
            matches!(chosen(&tls, Some(garbage), 30), Shown::Minted(_)),
            "garbage"
        );
    }

    #[test]
    fn keys_of_rsa_and_of_old_encodings_sign() {
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
        minted(&tls);
    }

    #[test]
    fn without_a_key_or_without_trust_there_is_none_and_it_says_why() {
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
        let stranger = Authority::root("stranger", 400);
        let untrusted = source(|given| given.signer = Some(stranger.signer()));
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
