//! Checks whether the source's certificates meet the settings. Pure.

use job::{
    config::SslMode,
    error::{Context as _, Error, Result},
};
use platform::{
    kubernetes::source_tls::{Given, SourceTls},
    pki,
};

/// What the settings require.
pub(crate) struct Requirements<'a> {
    /// The host that the Cluster manifest connects to.
    pub(crate) host: &'a str,
    /// The weakest acceptable verification.
    pub(crate) sslmode: SslMode,
    /// Days that the certificates must remain valid.
    pub(crate) days_min: u16,
}

/// Certificates of the source that meet the requirements.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    /// The strongest mode that works for this host, as in prepare-zalando's manifest: at least the
    /// required one.
    pub(crate) sslmode: SslMode,
    /// The CA file in PEM; None when there is no CA to verify with.
    pub(crate) ca_pem: Option<String>,
    /// What was found, in one sentence.
    pub(crate) summary: String,
    /// What the user should know; None when there is nothing.
    pub(crate) warning: Option<String>,
}

impl ServerCertificate {
    /// The CA file, or the reason why there is none.
    pub(crate) fn ca(&self) -> std::result::Result<&str, &str> {
        self.ca_pem.as_deref().ok_or(&self.summary)
    }
}

/// Checks the certificates. `require` verifies nothing, so it leads to a warning at most.
///
/// # Errors
/// Config when this host or source cannot provide the verification that SOURCE_SSLMODE requires;
/// Refused when a certificate fails verification, or expires too soon.
pub(crate) fn check(tls: &SourceTls, required: &Requirements<'_>) -> Result<ServerCertificate> {
    let (sslmode, summary) = tls.best_sslmode(required.host);
    let stronger = || format!("SOURCE_SSLMODE could be {}: {summary}", sslmode.as_str());
    let warning = match (tls, required.sslmode) {
        (SourceTls::SelfSigned, SslMode::Require) => Some(
            "sslmode require encrypts, but does not verify the source's identity: any host in its \
             network could impersonate it"
                .into(),
        ),
        (SourceTls::SelfSigned, mode) => return Err(unverifiable(&summary, mode)),
        (SourceTls::Given(given), SslMode::Require) => match remains_valid(given, required) {
            Err(error) => Some(error.to_string()),
            Ok(()) => Some(stronger()),
        },
        (SourceTls::Given(given), mode) => {
            remains_valid(given, required)?;
            if mode == SslMode::VerifyFull && !given.covers(required.host) {
                return Err(uncovered(given, required.host));
            }
            (mode != sslmode).then(stronger)
        }
    };
    Ok(ServerCertificate {
        sslmode,
        ca_pem: tls.ca_pem()?,
        summary,
        warning,
    })
}

/// Checks that every certificate from the server's to the root remains valid for long enough.
fn remains_valid(given: &Given, required: &Requirements<'_>) -> Result<()> {
    let path = given.verified()?;
    let (first, at) = path.first_to_expire();
    let days = at.duration_since(given.read_at).as_hours() / 24;
    if days >= i64::from(required.days_min) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "the certificate {} expires in {days} days, at {at}, and CERT_MIN_DAYS is {}",
        pki::subject(first),
        required.days_min
    ))
    .hint("renew it, or lower CERT_MIN_DAYS if the migration ends sooner"))
    .context(format!(
        "verifying {} with {}",
        given.server_at, given.ca_at
    ))
}

fn unverifiable(reason: &str, mode: SslMode) -> Error {
    Error::config(format!("SOURCE_SSLMODE is {}, but {reason}", mode.as_str())).hint(
        "set SOURCE_SSLMODE=require, or give the source a certificate by spec.tls first \
            (that restarts its pods)",
    )
}

fn uncovered(given: &Given, host: &str) -> Error {
    let names = given.names();
    let error = Error::config(format!(
        "SOURCE_SSLMODE is verify-full, but the server's certificate in {} does not cover {host}",
        given.server_at
    ));
    if names.is_empty() {
        error.hint("set SOURCE_SSLMODE=verify-ca: the certificate covers no name at all")
    } else {
        error.hint(format!(
            "set SOURCE_HOST to one of the names that it covers ({}), or SOURCE_SSLMODE=verify-ca",
            names.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use job::error::ErrorKind;

    use super::*;
    use crate::test_certificates::{Authority, HOST, given};

    fn checked(tls: &SourceTls, sslmode: SslMode, days_min: u16) -> Result<ServerCertificate> {
        check(
            tls,
            &Requirements {
                host: HOST,
                sslmode,
                days_min,
            },
        )
    }

    fn source(names: &[&str], days: u64) -> SourceTls {
        let root = Authority::root("root", 400);
        SourceTls::Given(Box::new(given(&root.server(names, days), &root, &root)))
    }

    #[test]
    fn a_valid_certificate_for_the_host_passes_without_a_warning() {
        let certificate = checked(&source(&[HOST], 90), SslMode::VerifyFull, 30).unwrap();
        assert_eq!(
            (certificate.sslmode, certificate.warning.as_deref()),
            (SslMode::VerifyFull, None)
        );
        assert!(
            certificate
                .ca()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
    }

    #[test]
    fn a_host_that_is_not_covered_is_a_wrong_setting_and_the_hint_lists_the_names() {
        let error = checked(&source(&["a.svc", "b.svc"], 90), SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error
                .next_step()
                .unwrap()
                .contains("(a.svc, b.svc), or SOURCE_SSLMODE=verify-ca")
        );
        let certificate = checked(&source(&["a.svc"], 90), SslMode::VerifyCa, 30).unwrap();
        assert_eq!(
            (certificate.sslmode, certificate.warning),
            (SslMode::VerifyCa, None)
        );
        let nameless = checked(&source(&[], 90), SslMode::VerifyFull, 30).unwrap_err();
        assert!(
            nameless
                .next_step()
                .unwrap()
                .starts_with("set SOURCE_SSLMODE=verify-ca")
        );
    }

    #[test]
    fn a_certificate_must_be_valid_for_the_full_number_of_days() {
        assert!(checked(&source(&[HOST], 30), SslMode::VerifyFull, 30).is_ok());
        let error = checked(&source(&[HOST], 29), SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains("CN=server expires in 29 days"),
            "{error}"
        );
    }

    #[test]
    fn the_ca_must_be_valid_for_long_enough_too() {
        let root = Authority::root("root", 5);
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &root, &root)));
        let error = checked(&tls, SslMode::VerifyCa, 30).unwrap_err();
        assert!(
            error.to_string().contains("CN=root expires in 5 days"),
            "{error}"
        );
    }

    #[test]
    fn a_certificate_of_another_ca_is_refused_and_its_issuer_is_named() {
        let (root, other) = (Authority::root("root", 400), Authority::root("other", 400));
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &other, &other)));
        let error = checked(&tls, SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            "verifying key tls.crt of secret server with key ca.crt of secret ca: the certificate \
             CN=server was not signed by this CA, but by CN=root"
        );
        let certificate = checked(&tls, SslMode::Require, 30).unwrap();
        assert!(certificate.ca().is_err() && certificate.warning.is_some());
    }

    #[test]
    fn require_passes_with_a_warning_that_names_the_stronger_mode() {
        let certificate = checked(&source(&[HOST], 90), SslMode::Require, 30).unwrap();
        assert_eq!(
            certificate.sslmode,
            SslMode::VerifyFull,
            "the manifest has the strongest"
        );
        assert!(
            certificate
                .warning
                .unwrap()
                .starts_with("SOURCE_SSLMODE could be verify-full")
        );
        let certificate = checked(&SourceTls::SelfSigned, SslMode::Require, 30).unwrap();
        assert!(certificate.ca().is_err() && certificate.warning.is_some());
    }

    #[test]
    fn the_certificate_that_spilo_generates_cannot_be_verified() {
        let error = checked(&SourceTls::SelfSigned, SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(
            "SOURCE_SSLMODE is verify-full, but the postgresql resource has no spec.tls"
        ));
    }
}
