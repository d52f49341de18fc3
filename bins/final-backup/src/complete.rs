//! `complete.json`: what a finished backup is, and the proof that it is whole.

use jiff::Timestamp;
use platform::postgres::replication::base_backup::Compression;
use protocol::wal::{Identity, Lsn, Timeline};
use serde::{Deserialize, Serialize};

use crate::{place::Stored, restore::Kept, settings::Side};

/// Raised when a reader of before could not read it any more: 2 has CRC-32C in the place of
/// SHA-256.
pub const FORMAT: u32 = 2;

/// All that is known of a finished backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// See [`FORMAT`].
    pub format: u32,
    /// What has written it.
    pub program: String,
    /// Which side was copied.
    pub from: Side,
    /// Which server of it.
    pub server: String,
    /// When it began.
    pub started: Timestamp,
    /// When it was proved.
    pub finished: Timestamp,
    /// The server that was copied.
    pub identity: Identity,
    /// Where a recovery begins.
    pub start_lsn: Lsn,
    /// What it must reach.
    pub end_lsn: Lsn,
    /// How far the WAL beside it goes.
    pub wal_end_lsn: Lsn,
    /// The source's last record, when the backup was taken after a cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutAt>,
    /// The server has checked each page that it read.
    pub page_checksums: bool,
    /// How it was proved.
    pub verified: Verified,
    /// How the archive is compressed.
    pub compression: Compression,
    /// Files in it.
    pub files: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// The files of the backup.
    pub objects: Vec<Stored>,
}

impl Complete {
    /// What is kept of it.
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            objects: &self.objects,
            compression: self.compression,
            bytes: self.bytes,
        }
    }
}

/// The end of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutAt {
    /// End of its last record.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
}

/// How a backup was proved; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// Every file was compared with the manifest as it came.
    Stream,
    /// The same with what was read back from where it is kept.
    Read,
    /// It was unpacked, and the files on the disk compared.
    Restore,
}

impl Verified {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Stream => "every file compared with the manifest while it came",
            Self::Read => "read back from where it is kept, every file compared with the manifest",
            Self::Restore => {
                "read back and unpacked, every file on the disk compared with the manifest"
            }
        }
    }
}
