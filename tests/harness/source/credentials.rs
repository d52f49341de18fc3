//! The passwords of the source's roles.

use anyhow::{Context, Result};

use super::options::SourceOptions;

/// The passwords of the roles that have Secrets.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Superuser `postgres`.
    pub postgres: String,
    /// Replication role `standby`.
    pub standby: String,
    /// The application's role.
    pub application: String,
    /// pgbouncer's role `pooler`.
    pub pooler: String,
}

impl Credentials {
    pub(super) fn random() -> Result<Self> {
        Ok(Self {
            postgres: password()?,
            standby: password()?,
            application: password()?,
            pooler: password()?,
        })
    }

    /// Each role with its password.
    pub(super) fn roles<'a>(
        &'a self,
        options: &'a SourceOptions,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let application = (options.database.as_str(), self.application.as_str());
        [
            ("postgres", self.postgres.as_str()),
            ("standby", &self.standby),
            application,
            ("pooler", &self.pooler),
        ]
        .into_iter()
    }
}

/// 64 letters and digits, as the operator generates them.
fn password() -> Result<String> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut bytes = [0; 64];
    openssl::rand::rand_bytes(&mut bytes).context("reading random bytes")?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect())
}
