//! Where a backup is stored: a folder of a volume, or a prefix in a bucket.
//!
//! Both hold the same few files. A backup is finished once `complete.json` exists, which is written
//! last and lists the other files with their checksums. Until then a marker file says that it is
//! unfinished: the next run removes its files and starts again.

mod bucket;
mod crypto;
mod directory;
mod http;
mod upload;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use job::error::{Error, Result};
use platform::postgres::replication::base_backup::Compression;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{RwLock, RwLockWriteGuard},
    time::timeout,
};

pub use bucket::Bucket;
pub use directory::Directory;

use crate::{
    pipe::{PipeReader, PipeWriter},
    settings::{Destination, Settings},
};

/// The last file.
pub const COMPLETE: &str = "complete.json";
/// The WAL of the backup.
pub const WAL: &str = "pg_wal.tar";
/// The server's backup manifest.
pub const MANIFEST: &str = "backup_manifest";
/// All files that a backup may have, except [`COMPLETE`].
const NAMES: [&str; 6] = [
    "base.tar",
    "base.tar.zst",
    "base.tar.lz4",
    "base.tar.gz",
    WAL,
    MANIFEST,
];
/// Suffix of a file in a directory until it is whole.
const PARTIAL: &str = ".partial";
/// The marker of an unfinished backup. It exists from before the first file until the last one.
/// Without it, files of these names belong to another program, such as pg_basebackup.
pub const UNFINISHED: &str = "complete.json.partial";
const UNFINISHED_TEXT: &str = "A backup is being written here, or its run was killed. The next \
    run of final-backup removes it.\n";

/// Longest wait for writers that were told to stop. Shorter than the pod's grace period.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(20);

/// A lock that writers hold shared for as long as their data may still arrive. A part that reaches
/// a bucket after its upload was aborted stays in the store, and a removed file could come back.
type PendingWrites = Arc<RwLock<()>>;

/// Waits until all pending writes have ended, and blocks new ones while the guard is held, so that
/// removed files stay removed. None after [`WRITERS_TIMEOUT`], if the storage hangs.
async fn wait_for_pending_writes(
    pending_writes: &PendingWrites,
) -> Option<RwLockWriteGuard<'_, ()>> {
    timeout(WRITERS_TIMEOUT, pending_writes.write()).await.ok()
}

/// A file of a backup as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Name of the file.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32C in eight hexadecimal digits. The backup manifest and S3 use the same checksum, and
    /// processors have an instruction for it.
    pub crc32c: String,
}

impl StoredFile {
    /// A file whose size and CRC-32C were computed while it was written or read.
    pub fn new(name: &str, bytes: u64, crc: u32) -> Self {
        Self {
            name: name.to_owned(),
            bytes,
            crc32c: format!("{crc:08x}"),
        }
    }
}

/// The files of a whole backup.
pub struct StoredBackup {
    /// The archive, the WAL and the manifest.
    pub objects: Vec<StoredFile>,
    /// Compression of the archive.
    pub compression: Compression,
    /// Size of the archive's files in bytes, uncompressed.
    pub bytes: u64,
}

/// A file that the storage lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the file.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A storage of either kind.
#[derive(Clone)]
pub enum StorageTarget {
    /// A folder of a mounted volume.
    Directory(Directory),
    /// A prefix in a bucket.
    Bucket(Bucket),
}

impl StorageTarget {
    /// The storage that the settings name. Nothing is read or written yet.
    ///
    /// # Errors
    /// Config if a file with a key or a CA cannot be read.
    pub fn open(settings: &Settings) -> Result<Self> {
        Ok(match &settings.backup_to {
            Destination::Directory(volume) => Self::Directory(Directory::new(
                volume,
                &settings.backup_name,
                settings.backup_keep_free_mb,
            )),
            Destination::Bucket { bucket, prefix } => {
                Self::Bucket(Bucket::new(bucket, prefix, settings)?)
            }
        })
    }

    /// Lists the files, sorted by name.
    ///
    /// # Errors
    /// Config if the storage does not exist or denies access.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = match self {
            Self::Directory(directory) => directory.entries()?,
            Self::Bucket(bucket) => bucket.entries().await?,
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Reads a small file as a whole; None if it does not exist.
    ///
    /// # Errors
    /// As [`StorageTarget::entries`].
    pub async fn read_small(&self, name: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Directory(directory) => directory.read_small(name),
            Self::Bucket(bucket) => bucket.read_small(name).await,
        }
    }

    /// Writes the marker of an unfinished backup, which also checks that the storage is writable.
    ///
    /// # Errors
    /// Config if it is not; Refused if a volume has too little free space.
    pub async fn prepare(&self) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.prepare(),
            Self::Bucket(bucket) => bucket.prepare().await,
        }
    }

    /// Stores a stream as a file, and returns once the file is durable. `bytes` is its estimated
    /// size, or 0 if that is unknown.
    ///
    /// # Errors
    /// Refused if the volume is nearly full; Transient if the stream was cut off. The file does not
    /// exist then.
    pub async fn store(&self, name: &str, reader: PipeReader, bytes: u64) -> Result<StoredFile> {
        match self {
            Self::Directory(directory) => directory.store(name, reader).await,
            Self::Bucket(bucket) => bucket.store(name, reader, bytes).await,
        }
    }

    /// Writes the last file atomically, and removes the marker.
    ///
    /// # Errors
    /// As [`StorageTarget::store`].
    pub async fn finish(&self, complete: Bytes) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.finish(&complete),
            Self::Bucket(bucket) => bucket.finish(complete).await,
        }
    }

    /// Streams a file.
    ///
    /// # Errors
    /// Unsafe if it does not exist.
    pub async fn read(&self, name: &str, writer: PipeWriter) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.read(name, writer).await,
            Self::Bucket(bucket) => bucket.read(name, writer).await,
        }
    }

    /// Aborts uploads that were never completed. Call it once all files of the backup are whole.
    ///
    /// # Errors
    /// As [`StorageTarget::entries`].
    pub async fn abort_uploads(&self) -> Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Bucket(bucket) => bucket.abort_uploads().await,
        }
    }

    /// Removes the files of an unfinished run, this one or an earlier one, and the marker last.
    ///
    /// # Errors
    /// As [`StorageTarget::entries`]; Transient if the backup is finished by now, which is kept.
    pub async fn remove_unfinished(&self) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.remove_unfinished().await,
            Self::Bucket(bucket) => bucket.remove_unfinished().await,
        }
    }
}

impl fmt::Display for StorageTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => directory.fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// Whether this program writes files of this name. Other files are never removed.
pub fn is_backup_file(name: &str) -> bool {
    let whole = name.strip_suffix(PARTIAL).unwrap_or(name);
    whole == COMPLETE || NAMES.contains(&whole)
}

/// The files of an unfinished backup, in the order in which to remove them.
fn unfinished_files(entries: Vec<Entry>, storage: &impl fmt::Display) -> Result<Vec<String>> {
    if entries.iter().any(|entry| entry.name == COMPLETE) {
        return Err(
            Error::transient(format!("{storage} holds a finished backup by now"))
                .hint("run the step again to verify that backup"),
        );
    }
    let mut names: Vec<String> = entries
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| is_backup_file(name))
        .collect();
    names.sort_by_key(|name| name == UNFINISHED);
    Ok(names)
}

fn file_vanished(name: &str) -> Error {
    Error::manual_intervention(format!("{name} has vanished"))
        .hint("find out what removed it; take another backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_a_backups_files_are_recognised() {
        for name in [
            "base.tar",
            "base.tar.zst",
            "base.tar.lz4.partial",
            "pg_wal.tar",
            "backup_manifest",
            "complete.json",
        ] {
            assert!(is_backup_file(name), "{name}");
        }
        for other in [
            "base.tar.zst.old",
            "base",
            "notes.txt",
            "16385.tar",
            "complete.json.bak",
            "lost+found",
        ] {
            assert!(!is_backup_file(other), "{other}");
        }
    }
}
