//! How a client connects: the values its environment held at start, with the host resolved for
//! every session.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::time::timeout;
use tokio_postgres::{Config, config::SslMode};

use crate::{service::Services, session::Session, tls::unchecked};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Host, database, role, password: Mastodon's DB_* variables.
#[derive(Clone)]
pub struct Login {
    /// Name of a Service.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database.
    pub dbname: String,
    /// Role.
    pub user: String,
    /// The role's password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}@{}:{}/{}",
            self.user, self.host, self.port, self.dbname
        )
    }
}

impl Login {
    /// Opens a session through the Service, encrypted as Spilo requires (sslmode=require).
    ///
    /// # Errors
    /// The Service does not exist, or the server refuses the session.
    pub async fn connect(&self, services: &Services, application_name: &str) -> Result<Session> {
        let address = services
            .resolve(&self.host)
            .with_context(|| format!("could not translate host name {:?} to address", self.host))?;
        self.connect_to(address, application_name).await
    }

    /// Like [`Login::connect`], to a known address.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn connect_to(&self, address: IpAddr, application_name: &str) -> Result<Session> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .hostaddr(address)
            .port(self.port)
            .dbname(&self.dbname)
            .user(&self.user)
            .password(&self.password);
        config
            .application_name(application_name)
            .ssl_mode(SslMode::Require)
            .connect_timeout(CONNECT_LIMIT);
        let connected = timeout(CONNECT_LIMIT, config.connect(unchecked()?))
            .await
            .context("no answer")??;
        Ok(Session::begin(connected))
    }
}
