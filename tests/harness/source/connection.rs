//! The tests' own connections to PostgreSQL.

use anyhow::Result;
use tokio_postgres::Client;

/// Connects without a check of the certificate; the connection is driven by a task of the current
/// runtime.
///
/// # Errors
/// The server does not answer or refuses.
pub async fn connect(connection_string: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(connection_string, crate::tls::unchecked()?).await?;
    // Its end is the client's end, which is where it is noticed.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}
