//! `extract-certs`: puts the files with which the target will trust the source into Secrets, after
//! they have worked once.
//!
//! **Promise when it exits 0:** the Secrets `zalando-replication-ca` and `zalando-replication-tls`
//! exist, and a real TLS handshake and login at the source, with exactly those files, the sslmode
//! of the Cluster manifest and the role that will replicate, has succeeded. A second run changes
//! nothing.
//!
//! 1. read which Secrets `spec.tls` of the postgresql resource really names;
//! 2. judge what is in them as libpq will: chain, dates, names;
//! 3. read the login that `prepare-zalando` has written;
//! 4. keep or mint a client certificate where the CA's key is at hand and the source trusts that
//!    CA. A server's certificate is none: the source answers `tls: unsupported certificate`. The
//!    password suffices without one;
//! 5. log in at the source;
//! 6. only then write the Secrets.
//!
//! | variable | meaning |
//! |---|---|
//! | SOURCE_CLUSTER, TARGET_CLUSTER | the postgresql resource; the Cluster that Events are posted on |
//! | SOURCE_HOST, SOURCE_PORT, SOURCE_HOSTADDR | where the target will connect to; hostaddr replaces DNS |
//! | SOURCE_SSLMODE | `verify-full`, `verify-ca` or `require`: the least that must be possible |
//! | CERT_MIN_DAYS | days that every certificate must last from now; 30 |
//!
//! | exit | when |
//! |---|---|
//! | 2 | a variable is missing, no such cluster, a permission is missing, SOURCE_SSLMODE asks for more than SOURCE_HOST or the source can give, the login is refused |
//! | 3 | a certificate has expired or will soon, the CA is not the one that signed, a Secret that the CR names is missing, prepare-zalando has not run |
//! | 1 | the source or the API does not answer |

#[cfg(test)]
mod authority;
mod client_certificate;
mod handshake;
mod secrets;
mod verdict;

use std::{net::IpAddr, process::ExitCode};

use jiff::Timestamp;
use job::{
    config::{Name, SslMode, Text, optional},
    context::{self, Run},
    error::Result,
    kubernetes, record_store,
};
use platform::kubernetes::{source_tls, zalando};
use serde::Deserialize;

use client_certificate::Shown;
use verdict::Wanted;

#[derive(Deserialize)]
struct Config {
    source_cluster: Name,
    source_host: Text,
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
    context::main("extract-certs", async |config: Config, run: Run| {
        run.until_stopped(extract(&config, &run)).await
    })
}

async fn extract(config: &Config, run: &Run) -> Result<()> {
    record_store::refuse_after_cut(&run.client, &run.namespace, &run.target).await?;
    run.report.info("Extracting Zalando TLS certificates...");
    let postgresqls = zalando::postgresqls(&run.client, &run.namespace);
    let cr = kubernetes::required(&postgresqls, &config.source_cluster, "SOURCE_CLUSTER").await?;
    let tls = source_tls::read(&run.client, &run.namespace, &cr).await?;

    let wanted = Wanted {
        host: &config.source_host,
        sslmode: config.source_sslmode,
        days_min: config.cert_min_days,
    };
    let verdict = verdict::judge(&tls, &wanted)?;
    run.report.step("CertificatesJudged", &verdict.summary);
    verdict
        .warning
        .iter()
        .for_each(|text| run.report.warning("CertificatesWarning", text));

    let login = secrets::login(run).await?;
    let existing = secrets::client_certificate(run).await?;
    let now = Timestamp::now();
    let shown = client_certificate::choose(&tls, &login.role, existing, now, config.cert_min_days);
    run.report.info(shown.words());

    let shown = handshake::proven(config, run, &login, &verdict, shown).await?;
    secrets::write(run, verdict.ca(), &shown).await?;
    run.report.step(
        "CertificatesReady",
        "Certificates ready for CNPG replication",
    );
    run.report.fact("sslmode", verdict.sslmode.as_str());
    run.report.fact(
        "client_certificate",
        matches!(shown, Shown::Kept(_) | Shown::Minted(_)),
    );
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
