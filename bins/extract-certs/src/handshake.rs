//! The proof: logins at the source with exactly what the target will use.

use std::path::PathBuf;

use job::{
    config::Connection,
    context::Run,
    error::{Context as _, Error, ErrorKind, Result},
};
use platform::postgres::{
    ClientCertificate, Credentials, Session, application_name, connect_with, endpoint,
    replication::identify_system,
};

use crate::{Config, client_certificate::Shown, secrets::Login, verdict::Verdict};

/// Every cluster has it, and pg_hba of Spilo admits everybody to it over TLS.
const DATABASE: &str = "postgres";

/// What the target will use, except for the client certificate.
struct Trial<'a> {
    connection: Connection,
    credentials: Credentials,
    run: &'a Run,
}

/// Logs in to a database and as a standby, and returns what was shown when it worked. A source that
/// refuses the certificate is asked again without: it is a courtesy, the password is what admits.
///
/// # Errors
/// Config when the login or the source's certificate is refused, Transient when the source does not
/// answer.
pub(crate) async fn proven(
    config: &Config,
    run: &Run,
    login: &Login,
    verdict: &Verdict,
    shown: Shown,
) -> Result<Shown> {
    let connection = Connection {
        host: config.source_host.clone(),
        hostaddr: config.source_hostaddr,
        port: config.source_port,
        user: login.role.clone(),
        password_file: PathBuf::new(),
        sslmode: verdict.sslmode,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
    };
    let trial = Trial {
        connection,
        credentials: Credentials {
            password: login.password.clone(),
            ca: verdict.ca_pem.clone().map(String::into_bytes),
            client: None,
        },
        run,
    };
    let shown = match log_in(&trial, shown.certificate()).await {
        Ok(()) => shown,
        Err(error) if shown.certificate().is_none() => return Err(explained(error, login)),
        Err(refusal) => {
            log_in(&trial, None)
                .await
                .map_err(|error| explained(error, login))?;
            let reason = format!(
                "the source refuses a certificate signed by its CA, and takes the login without \
                 it: {refusal}"
            );
            run.report.warning("ClientCertificateRefused", &reason);
            Shown::Nothing(reason)
        }
    };
    replicate(&trial)
        .await
        .map_err(|error| explained(error, login))?;
    Ok(shown)
}

async fn log_in(trial: &Trial<'_>, certificate: Option<&ClientCertificate>) -> Result<()> {
    let Trial {
        connection,
        credentials,
        run,
    } = trial;
    let credentials = Credentials {
        client: certificate.cloned(),
        ..credentials.clone()
    };
    let session = connect_with(connection, &credentials, DATABASE, &application()).await?;
    let (version, client) = encryption(&session).await?;
    if certificate.is_some() && client.is_none() {
        return Err(Error::refused("it did not look at the certificate"));
    }
    let (mode, user) = (connection.sslmode.as_str(), &connection.user);
    let client = client.map_or_else(String::new, |name| format!(", client certificate {name}"));
    run.report.step(
        "HandshakeDone",
        format!(
            "logged in at {} as {user}: sslmode {mode}, {version}{client}",
            endpoint(connection)
        ),
    );
    Ok(())
}

/// pg_hba.conf treats replication apart from every database. Without a client certificate, as in
/// prepare-zalando's manifest.
async fn replicate(trial: &Trial<'_>) -> Result<()> {
    let answer = identify_system(&trial.connection, &trial.credentials, &application()).await?;
    trial.run.report.step(
        "ReplicationAdmitted",
        format!(
            "the source admits it as a standby: system identifier {}, timeline {}",
            answer.system_identifier, answer.timeline
        ),
    );
    Ok(())
}

fn application() -> String {
    application_name("extract-certs")
}

/// The library's hints speak of mounted files and of this step; here certificate and password were
/// just read from Secrets.
fn explained(error: Error, login: &Login) -> Error {
    let kind = error.kind();
    let hint = match (
        kind,
        error.to_string().contains("certificate verify failed"),
    ) {
        (ErrorKind::Config, true) => {
            "the source shows another certificate than its secret holds: spilo takes a new one up \
             within five minutes; if it does not, restart the member"
                .to_owned()
        }
        (ErrorKind::Config, false) => format!(
            "the source does not admit {}; run prepare-zalando \
            again, it writes this login",
            login.role
        ),
        _ => "is the source running, and is SOURCE_HOST the Service of its leader?".to_owned(),
    };
    Error::config("trying what the target will use")
        .caused_by(error)
        .of_kind(kind)
        .hint(hint)
}

/// TLS version, and the client certificate's subject when the server has accepted one.
async fn encryption(session: &Session) -> Result<(String, Option<String>)> {
    let row = session
        .query_one(
            "select coalesce(version, 'no tls'), client_dn from pg_stat_ssl where pid = \
             pg_backend_pid()",
            &[],
        )
        .await
        .context("asking the source how the session is encrypted")?;
    Ok((row.get(0), row.get(1)))
}
