//! What a login is made of, beside where it leads: libpq's password, sslrootcert, sslcert and
//! sslkey.

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
    /// Of the role.
    pub password: SecretString,
    /// What the server's certificate is checked against, PEM; None when it is not checked.
    pub ca: Option<Vec<u8>>,
    /// What is shown to a server that asks for it.
    pub client: Option<ClientCertificate>,
}

impl Credentials {
    /// Those in the files that the connection names.
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
        // Without a certificate that can be checked there is no CA file, and `require` does
        // without, as in libpq.
        Some(file) if connection.sslmode == SslMode::Require && !file.exists() => Ok(None),
        Some(file) => Ok(Some(std::fs::read(file).map_err(|e| unreadable(file, e))?)),
        None => Ok(None),
    }
}

/// As in libpq, no certificate is shown when the file is missing: extract-certs says why it could
/// make none. One without its key is an error.
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
