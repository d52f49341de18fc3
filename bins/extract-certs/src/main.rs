//! `extract-certs`: writes the certificates with which the target verifies the source into Secrets,
//! after a trial login with them has succeeded.
//!
//! **Promise when it exits 0:** the Secrets `zalando-replication-ca` and `zalando-replication-tls`
//! exist, and a TLS handshake and login at the source have succeeded with exactly their contents,
//! the sslmode of the Cluster manifest and the replication role. A second run changes nothing.
//!
//! 1. read the Secrets that `spec.tls` of the postgresql resource names;
//! 2. verify their certificates as libpq will: chain, dates, names;
//! 3. read the login that `prepare-zalando` has written;
//! 4. reuse or issue a client certificate if the CA's key is available and the source trusts that
//!    CA. A server certificate cannot be used: the source answers `tls: unsupported certificate`.
//!    Without a client certificate the password is sufficient;
//! 5. log in at the source;
//! 6. only then write the Secrets.
//!
//! | variable | meaning |
//! |---|---|
//! | SOURCE_CLUSTER | the postgresql resource |
//! | TARGET_CLUSTER | the Cluster whose Events report the progress |
//! | SOURCE_HOST, SOURCE_PORT | where the target will connect to |
//! | SOURCE_HOSTADDR | an IP address to use instead of DNS |
//! | SOURCE_SSLMODE | weakest acceptable mode: `verify-full`, `verify-ca` or `require` |
//! | CERT_MIN_DAYS | days from now that every certificate must remain valid; 30 |
//!
//! Exit codes:
//! - 2: a variable or a permission is missing, the cluster does not exist, SOURCE_SSLMODE requires
//!   more than SOURCE_HOST or the source can provide, or the login is rejected;
//! - 3: a certificate has expired or expires too soon, the CA has not signed it, a Secret that the
//!   resource names is missing, or prepare-zalando has not run;
//! - 1: the source or the API server does not answer.
//!
//! Unless a function says otherwise, its errors are those of the Kubernetes API.

mod client_certificate;
mod handshake;
mod secrets;
mod server_certificate;
#[cfg(test)]
mod test_certificates;

use std::{net::IpAddr, process::ExitCode};

use jiff::Timestamp;
use job::{
    config::{NonEmptyString, ObjectName, SslMode, optional},
    context::{self, JobContext},
    error::Result,
    kubernetes, record_store,
};
use platform::kubernetes::{source_tls, zalando};
use serde::Deserialize;

use server_certificate::Requirements;

#[derive(Deserialize)]
struct Config {
    source_cluster: ObjectName,
    source_host: NonEmptyString,
    #[serde(default, deserialize_with = "optional")]
    source_hostaddr: Option<IpAddr>,
    #[serde(default = "port")]
    source_port: u16,
    source_sslmode: SslMode,
    #[serde(default = "cert_min_days")]
    cert_min_days: u16,
}

fn port() -> u16 {
    5432
}

fn cert_min_days() -> u16 {
    30
}

fn main() -> ExitCode {
    context::main("extract-certs", async |config: Config, run: JobContext| {
        run.until_stopped(extract(&config, &run)).await
    })
}

async fn extract(config: &Config, run: &JobContext) -> Result<()> {
    record_store::refuse_after_cutover(&run.client, &run.namespace, &run.target).await?;
    run.report
        .info("extracting the TLS certificates of the source");
    let postgresqls = zalando::postgresqls(&run.client, &run.namespace);
    let cr = kubernetes::required(&postgresqls, &config.source_cluster, "SOURCE_CLUSTER").await?;
    let tls = source_tls::read(&run.client, &run.namespace, &cr).await?;

    let required = Requirements {
        host: &config.source_host,
        sslmode: config.source_sslmode,
        days_min: config.cert_min_days,
    };
    let server = server_certificate::check(&tls, &required)?;
    run.report.step("CertificatesVerified", &server.summary);
    server
        .warning
        .iter()
        .for_each(|text| run.report.warning("CertificatesWarning", text));

    let login = secrets::login(run).await?;
    let existing = secrets::client_certificate(run).await?;
    let now = Timestamp::now();
    let presented =
        client_certificate::choose(&tls, &login.role, existing, now, config.cert_min_days);
    run.report.info(presented.describe());

    let presented = handshake::verify(config, run, &login, &server, presented).await?;
    secrets::write(run, server.ca(), &presented).await?;
    run.report
        .step("CertificatesReady", "certificates ready for replication");
    run.report.fact("sslmode", server.sslmode.as_str());
    run.report
        .fact("client_certificate", presented.certificate().is_some());
    Ok(())
}

#[cfg(test)]
mod tests {
    use variables::Variables;

    use super::*;

    #[test]
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Config>("");
        variables::check("extract-certs", &read);
    }
}
