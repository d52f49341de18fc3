//! Whether the source's certificates will do for the migration. Pure.

use job::{
    config::SslMode,
    error::{Context as _, Error, Result},
};
use platform::{
    kubernetes::source_tls::{Given, SourceTls},
    pki,
};

/// What the settings ask for.
pub(crate) struct Wanted<'a> {
    /// The host that the Cluster manifest connects to.
    pub(crate) host: &'a str,
    /// How much of the certificate is checked.
    pub(crate) sslmode: SslMode,
    /// Days that the certificates must last.
    pub(crate) days_min: u16,
}

/// Certificates that will do.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The strongest mode that works for this host, which the Cluster manifest of prepare-zalando
    /// has: at least what was wanted.
    pub(crate) sslmode: SslMode,
    /// The CA file; None when there is nothing to check with.
    pub(crate) ca_pem: Option<String>,
    /// What was found, in a sentence.
    pub(crate) summary: String,
    /// What the operator should know.
    pub(crate) warning: Option<String>,
}

impl Verdict {
    /// The CA file, or why there is none.
    pub(crate) fn ca(&self) -> std::result::Result<&str, &str> {
        self.ca_pem.as_deref().ok_or(&self.summary)
    }
}

/// Judges as the settings want it: `require` checks nothing, so nothing stands against it but a
/// warning.
///
/// # Errors
/// Config when SOURCE_SSLMODE asks for what this host or source cannot give, Refused when the
/// certificates themselves will not do.
pub(crate) fn judge(tls: &SourceTls, wanted: &Wanted<'_>) -> Result<Verdict> {
    let (sslmode, summary) = tls.best_sslmode(wanted.host);
    let stronger = || format!("SOURCE_SSLMODE could be {}: {summary}", sslmode.as_str());
    let warning = match (tls, wanted.sslmode) {
        (SourceTls::SelfSigned, SslMode::Require) => Some(
            "sslmode require encrypts, but nothing proves who the source is: anybody in its \
                network could pose as it"
                .into(),
        ),
        (SourceTls::SelfSigned, mode) => return Err(unverifiable(&summary, mode)),
        (SourceTls::Given(given), SslMode::Require) => match lasting(given, wanted) {
            Err(error) => Some(error.to_string()),
            Ok(()) => Some(stronger()),
        },
        (SourceTls::Given(given), mode) => {
            lasting(given, wanted)?;
            if mode == SslMode::VerifyFull && !given.covers(wanted.host) {
                return Err(uncovered(given, wanted.host));
            }
            (mode != sslmode).then(stronger)
        }
    };
    Ok(Verdict {
        sslmode,
        ca_pem: tls.ca_pem()?,
        summary,
        warning,
    })
}

/// Every certificate from the server's to the root lasts as long as wanted.
fn lasting(given: &Given, wanted: &Wanted<'_>) -> Result<()> {
    let path = given.verified()?;
    let (first, at) = path.first_to_expire();
    let days = at.duration_since(given.read_at).as_hours() / 24;
    if days >= i64::from(wanted.days_min) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "the certificate {} expires in {days} days, at {at}, and CERT_MIN_DAYS is {}",
        pki::subject(first),
        wanted.days_min
    ))
    .hint("renew it, or lower CERT_MIN_DAYS if the migration will be over sooner"))
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
    match names.is_empty() {
        true => error.hint("set SOURCE_SSLMODE=verify-ca: the certificate covers no name at all"),
        false => error.hint(format!(
            "set SOURCE_HOST to one of the names that it covers ({}), or SOURCE_SSLMODE=verify-ca",
            names.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use job::error::ErrorKind;

    use super::*;
    use crate::authority::{Authority, HOST, given};

    fn judged(tls: &SourceTls, sslmode: SslMode, days_min: u16) -> Result<Verdict> {
        judge(
            tls,
            &Wanted {
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
    fn what_covers_the_host_and_lasts_passes_without_a_warning() {
        let verdict = judged(&source(&[HOST], 90), SslMode::VerifyFull, 30).unwrap();
        assert_eq!(
            (verdict.sslmode, verdict.warning.as_deref()),
            (SslMode::VerifyFull, None)
        );
        assert!(
            verdict
                .ca()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
    }

    #[test]
    fn an_uncovered_host_is_a_wrong_setting_and_the_hint_names_what_is_covered() {
        let error = judged(&source(&["a.svc", "b.svc"], 90), SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error
                .next_step()
                .unwrap()
                .contains("(a.svc, b.svc), or SOURCE_SSLMODE=verify-ca")
        );
        let verdict = judged(&source(&["a.svc"], 90), SslMode::VerifyCa, 30).unwrap();
        assert_eq!(
            (verdict.sslmode, verdict.warning),
            (SslMode::VerifyCa, None)
        );
        let nameless = judged(&source(&[], 90), SslMode::VerifyFull, 30).unwrap_err();
        assert!(
            nameless
                .next_step()
                .unwrap()
                .starts_with("set SOURCE_SSLMODE=verify-ca")
        );
    }

    #[test]
    fn a_certificate_must_last_to_the_day() {
        assert!(judged(&source(&[HOST], 30), SslMode::VerifyFull, 30).is_ok());
        let error = judged(&source(&[HOST], 29), SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains("CN=server expires in 29 days"),
            "{error}"
        );
    }

    #[test]
    fn the_ca_must_last_too() {
        let root = Authority::root("root", 5);
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &root, &root)));
        let error = judged(&tls, SslMode::VerifyCa, 30).unwrap_err();
        assert!(
            error.to_string().contains("CN=root expires in 5 days"),
            "{error}"
        );
    }

    #[test]
    fn a_foreign_ca_is_refused_and_its_true_issuer_named() {
        let (root, other) = (Authority::root("root", 400), Authority::root("other", 400));
        let tls = SourceTls::Given(Box::new(given(&root.server(&[HOST], 90), &other, &other)));
        let error = judged(&tls, SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(
            error.to_string(),
            "verifying key tls.crt of secret server with key ca.crt of secret ca: the certificate \
             CN=server was not signed by this CA, but by CN=root"
        );
        let verdict = judged(&tls, SslMode::Require, 30).unwrap();
        assert!(verdict.ca().is_err() && verdict.warning.is_some());
    }

    #[test]
    fn require_passes_with_a_warning_that_says_what_could_be_had() {
        let verdict = judged(&source(&[HOST], 90), SslMode::Require, 30).unwrap();
        assert_eq!(
            verdict.sslmode,
            SslMode::VerifyFull,
            "the manifest has the strongest"
        );
        assert!(
            verdict
                .warning
                .unwrap()
                .starts_with("SOURCE_SSLMODE could be verify-full")
        );
        let verdict = judged(&SourceTls::SelfSigned, SslMode::Require, 30).unwrap();
        assert!(verdict.ca().is_err() && verdict.warning.is_some());
    }

    #[test]
    fn spilos_own_certificate_cannot_be_verified() {
        let error = judged(&SourceTls::SelfSigned, SslMode::VerifyFull, 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(
            "SOURCE_SSLMODE is verify-full, but the postgresql resource has no spec.tls"
        ));
    }
}
