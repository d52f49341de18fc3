//! Where a backup is kept: a folder of a volume, or a prefix in a bucket.
//!
//! In both a backup is the same few files, and is finished when `complete.json` is there, which is
//! written last and names the others with their checksums. Until then a mark says that it is not:
//! the next run removes what is there and begins anew.

mod bucket;
mod crypto;
mod directory;
mod http;
mod upload;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use job::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{RwLock, RwLockWriteGuard},
    time::timeout,
};

pub use bucket::Bucket;
pub use directory::Directory;

use crate::{
    flow::{Drain, Feed},
    settings::{Destination, Settings},
};

/// The last file.
pub const COMPLETE: &str = "complete.json";
/// The WAL that belongs to it.
pub const WAL: &str = "pg_wal.tar";
/// What the server says is in it.
pub const MANIFEST: &str = "backup_manifest";
/// All other files that a backup may have.
const NAMES: [&str; 6] = [
    "base.tar",
    "base.tar.zst",
    "base.tar.lz4",
    "base.tar.gz",
    WAL,
    MANIFEST,
];
/// What a file in a directory is called until it is whole.
const PARTIAL: &str = ".partial";
/// There from before the first file of a backup until the last: without it files of these names are
/// somebody else's, as pg_basebackup's.
pub const UNFINISHED: &str = "complete.json.partial";
const UNFINISHED_TEXT: &str = "A backup is being written here, or was until its run was killed. \
    The next run of final-backup removes it.\n";

/// Longest wait for writers that have been told to end; within the grace of the pod.
const WRITERS_END: Duration = Duration::from_secs(20);

/// Writers hold it shared for as long as something of theirs may still arrive: a part that comes to
/// a bucket after its upload was aborted stays in the store, and a file is there again.
type OnTheirWay = Arc<RwLock<()>>;

/// Waits until nobody writes any more, and keeps it so while the guard is held: what is removed
/// stays removed. A place that hangs is not waited for.
async fn none_on_its_way(on_their_way: &OnTheirWay) -> Option<RwLockWriteGuard<'_, ()>> {
    timeout(WRITERS_END, on_their_way.write()).await.ok()
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its CRC-32C in eight hexadecimal digits: what the manifest and S3 sum files with, and the
    /// processor itself.
    pub crc32c: String,
}

impl Stored {
    /// One that was summed as it went by.
    pub fn new(name: &str, bytes: u64, crc: u32) -> Self {
        Self {
            name: name.to_owned(),
            bytes,
            crc32c: format!("{crc:08x}"),
        }
    }
}

/// A file as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// One of the two.
#[derive(Clone)]
pub enum Place {
    /// A mounted volume.
    Directory(Directory),
    /// S3.
    Bucket(Bucket),
}

impl Place {
    /// Where the settings say; nothing is read or written yet.
    ///
    /// # Errors
    /// Config for a file that cannot be read.
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

    /// What is there, in the order of names.
    ///
    /// # Errors
    /// Config when there is no such place, or no way in.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = match self {
            Self::Directory(directory) => directory.entries()?,
            Self::Bucket(bucket) => bucket.entries().await?,
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// A small file, whole; None when it is not there.
    ///
    /// # Errors
    /// As [`Place::entries`].
    pub async fn small(&self, name: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Directory(directory) => directory.small(name),
            Self::Bucket(bucket) => bucket.small(name).await,
        }
    }

    /// Proves that something can be written here, by the mark of an unfinished backup.
    ///
    /// # Errors
    /// Config when it cannot.
    pub async fn prepare(&self) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.prepare(),
            Self::Bucket(bucket) => bucket.prepare().await,
        }
    }

    /// Takes a stream as a file of about `bytes` (0: nobody knows), and returns when it is safe.
    ///
    /// # Errors
    /// Refused when the volume is nearly full; Transient when the stream was cut off. The file is
    /// not there then.
    pub async fn store(&self, name: &str, drain: Drain, bytes: u64) -> Result<Stored> {
        match self {
            Self::Directory(directory) => directory.store(name, drain).await,
            Self::Bucket(bucket) => bucket.store(name, drain, bytes).await,
        }
    }

    /// Writes the last file, which is there whole or not at all, and takes the mark away.
    ///
    /// # Errors
    /// As [`Place::store`].
    pub async fn finish(&self, complete: Bytes) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.finish(&complete),
            Self::Bucket(bucket) => bucket.finish(complete).await,
        }
    }

    /// Streams a file.
    ///
    /// # Errors
    /// Unsafe when it is not there.
    pub async fn read(&self, name: &str, feed: Feed) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.read(name, feed).await,
            Self::Bucket(bucket) => bucket.read(name, feed).await,
        }
    }

    /// Leaves nothing under way: all that was wanted is whole now.
    ///
    /// # Errors
    /// As [`Place::entries`].
    pub async fn settle(&self) -> Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Bucket(bucket) => bucket.abort_all().await,
        }
    }

    /// Removes what an unfinished run has left, this one or one before; the mark goes last.
    ///
    /// # Errors
    /// As [`Place::entries`]; Transient when it is a finished backup by now, which is kept.
    pub async fn clear(&self) -> Result<()> {
        match self {
            Self::Directory(directory) => directory.clear().await,
            Self::Bucket(bucket) => bucket.clear().await,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => directory.fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// Whether this program may have written a file of this name: only such are ever removed.
pub fn is_ours(name: &str) -> bool {
    let whole = name.strip_suffix(PARTIAL).unwrap_or(name);
    whole == COMPLETE || NAMES.contains(&whole)
}

/// What is to be removed, in this order.
fn removable(entries: Vec<Entry>, place: &impl fmt::Display) -> Result<Vec<String>> {
    if entries.iter().any(|entry| entry.name == COMPLETE) {
        return Err(
            Error::transient(format!("{place} holds a finished backup by now"))
                .hint("run the step again: it proves that one"),
        );
    }
    let mut names: Vec<String> = entries
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| is_ours(name))
        .collect();
    names.sort_by_key(|name| name == UNFINISHED);
    Ok(names)
}

fn vanished(name: &str) -> Error {
    Error::contradiction(format!("{name} has vanished"))
        .hint("find out who removed it; take another backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_backup_are_ours() {
        for ours in [
            "base.tar",
            "base.tar.zst",
            "base.tar.lz4.partial",
            "pg_wal.tar",
            "backup_manifest",
            "complete.json",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "base.tar.zst.old",
            "base",
            "notes.txt",
            "16385.tar",
            "complete.json.bak",
            "lost+found",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
