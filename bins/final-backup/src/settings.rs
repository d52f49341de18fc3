//! The settings of this program: environment variables, explained in `manifests/base/settings.env`.

use std::{fmt, path::PathBuf, str::FromStr};

use job::config::{ObjectName, optional};
use platform::postgres::replication::base_backup::{BY_SERVER, CompressionRequest, UNCOMPRESSED};
use serde::Deserialize;

/// The settings of this program. The connections `SOURCE_*` and `TARGET_*` are read separately.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// Name of the `postgresql` resource.
    pub source_cluster: ObjectName,
    /// Name of the CloudNativePG Cluster.
    pub target_cluster: ObjectName,
    /// Which side is copied.
    pub from: Side,
    /// The member of the source to copy; selected by state if not set.
    #[serde(default, deserialize_with = "optional")]
    pub backup_member: Option<ObjectName>,
    /// Where backups are stored.
    pub backup_to: Destination,
    /// Folder of this backup in that storage.
    pub backup_name: ObjectName,
    /// Which side compresses.
    pub compress_by: CompressBy,
    /// Free space to leave on the volume, in MB.
    pub backup_keep_free_mb: u64,
    /// How a new backup is verified.
    pub verify: Verify,
    /// Volume on which the backup is unpacked for that.
    pub scratch_dir: PathBuf,
    /// Free space to leave on that volume, in percent.
    pub scratch_keep_free_percent: u64,
    /// How long the source is kept after the cutover, in days.
    pub retention_days: u32,
    /// Object with the Zalando operator's configuration.
    #[serde(default, deserialize_with = "optional")]
    pub operator_config: Option<OperatorConfig>,
    /// URL of an S3-compatible store other than Amazon S3.
    #[serde(default, deserialize_with = "optional")]
    pub s3_endpoint: Option<String>,
    /// Region of the store.
    pub s3_region: String,
    /// Whether the bucket is part of the path instead of the host name.
    pub s3_path_style: bool,
    /// File with the ID of the access key. If not set, the pod's own identity is used.
    #[serde(default, deserialize_with = "optional")]
    pub s3_access_key_file: Option<PathBuf>,
    /// File with the secret of the access key.
    #[serde(default, deserialize_with = "optional")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// CA bundle for the endpoint, if its certificate is not signed by a CA in the image's trust
    /// store.
    #[serde(default, deserialize_with = "optional")]
    pub s3_ca_file: Option<PathBuf>,
    /// Log what would be done, and change nothing.
    pub dry_run: bool,
}

/// Which side is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The Zalando cluster.
    Source,
    /// The CloudNativePG Cluster, after the cutover.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Which side compresses the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressBy {
    /// The server, with the best algorithm that it was built with, on one or two of its cores.
    Server,
    /// This program, with zstd on all cores of its node.
    Job,
}

impl CompressBy {
    /// Compression to request from the server, in order of preference.
    pub fn requested(self) -> &'static [CompressionRequest] {
        match self {
            Self::Server => &BY_SERVER,
            Self::Job => &[UNCOMPRESSED],
        }
    }
}

/// How a new backup is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Every file is compared with the manifest while it is received.
    Stream,
    /// The backup is also read back from the storage, unpacked if there is enough space, and
    /// compared again.
    Restore,
}

/// Where backups are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A mounted volume.
    Directory(PathBuf),
    /// A bucket of an S3-compatible store.
    Bucket {
        /// Name of the bucket.
        bucket: String,
        /// Prefix of all object names, without slashes at its ends. May be empty.
        prefix: String,
    },
}

impl FromStr for Destination {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(format!("{text:?} names no bucket"));
            }
            return Ok(Self::Bucket {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
            });
        }
        match text {
            "" => Err(
                "it is empty; set it to /directory of a mounted volume (components/backup-volume) \
                 or to s3://bucket/prefix (components/s3)"
                    .into(),
            ),
            text if text.starts_with('/') => Ok(Self::Directory(text.into())),
            text => Err(format!(
                "{text:?} is neither /directory nor s3://bucket/prefix"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The ConfigMap or OperatorConfiguration with the Zalando operator's configuration, as
/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Namespace of the object.
    pub namespace: ObjectName,
    /// Name of the object.
    pub name: ObjectName,
}

impl FromStr for OperatorConfig {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| format!("{text:?} is not namespace/name"))?;
        Ok(Self {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for OperatorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use job::config::Connection;
    use variables::Variables;

    use super::*;

    #[test]
    fn a_destination_is_a_directory_or_a_bucket_with_a_prefix() {
        let read = |text: &str| text.parse::<Destination>();
        assert_eq!(
            read("/backup").unwrap(),
            Destination::Directory("/backup".into())
        );
        let bucket = |prefix: &str| Destination::Bucket {
            bucket: "b".into(),
            prefix: prefix.into(),
        };
        assert_eq!(read("s3://b").unwrap(), bucket(""));
        assert_eq!(
            read(" s3://b/zalando/mastodon/ ").unwrap(),
            bucket("zalando/mastodon")
        );
        for wrong in ["", "s3://", "s3:///x", "backup", "gs://b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_operators_configuration_needs_a_namespace() {
        let read = |text: &str| text.parse::<OperatorConfig>();
        assert_eq!(
            read("zalando/postgres-operator").unwrap().to_string(),
            "zalando/postgres-operator"
        );
        assert!(read("postgres-operator").is_err());
        assert!(read("zalando/").is_err());
    }

    #[test]
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Settings>("")
            .and(Variables::of::<Connection>("SOURCE_"))
            .and(Variables::of::<Connection>("TARGET_"));
        variables::check("final-backup", &read);
    }
}
