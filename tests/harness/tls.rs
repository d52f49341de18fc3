//! TLS as with sslmode=require: encrypted, without certificate checks.

use std::sync::OnceLock;

use anyhow::Result;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use postgres_openssl::MakeTlsConnector;

/// Created once, as drivers do: it reads all of the machine's CAs, which takes longer than a
/// session.
pub(crate) fn unchecked() -> Result<MakeTlsConnector> {
    static MADE: OnceLock<MakeTlsConnector> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(made.clone());
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    let mut tls = MakeTlsConnector::new(builder.build());
    tls.set_callback(|session, _| {
        session.set_verify_hostname(false);
        Ok(())
    });
    Ok(MADE.get_or_init(|| tls).clone())
}
