//! A server to copy from: how to log in to it, and its state before the copy.

pub mod locate;
mod select;

use job::{
    config::Connection,
    error::{Error, Result},
};
use platform::postgres::{
    Credentials, application_name,
    replication::{Answer, Walsender},
};
use protocol::wal::{Identity, Lsn};

pub use select::ensure_fenced;

/// A server to copy from, and how to log in to it.
pub struct Server {
    /// Name for logs and messages.
    pub name: String,
    /// Connection with the replication role.
    pub connection: Connection,
    /// The role's password, and the certificates of the migration.
    pub credentials: Credentials,
}

/// State of a server before it is copied.
#[derive(Clone, Debug)]
pub struct ServerState {
    /// System identifier, timeline and version.
    pub identity: Identity,
    /// End of its WAL.
    pub position: Lsn,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether pages have checksums, which the server verifies while it sends them.
    pub page_checksums: bool,
    /// Size of a WAL segment in bytes.
    pub segment_bytes: u64,
}

impl Server {
    /// Opens a replication connection.
    ///
    /// # Errors
    /// As [`Walsender::connect`].
    pub async fn walsender(&self) -> Result<Walsender> {
        let application = application_name("final-backup");
        Walsender::connect(&self.connection, &self.credentials, &application).await
    }

    /// Reads the server's identity and state.
    ///
    /// # Errors
    /// As [`Walsender::connect`].
    pub async fn observe(&self) -> Result<ServerState> {
        let mut walsender = self.walsender().await?;
        let Answer {
            system_identifier,
            timeline,
            position,
        } = walsender.identify_system().await?;
        let mut on = async |setting: &str| Ok::<_, Error>(walsender.show(setting).await? == "on");
        let (in_recovery, page_checksums) =
            (on("in_hot_standby").await?, on("data_checksums").await?);
        let segment_bytes = walsender.show("wal_segment_size").await?;
        let version = walsender.show("server_version_num").await?;
        walsender.close().await;
        let unreadable = |setting: &str, value: &str| {
            Error::transient(format!("{} reports {setting} as {value:?}", self.name))
        };
        Ok(ServerState {
            identity: Identity {
                system_identifier,
                timeline,
                version: version
                    .parse()
                    .map_err(|_| unreadable("server_version_num", &version))?,
            },
            position,
            in_recovery,
            page_checksums,
            segment_bytes: parse_size(&segment_bytes)
                .ok_or_else(|| unreadable("wal_segment_size", &segment_bytes))?,
        })
    }
}

/// Bytes of a size as SHOW prints it, such as `16MB` or `1GB`.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_show_prints_them() {
        assert_eq!(
            (parse_size("16MB"), parse_size("1GB"), parse_size("64kB")),
            (Some(16 << 20), Some(1 << 30), Some(65536))
        );
        assert_eq!((parse_size("16"), parse_size("sixteen")), (None, None));
    }
}
