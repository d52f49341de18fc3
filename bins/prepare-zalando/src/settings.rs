//! The settings of this program, and the names of the objects that it writes.

use std::str::FromStr;

use job::config::{ArchiveRestart, CommaList, NonEmptyString, ObjectName};
use protocol::{finding::Acceptance, manifest};
use serde::{Deserialize, Deserializer, de::Error as _};

/// The role that the target replicates as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceAuth {
    /// The role that Spilo admits for replication over TLS. Nothing changes at the source.
    #[default]
    Standby,
    /// CloudNativePG's own replication role. It needs a line in pg_hba, which rolls the source's
    /// pods.
    StreamingReplica,
}

impl SourceAuth {
    /// The role's name.
    pub fn role(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::StreamingReplica => "streaming_replica",
        }
    }
}

fn default_archive_restart() -> ArchiveRestart {
    ArchiveRestart::Never
}

fn default_target_patch() -> ObjectName {
    crate::target_patch::DEFAULT.parse().expect("it is a name")
}

fn none() -> CommaList<Acceptance> {
    CommaList(Vec::new())
}

/// A Kubernetes quantity of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// As written in the setting, for example 40Gi.
    pub text: String,
    /// Its value in bytes.
    pub bytes: u64,
}

impl FromStr for Quantity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let invalid = || format!("{text:?} is not a size such as 40Gi");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1_u64 << 40,
            "Pi" => 1_u64 << 50,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "P" => 1_000_000_000_000_000,
            _ => return Err(invalid()),
        };
        let number: f64 = digits.parse().map_err(|_| invalid())?;
        if !number.is_finite() || number <= 0.0 {
            return Err(invalid());
        }
        Ok(Self {
            text: text.to_owned(),
            bytes: (number * factor as f64) as u64,
        })
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// The variables of this program, except for those of the connection (`SOURCE_HOST` and others).
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// Name of the `postgresql` resource.
    pub source_cluster: ObjectName,
    /// Name of the Cluster that the manifest describes.
    pub target_cluster: ObjectName,
    /// The application's database.
    pub database: NonEmptyString,
    /// The role that the target replicates as.
    #[serde(default)]
    pub source_auth: SourceAuth,
    /// Whether pg_hba may be changed, which rolls the source's pods.
    #[serde(default)]
    pub allow_source_rolling_update: bool,
    /// Raise wal_keep_size of the source to this many MB; None leaves it unchanged.
    #[serde(default, deserialize_with = "job::config::optional")]
    pub wal_keep_mb: Option<u32>,
    /// The PostgreSQL image of the target.
    pub target_image: NonEmptyString,
    /// Size of the target's volume.
    pub target_storage: Quantity,
    /// Storage class of the volume; None for the Kubernetes cluster's default.
    #[serde(default, deserialize_with = "job::config::optional")]
    pub target_storage_class: Option<ObjectName>,
    /// The image that contains `/adopt-pgdata`.
    pub adopt_image: NonEmptyString,
    /// The ConfigMap with changes to the rendered Cluster.
    #[serde(default = "default_target_patch")]
    pub target_patch: ObjectName,
    /// When the restart takes place that turns WAL archiving on; `never` avoids it.
    #[serde(default = "default_archive_restart")]
    pub archive_restart: ArchiveRestart,
    /// The findings that the user accepts.
    #[serde(default = "none")]
    pub accept: CommaList<Acceptance>,
    /// Report what would be done, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// The Secret with the login of the target's WAL receiver.
pub const REPLICATION_SECRET: &str = "zalando-streaming-replica";
/// The Secret with the CA of the source, written by extract-certs.
pub const CA_SECRET: &str = "zalando-replication-ca";

impl Settings {
    /// The Secret with the owner's password as the source stores it.
    pub fn owner_secret(&self) -> String {
        format!("{}-owner", self.target_cluster)
    }
    /// The copy of the source's superuser Secret.
    pub fn superuser_secret(&self) -> String {
        format!("{}-superuser-source", self.target_cluster)
    }
    /// The ConfigMap that holds the manifest.
    pub fn manifest_map(&self) -> String {
        manifest::map_name(&self.target_cluster)
    }
    /// The key of the manifest in that ConfigMap.
    pub fn manifest_key(&self) -> String {
        manifest::key(&self.target_cluster)
    }
    /// The Pooler of the primary.
    pub fn pooler_rw(&self) -> String {
        format!("{}-pooler-rw", self.target_cluster)
    }
    /// The Pooler for reads.
    pub fn pooler_ro(&self) -> String {
        format!("{}-pooler-ro", self.target_cluster)
    }
}

#[cfg(test)]
mod tests {
    use job::config::Connection;
    use variables::Variables;

    use super::*;

    #[test]
    fn a_size_has_the_value_that_kubernetes_gives_it() {
        assert_eq!("40Gi".parse::<Quantity>().unwrap().bytes, 40 << 30);
        assert_eq!("1.5Gi".parse::<Quantity>().unwrap().bytes, 3 << 29);
        assert_eq!("100G".parse::<Quantity>().unwrap().bytes, 100_000_000_000);
        for wrong in ["", "Gi", "40GB", "-1Gi", "0", "1e"] {
            assert!(wrong.parse::<Quantity>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Settings>("").and(Variables::of::<Connection>("SOURCE_"));
        variables::check("prepare-zalando", &read);
    }
}
