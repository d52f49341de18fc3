//! Trial logins at the source with exactly the files and the login that the target will use.

use std::path::PathBuf;

use job::{
    config::Connection,
    context::JobContext,
    error::{Context as _, Error, ErrorKind, Result},
};
use platform::postgres::{
    ClientCertificate, Credentials, Session, application_name, connect_with, endpoint,
    replication::identify_system,
};

use crate::{
    Config, client_certificate::PresentedCertificate, secrets::Login,
    server_certificate::ServerCertificate,
};

/// Every cluster has this database, and Spilo's pg_hba admits all roles to it over TLS.
const DATABASE: &str = "postgres";

/// How often a login with a certificate is tried while the server does not say why it ended the
/// connection.
const LOGINS_MAX: u32 = 10;

/// What the target uses, except for the client certificate.
struct Trial<'a> {
    connection: Connection,
    credentials: Credentials,
    run: &'a JobContext,
}

/// Logs in to a database and as a standby, and returns the certificate that was accepted. The
/// certificate is optional, because the password authenticates: if the source rejects it, the login
/// is repeated without it.
///
/// # Errors
/// Config when the source rejects the login, or its certificate fails verification; Transient when
/// it does not answer.
pub(crate) async fn verify(
    config: &Config,
    run: &JobContext,
    login: &Login,
    server: &ServerCertificate,
    presented: PresentedCertificate,
) -> Result<PresentedCertificate> {
    let connection = Connection {
        host: config.source_host.clone(),
        hostaddr: config.source_hostaddr,
        port: config.source_port,
        user: login.role.clone(),
        password_file: PathBuf::new(),
        sslmode: server.sslmode,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
    };
    let trial = Trial {
        connection,
        credentials: Credentials {
            password: login.password.clone(),
            ca: server.ca_pem.clone().map(String::into_bytes),
            client: None,
        },
        run,
    };
    let presented = match log_in_until_answered(&trial, presented.certificate()).await {
        Ok(()) => presented,
        Err(error) if presented.certificate().is_none() => return Err(explained(error, login)),
        Err(rejection) => {
            log_in(&trial, None)
                .await
                .map_err(|error| explained(error, login))?;
            let reason = format!(
                "the source rejects a certificate signed by its CA, and accepts the login without \
                 it: {rejection}"
            );
            run.report.warning("ClientCertificateRejected", &reason);
            PresentedCertificate::Absent(reason)
        }
    };
    log_in_as_standby(&trial)
        .await
        .map_err(|error| explained(error, login))?;
    Ok(presented)
}

/// Logs in with a certificate, and again while the server gives no answer.
///
/// In TLS 1.3 the server checks the client's certificate after the client has completed its
/// handshake (RFC 8446, section 2). A server that rejects the certificate closes the connection
/// right behind its alert, and the reset can overtake the alert. Without the alert a certificate
/// that is rejected cannot be told from a server that restarts.
async fn log_in_until_answered(
    trial: &Trial<'_>,
    certificate: Option<&ClientCertificate>,
) -> Result<()> {
    let mut outcome = log_in(trial, certificate).await;
    for _ in 1..LOGINS_MAX {
        if certificate.is_none() || outcome.as_ref().err().is_none_or(is_answer) {
            break;
        }
        outcome = log_in(trial, certificate).await;
    }
    outcome
}

/// The server has said why it refuses the login: by an error of PostgreSQL or by an alert of TLS.
fn is_answer(error: &Error) -> bool {
    // OpenSSL names every alert so: `tlsv1 alert unknown ca`, `ssl/tls alert bad certificate`.
    error.kind() != ErrorKind::Transient || error.to_string().contains(" alert ")
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
        return Err(Error::refused("the source did not request the certificate"));
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

/// Logs in for replication, for which pg_hba.conf has lines of its own. Without a client
/// certificate, as in prepare-zalando's manifest.
async fn log_in_as_standby(trial: &Trial<'_>) -> Result<()> {
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

/// Replaces the hint of the shared code, which is about mounted files: here the certificate and the
/// password come from Secrets.
fn explained(error: Error, login: &Login) -> Error {
    let kind = error.kind();
    let hint = match (
        kind,
        error.to_string().contains("certificate verify failed"),
    ) {
        (ErrorKind::Config, true) => {
            "the source presents another certificate than its Secret holds: Spilo loads a new one \
             within five minutes; if it does not, restart the member"
                .to_owned()
        }
        (ErrorKind::Config, false) => format!(
            "the source does not admit {}; run prepare-zalando again, which writes this login",
            login.role
        ),
        _ => "check that the source is running, and that SOURCE_HOST is the Service of its leader"
            .to_owned(),
    };
    Error::config("logging in as the target will")
        .caused_by(error)
        .of_kind(kind)
        .hint(hint)
}

/// The session's TLS version, and the subject of the client certificate if the server has accepted
/// one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_an_answer_and_a_broken_connection_is_none() {
        let transient = |text: &str| Error::transient(text.to_owned());
        assert!(is_answer(&transient(
            "postgresql: error communicating with the server: error:0A000418:SSL \
             routines:ssl3_read_bytes:tlsv1 alert unknown ca"
        )));
        assert!(is_answer(&Error::refused("password authentication failed")));
        assert!(!is_answer(&transient(
            "postgresql: error communicating with the server: Connection reset by peer"
        )));
    }
}
