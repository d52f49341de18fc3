//! Connections of the tests to PostgreSQL.

use anyhow::Result;
use tokio_postgres::Client;

/// Connects without checking the certificate; a task of the current runtime drives the connection.
///
/// # Errors
/// The server does not answer or refuses.
pub async fn connect(connection_string: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(connection_string, crate::tls::unchecked()?).await?;
    // The client notices when the connection ends.
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}
