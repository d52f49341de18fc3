//! The proof: a login at the source with exactly what the target will use.

use std::path::PathBuf;

use shared::{
    config::Connection,
    error::{Context as _, Error, ErrorKind, Result},
    job::Run,
    postgres::{ClientCertificate, Session, connect_showing, connect_with, endpoint, source::APPLICATION_PREFIX},
};

use crate::{Config, client_certificate::Shown, secrets::Login, verdict::Verdict};

/// Every cluster has it, and pg_hba of Spilo admits everybody to it over TLS.
const DATABASE: &str = "postgres";

/// Logs in, and returns what was shown when it worked. A source that refuses the certificate is asked again without: it is a
/// courtesy, the password is what admits.
///
/// # Errors
/// Config when the login or the certificate is refused, Transient when the source does not answer.
pub(crate) async fn proven(config: &Config, run: &Run, login: &Login, verdict: &Verdict, shown: Shown) -> Result<Shown> {
    let ca_pem = verdict.ca_pem.as_deref();
    let connection = Connection {
        host: config.source_host.clone(),
        hostaddr: config.source_hostaddr,
        port: config.source_port,
        user: login.role.clone(),
        password_file: PathBuf::new(),
        sslmode: verdict.sslmode,
        sslrootcert: None,
    };
    let Some(certificate) = shown.certificate() else {
        attempt(&connection, run, login, ca_pem, None).await?;
        return Ok(shown);
    };
    let Err(refusal) = attempt(&connection, run, login, ca_pem, Some(certificate)).await else {
        return Ok(shown);
    };
    attempt(&connection, run, login, ca_pem, None).await?;
    run.report.warning(
        "ClientCertificateRefused",
        format!("the source refuses the client certificate, and takes the login without it: {refusal}"),
    );
    Ok(Shown::Nothing(format!(
        "the source refused a certificate signed by its CA: {refusal}"
    )))
}

async fn attempt(
    connection: &Connection,
    run: &Run,
    login: &Login,
    ca_pem: Option<&str>,
    certificate: Option<&ClientCertificate>,
) -> Result<()> {
    let application = format!("{APPLICATION_PREFIX}-extract-certs");
    let ca = ca_pem.map(str::as_bytes);
    let session = match certificate {
        Some(certificate) => connect_showing(certificate, connection, &login.password, ca, DATABASE, &application).await,
        None => connect_with(connection, &login.password, ca, DATABASE, &application).await,
    };
    let session = session.map_err(|error| explained(error, login))?;
    let seen = encryption(&session).await?;
    if certificate.is_some() && seen.client.is_none() {
        return Err(Error::refused("the source did not look at the client certificate"));
    }
    let mode = connection.sslmode.as_str();
    let client = seen.client.map_or_else(String::new, |name| format!(", client certificate {name}"));
    run.report.step(
        "HandshakeDone",
        format!(
            "logged in at {} as {}: sslmode {mode}, {}{client}",
            endpoint(connection),
            login.role,
            seen.version
        ),
    );
    Ok(())
}

/// The library's hints speak of mounted files; here certificate and password come from Secrets that two steps ago were right.
fn explained(error: Error, login: &Login) -> Error {
    let kind = error.kind();
    let hint = match (kind, error.to_string().contains("certificate")) {
        (ErrorKind::Config, true) => "the source shows another certificate than its secret holds: spilo takes a new one up within five minutes; if it does not, restart the member".into(),
        (ErrorKind::Config, false) => format!("the source does not admit {}; run prepare-zalando again, it writes this login", login.role),
        _ => "is the source running, and is SOURCE_HOST the Service of its leader?".to_owned(),
    };
    Error::config("trying what the target will use")
        .caused_by(error)
        .of_kind(kind)
        .hint(hint)
}

/// How a session is encrypted, as the server sees it.
struct Encryption {
    version: String,
    client: Option<String>,
}

async fn encryption(session: &Session) -> Result<Encryption> {
    let row = session
        .query_one(
            "select coalesce(version, 'no tls'), client_dn from pg_stat_ssl where pid = pg_backend_pid()",
            &[],
        )
        .await
        .context("asking the source how the session is encrypted")?;
    Ok(Encryption {
        version: row.get(0),
        client: row.get(1),
    })
}
