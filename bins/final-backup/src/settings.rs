//! The environment of this step; keys of `manifests/base/settings.env`.

use std::{fmt, path::PathBuf, str::FromStr};

use job::config::{Name, optional};
use platform::postgres::replication::base_backup::{Asked, BY_SERVER, UNCOMPRESSED};
use serde::Deserialize;

/// What this step is told. The connections `SOURCE_*` and `TARGET_*` are read beside it.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// The `postgresql` resource.
    pub source_cluster: Name,
    /// The CNPG Cluster.
    pub target_cluster: Name,
    /// Which side is copied.
    pub from: Side,
    /// The member of the source to copy from; chosen by what is found when it is not given.
    #[serde(default, deserialize_with = "optional")]
    pub backup_member: Option<Name>,
    /// Where backups are kept.
    pub backup_to: Destination,
    /// The folder there that is this backup.
    pub backup_name: Name,
    /// Who compresses.
    pub compress_by: CompressBy,
    /// A volume is not filled beyond so many MB of free space.
    pub backup_keep_free_mb: u64,
    /// How the finished backup is proved.
    pub verify: Verify,
    /// Where it is unpacked for that.
    pub scratch_dir: PathBuf,
    /// How much of that volume stays free, in percent.
    pub scratch_keep_free_percent: u64,
    /// How long the source is kept after the cut.
    pub retention_days: u32,
    /// The Zalando operator's configuration.
    #[serde(default, deserialize_with = "optional")]
    pub operator_config: Option<OperatorConfig>,
    /// S3 other than Amazon's.
    #[serde(default, deserialize_with = "optional")]
    pub s3_endpoint: Option<String>,
    /// Its region.
    pub s3_region: String,
    /// The bucket is a part of the path, and not of the host name.
    pub s3_path_style: bool,
    /// File with the id of the access key; without it the pod's own identity is used.
    #[serde(default, deserialize_with = "optional")]
    pub s3_access_key_file: Option<PathBuf>,
    /// File with its secret.
    #[serde(default, deserialize_with = "optional")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// File with the CA of the endpoint's certificate, when it is nobody's that the image knows.
    #[serde(default, deserialize_with = "optional")]
    pub s3_ca_file: Option<PathBuf>,
    /// Say what would be done, and change nothing.
    pub dry_run: bool,
}

/// Which side is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The Zalando cluster.
    Source,
    /// The CNPG Cluster, after the cut.
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

/// Who compresses the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressBy {
    /// The server, with the best that it has, and one or two of its cores.
    Server,
    /// This side, with zstd and all cores of its node.
    Job,
}

impl CompressBy {
    /// What the server is asked for, in this order.
    pub fn asked(self) -> &'static [Asked] {
        match self {
            Self::Server => &BY_SERVER,
            Self::Job => &[UNCOMPRESSED],
        }
    }
}

/// How the finished backup is proved, beyond the comparison of every file with the manifest while
/// it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// That was enough.
    Stream,
    /// It is read back from where it is kept, unpacked when there is room, and compared again.
    Restore,
}

/// Where backups are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A mounted volume.
    Directory(PathBuf),
    /// A bucket, and a prefix in it, which may be empty.
    Bucket {
        /// Its name.
        bucket: String,
        /// Without slashes at its ends.
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
                "it is empty; say /directory of a mounted volume (components/backup-volume) or \
                 s3://bucket/prefix (components/s3)"
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

/// Namespace and name of the ConfigMap or OperatorConfiguration that the Zalando operator is
/// configured by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Where the operator runs.
    pub namespace: Name,
    /// The object.
    pub name: Name,
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
    fn the_operators_configuration_has_a_namespace() {
        let read = |text: &str| text.parse::<OperatorConfig>();
        assert_eq!(
            read("zalando/postgres-operator").unwrap().to_string(),
            "zalando/postgres-operator"
        );
        assert!(read("postgres-operator").is_err());
        assert!(read("zalando/").is_err());
    }
}
