//! `complete.json`: describes a finished backup, and how it was verified.

use jiff::Timestamp;
use platform::postgres::replication::base_backup::Compression;
use protocol::wal::{Identity, Lsn, Timeline};
use serde::{Deserialize, Serialize};

use crate::{
    settings::Side,
    storage::{StoredBackup, StoredFile},
};

/// Raised when older readers can no longer read the file. Format 2 has CRC-32C in place of SHA-256.
pub const FORMAT: u32 = 2;

/// The content of `complete.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// See [`FORMAT`].
    pub format: u32,
    /// Name and version of the program that wrote it.
    pub program: String,
    /// Which side was copied.
    pub from: Side,
    /// The server of that side that was copied.
    pub server: String,
    /// When the backup began.
    pub started: Timestamp,
    /// When it was verified.
    pub finished: Timestamp,
    /// Identity of the server.
    pub identity: Identity,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// What recovery must reach.
    pub end_lsn: Lsn,
    /// End of the WAL that is stored with the backup.
    pub wal_end_lsn: Lsn,
    /// End of the source's WAL, if the backup was taken after a cutover.
    #[serde(default, rename = "cut", skip_serializing_if = "Option::is_none")]
    pub source_end: Option<SourceEnd>,
    /// Whether the server verified the checksum of each page that it sent.
    pub page_checksums: bool,
    /// How the backup was verified.
    pub verified: Verified,
    /// Compression of the archive.
    pub compression: Compression,
    /// Number of files in the archive.
    pub files: u64,
    /// Their size in bytes, uncompressed.
    pub bytes: u64,
    /// The files of the backup as they are stored.
    pub objects: Vec<StoredFile>,
}

impl Complete {
    /// What the storage holds of it.
    pub fn stored(&self) -> StoredBackup {
        StoredBackup {
            objects: self.objects.clone(),
            compression: self.compression,
            bytes: self.bytes,
        }
    }
}

/// Where the source's WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEnd {
    /// End of the last record.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
}

/// How a backup was verified. Each variant includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// Every file was compared with the manifest as it was received.
    Stream,
    /// Every file was also read back from the storage and compared.
    Read,
    /// The backup was also unpacked, and the files on disk were compared.
    Restore,
}

impl Verified {
    /// Text for logs and the termination message.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Stream => "every file compared with the manifest while it was received",
            Self::Read => "read back from the storage, every file compared with the manifest",
            Self::Restore => {
                "read back and unpacked, every file on disk compared with the manifest"
            }
        }
    }
}
