//! A server to copy from: how to log in there, and who it is.

use job::{
    config::Connection,
    error::{Error, Result},
};
use platform::postgres::{
    Credentials,
    replication::{Answer, Walsender},
    source::APPLICATION_PREFIX,
};
use protocol::wal::{Identity, Lsn};

/// A server to copy from, and how to log in there.
pub struct Server {
    /// For people.
    pub name: String,
    /// With the role for replication.
    pub connection: Connection,
    /// Its password, and the certificates of the migration.
    pub credentials: Credentials,
}

/// What is known of a server before it is copied.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who it is.
    pub identity: Identity,
    /// End of its WAL.
    pub position: Lsn,
    /// It is a standby.
    pub in_recovery: bool,
    /// Pages have checksums, and the server checks them.
    pub page_checksums: bool,
    /// Bytes of a WAL segment.
    pub segment_bytes: u64,
}

impl Server {
    /// A connection for replication.
    ///
    /// # Errors
    /// As [`Walsender::connect`].
    pub async fn walsender(&self) -> Result<Walsender> {
        let application = format!("{APPLICATION_PREFIX}-final-backup");
        Walsender::connect(&self.connection, &self.credentials, &application).await
    }

    /// Asks a server who it is and how it stands.
    ///
    /// # Errors
    /// As [`Walsender::connect`].
    pub async fn look(&self) -> Result<Seen> {
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
        let unknown = |what: &str| Error::transient(format!("{} is {what:?}", self.name));
        Ok(Seen {
            identity: Identity {
                system_identifier,
                timeline,
                version: version.parse().map_err(|_| unknown(&version))?,
            },
            position,
            in_recovery,
            page_checksums,
            segment_bytes: bytes_of(&segment_bytes).ok_or_else(|| unknown(&segment_bytes))?,
        })
    }
}

/// `16MB`, `1GB`: how SHOW prints a size.
fn bytes_of(text: &str) -> Option<u64> {
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
            (bytes_of("16MB"), bytes_of("1GB"), bytes_of("64kB")),
            (Some(16 << 20), Some(1 << 30), Some(65536))
        );
        assert_eq!((bytes_of("16"), bytes_of("sixteen")), (None, None));
    }
}
