//! VERIFY=restore: reads the backup back from its storage, unpacks it if there is enough space, and
//! compares it with the backup manifest once more.

use std::{
    fs, io,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crc32c::crc32c_append;
use job::{
    error::{Context as _, Error, Result},
    quantity::size,
    report::Reporter,
};
use platform::postgres::replication::base_backup::Compression;
use rustix::fs::statvfs;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{
    archive::{self, Files},
    backup_manifest,
    complete::Verified,
    pipe::{BlockingReader, joined, pipe, root_cause},
    progress::Progress,
    storage::{MANIFEST, StorageTarget, StoredBackup, StoredFile, WAL},
};

/// How often to check whether a progress line is due.
const TICK: Duration = Duration::from_secs(1);

/// Where the backup may be unpacked.
pub struct Scratch<'a> {
    /// An empty volume.
    pub folder: &'a Path,
    /// Percentage of the volume to leave free. It is on the node's disk, and the kubelet evicts
    /// pods, this one among them, when that fills up (nodefs.available, 10 % by default).
    pub keep_free_percent: u64,
}

/// Reads a backup back and compares it with its manifest. Returns how thoroughly it was verified.
///
/// # Errors
/// Unsafe if something differs.
pub async fn verify(
    storage: &StorageTarget,
    backup: &StoredBackup,
    scratch: &Scratch<'_>,
    report: &Reporter,
) -> Result<Verified> {
    let folder = match check_space(scratch, backup)? {
        Space::Enough => Some(empty_folder(scratch.folder)?),
        Space::TooLittle(reason) => {
            report.warning(
                "NoRoomToUnpack",
                format!("not unpacked: {reason}; read back and compared in the stream instead"),
            );
            None
        }
    };
    let read = Arc::new(AtomicU64::new(0));
    let total: u64 = backup.objects.iter().map(|object| object.bytes).sum();
    let outcome = with_progress(
        compare(storage, backup, folder.clone(), &read),
        &read,
        total,
        report,
    )
    .await;
    if let Some(folder) = &folder {
        // The volume is deleted with the pod, so a failure does not matter.
        let _ = fs::remove_dir_all(folder);
    }
    outcome.context("verifying the backup")?;
    Ok(if folder.is_some() {
        Verified::Restore
    } else {
        Verified::Read
    })
}

enum Space {
    Enough,
    TooLittle(String),
}

fn check_space(scratch: &Scratch<'_>, backup: &StoredBackup) -> Result<Space> {
    let volume = statvfs(scratch.folder)
        .map_err(io::Error::from)
        .map_err(|error| {
            Error::config(format!("reading the size of {}", scratch.folder.display()))
                .caused_by(error)
                .hint("SCRATCH_DIR is where the Job's manifest mounts an empty volume")
        })?;
    let wal: u64 = backup
        .objects
        .iter()
        .filter(|object| object.name == WAL)
        .map(|object| object.bytes)
        .sum();
    Ok(compare_space(
        backup.bytes + wal,
        volume.f_bavail * volume.f_frsize,
        volume.f_blocks * volume.f_frsize / 100 * scratch.keep_free_percent,
    ))
}

/// All in bytes.
fn compare_space(needed: u64, free: u64, keep_free: u64) -> Space {
    if free >= needed + keep_free {
        return Space::Enough;
    }
    Space::TooLittle(format!(
        "{} are needed besides the {} to keep free (SCRATCH_KEEP_FREE_PERCENT), and {} are free",
        size(needed),
        size(keep_free),
        size(free)
    ))
}

fn empty_folder(scratch: &Path) -> Result<PathBuf> {
    let folder = scratch.join("restored");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(&folder),
    }
    .map_err(|error| {
        Error::config(format!("emptying {}", folder.display()))
            .caused_by(error)
            .hint("SCRATCH_DIR must be writable for the user of the pod")
    })?;
    Ok(folder)
}

async fn with_progress<T>(
    work: impl Future<Output = T>,
    done: &AtomicU64,
    total: u64,
    report: &Reporter,
) -> T {
    let mut progress = Progress::new("reading back", total, Instant::now());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = ticks.tick() => {
                if let Some(line) = progress.line(Instant::now(), done.load(Ordering::Relaxed)) {
                    report.progress(line);
                }
            }
        }
    }
}

async fn compare(
    storage: &StorageTarget,
    backup: &StoredBackup,
    folder: Option<PathBuf>,
    done: &Arc<AtomicU64>,
) -> Result<()> {
    let (mut files, mut manifest) = (None, None);
    for object in &backup.objects {
        let (folder, compression) = (folder.clone(), backup.compression);
        match object.name.as_str() {
            MANIFEST => manifest = Some(object),
            WAL => {
                let unpack = folder.map(|folder| folder.join("pg_wal"));
                let read = move |reader: &mut ChecksumReader| {
                    let reader = BufReader::new(reader);
                    archive::read_archive(reader, Compression::None, unpack.as_deref())
                };
                drop(read_back(storage, object, done, read).await?);
            }
            _ => {
                let read = move |reader: &mut ChecksumReader| {
                    let reader = BufReader::new(reader);
                    archive::read_archive(reader, compression, folder.as_deref())
                };
                files = Some(read_back(storage, object, done, read).await?);
            }
        }
    }
    let (Some(mut files), Some(manifest)) = (files, manifest) else {
        return Err(Error::manual_intervention(
            "the backup has no archive, or no manifest",
        ));
    };
    if let Some(folder) = folder {
        files = joined(spawn_blocking(move || Files::in_directory(&folder))).await?;
    }
    read_back(
        storage,
        manifest,
        done,
        move |reader: &mut ChecksumReader| backup_manifest::compare(reader, files),
    )
    .await
    .map(drop)
}

/// Reads one stored file to its end with `read`, and compares its size and checksum with what was
/// written.
async fn read_back<T: Send + 'static>(
    storage: &StorageTarget,
    stored: &StoredFile,
    done: &Arc<AtomicU64>,
    read: impl FnOnce(&mut ChecksumReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (writer, reader) = pipe();
    let mut reader = ChecksumReader {
        reader: reader.into_blocking(),
        crc: 0,
        bytes: 0,
        done: Arc::clone(done),
    };
    let thread = move || read(&mut reader).map(|content| (content, reader.crc, reader.bytes));
    let outcome = match tokio::join!(
        storage.read(&stored.name, writer),
        joined(spawn_blocking(thread))
    ) {
        (Ok(()), outcome) => outcome,
        (Err(sending), Err(reading)) => Err(root_cause(reading, sending)),
        (Err(sending), Ok(_)) => Err(sending),
    };
    let (content, crc, bytes) = outcome.context(format!("reading {}", stored.name))?;
    if *stored != StoredFile::new(&stored.name, bytes, crc) {
        return Err(Error::manual_intervention(format!(
            "{} differs from what was written",
            stored.name
        ))
        .hint(
            "the storage returned other data than it was given; take another backup to another \
                 storage",
        ));
    }
    Ok(content)
}

/// Computes size and CRC-32C of what is read, and adds the bytes to the total progress.
struct ChecksumReader {
    reader: BlockingReader,
    crc: u32,
    bytes: u64,
    done: Arc<AtomicU64>,
}

impl Read for ChecksumReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.crc = crc32c_append(self.crc, &buffer[..read]);
        self.bytes += read as u64;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_node_is_not_filled() {
        let enough = |needed, free| {
            let space = compare_space(needed, free, 15_000_000_000);
            matches!(space, Space::Enough)
        };
        assert!(enough(10_000_000_000, 25_000_000_000));
        assert!(!enough(10_000_000_000, 24_000_000_000));
        let space = compare_space(40_000_000_000, 30_000_000_000, 15_000_000_000);
        let Space::TooLittle(reason) = space else {
            panic!("there is too little space")
        };
        assert_eq!(
            reason,
            "40.0 GB are needed besides the 15.0 GB to keep free (SCRATCH_KEEP_FREE_PERCENT), and \
             30.0 GB are free"
        );
    }
}
