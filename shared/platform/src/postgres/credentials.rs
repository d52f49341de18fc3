//! Credentials of a login: libpq's password, sslrootcert, sslcert and sslkey.

use std::path::Path;

use secrecy::SecretString;

use super::{ClientCertificate, read_secret};
use job::{
    config::{Connection, SslMode},
    error::{Error, Result},
};

/// Password and certificates of one login.
#[derive(Clone)]
pub struct Credentials {
    /// Password of the role.
    pub password: SecretString,
    /// CA certificates for the server's certificate, PEM; None when it is not checked.
    pub ca: Option<Vec<u8>>,
    /// Certificate for a server that requests one.
    pub client: Option<ClientCertificate>,
}

impl Credentials {
    /// Reads the files that the connection names.
    ///
    /// # Errors
    /// Config for a file that cannot be read.
    pub fn of(connection: &Connection) -> Result<Self> {
        Ok(Self {
            password: read_secret(&connection.password_file)?,
            ca: authority(connection)?,
            client: client(connection)?,
        })
    }
}

fn authority(connection: &Connection) -> Result<Option<Vec<u8>>> {
    match &connection.sslrootcert {
        // extract-certs writes no CA file when the server's certificate cannot be checked;
        // `require` works without one, as in libpq.
        Some(file) if connection.sslmode == SslMode::Require && !file.exists() => Ok(None),
        Some(file) => Ok(Some(std::fs::read(file).map_err(|e| unreadable(file, e))?)),
        None => Ok(None),
    }
}

/// As in libpq, no certificate is sent when its file is missing; extract-certs has logged why it
/// could not make one. A certificate without its key is an error.
fn client(connection: &Connection) -> Result<Option<ClientCertificate>> {
    let (Some(chain), Some(key)) = (&connection.sslcert, &connection.sslkey) else {
        return Ok(None);
    };
    if !chain.exists() {
        return Ok(None);
    }
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|e| unreadable(file, e));
    Ok(Some(ClientCertificate {
        chain: read(chain)?,
        key: read(key)?.into(),
    }))
}

pub(super) fn unreadable(file: &Path, error: std::io::Error) -> Error {
    Error::config(format!("reading {}", file.display()))
        .caused_by(error)
        .hint("the Secret behind this file is missing, or its step has not run yet")
}
