//! VERIFY=restore: what is kept is read back, unpacked where there is room, and compared with the
//! manifest once more.

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
    complete::Verified,
    flow::{Reader, cause, joined, pipe},
    manifest,
    place::{MANIFEST, Place, Stored, WAL},
    progress::Progress,
};

const TICK: Duration = Duration::from_secs(1);

/// What is to be proved.
pub struct Kept<'a> {
    /// Its files.
    pub objects: &'a [Stored],
    /// Compression of the archive.
    pub compression: Compression,
    /// Bytes of its files, unpacked.
    pub bytes: u64,
}

/// Where it may be unpacked.
pub struct Scratch<'a> {
    /// An empty volume.
    pub folder: &'a Path,
    /// How much of it stays free: a node whose disk fills up begins to evict pods, this one among
    /// them (the kubelet's nodefs.available, 10 % by default).
    pub keep_free_percent: u64,
}

/// Reads a backup back and compares; says how far that went.
///
/// # Errors
/// Unsafe when something differs.
pub async fn prove(
    place: &Place,
    kept: &Kept<'_>,
    scratch: &Scratch<'_>,
    report: &Reporter,
) -> Result<Verified> {
    let folder = match room(scratch, kept)? {
        Room::Enough => Some(emptied(scratch.folder)?),
        Room::Less(why) => {
            report.warning(
                "NoRoomToUnpack",
                format!("not unpacked: {why}; read back and compared in the stream instead"),
            );
            None
        }
    };
    let read = Arc::new(AtomicU64::new(0));
    let total: u64 = kept.objects.iter().map(|object| object.bytes).sum();
    let outcome = narrated(
        compare(place, kept, folder.clone(), &read),
        &read,
        total,
        report,
    )
    .await;
    if let Some(folder) = &folder {
        // What cannot be removed ends with the pod.
        let _ = fs::remove_dir_all(folder);
    }
    outcome.context("proving the backup")?;
    Ok(if folder.is_some() {
        Verified::Restore
    } else {
        Verified::Read
    })
}

enum Room {
    Enough,
    Less(String),
}

fn room(scratch: &Scratch<'_>, kept: &Kept<'_>) -> Result<Room> {
    let found = statvfs(scratch.folder)
        .map_err(io::Error::from)
        .map_err(|error| {
            Error::config(format!("looking at {}", scratch.folder.display()))
                .caused_by(error)
                .hint("SCRATCH_DIR is where the Job's manifest mounts an empty volume")
        })?;
    let wal: u64 = kept
        .objects
        .iter()
        .filter(|object| object.name == WAL)
        .map(|object| object.bytes)
        .sum();
    Ok(enough(
        kept.bytes + wal,
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize / 100 * scratch.keep_free_percent,
    ))
}

fn enough(needed: u64, free: u64, stays: u64) -> Room {
    if free >= needed + stays {
        return Room::Enough;
    }
    Room::Less(format!(
        "{} are needed beside the {} that a disk keeps free, and {} are free",
        size(needed),
        size(stays),
        size(free)
    ))
}

fn emptied(scratch: &Path) -> Result<PathBuf> {
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

async fn narrated<T>(
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
            _ = ticks.tick() => if let Some(line) = progress.line(Instant::now(), done.load(Ordering::Relaxed)) {
                report.progress(line);
            },
        }
    }
}

async fn compare(
    place: &Place,
    kept: &Kept<'_>,
    folder: Option<PathBuf>,
    done: &Arc<AtomicU64>,
) -> Result<()> {
    let (mut files, mut manifest) = (None, None);
    for object in kept.objects {
        let (folder, compression) = (folder.clone(), kept.compression);
        match object.name.as_str() {
            MANIFEST => manifest = Some(object),
            WAL => {
                let unpack = folder.map(|folder| folder.join("pg_wal"));
                let look = move |reader: &mut Summing| {
                    archive::look_through(
                        BufReader::new(reader),
                        Compression::None,
                        unpack.as_deref(),
                    )
                };
                drop(read_back(place, object, done, look).await?);
            }
            _ => {
                let look = move |reader: &mut Summing| {
                    archive::look_through(BufReader::new(reader), compression, folder.as_deref())
                };
                files = Some(read_back(place, object, done, look).await?);
            }
        }
    }
    let (Some(mut files), Some(manifest)) = (files, manifest) else {
        return Err(Error::contradiction(
            "the backup has no archive, or no manifest",
        ));
    };
    if let Some(folder) = folder {
        files = joined(spawn_blocking(move || Files::below(&folder))).await?;
    }
    read_back(place, manifest, done, move |reader: &mut Summing| {
        manifest::compare(reader, files)
    })
    .await
    .map(drop)
}

/// Reads one file to its end, and compares what came with what was written.
async fn read_back<T: Send + 'static>(
    place: &Place,
    stored: &Stored,
    done: &Arc<AtomicU64>,
    look: impl FnOnce(&mut Summing) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (feed, drain) = pipe();
    let mut summing = Summing {
        reader: drain.reader(),
        crc: 0,
        bytes: 0,
        done: Arc::clone(done),
    };
    let thread = move || look(&mut summing).map(|looked| (looked, summing.crc, summing.bytes));
    let looked = match tokio::join!(
        place.read(&stored.name, feed),
        joined(spawn_blocking(thread))
    ) {
        (Ok(()), looked) => looked,
        (Err(read), Err(looked)) => Err(cause(looked, read)),
        (Err(read), Ok(_)) => Err(read),
    };
    let (looked, crc, bytes) = looked.context(format!("reading {}", stored.name))?;
    if *stored != Stored::new(&stored.name, bytes, crc) {
        return Err(
            Error::contradiction(format!("{} is not what was written", stored.name)).hint(
                "its place does not keep what it is given; take another backup to another place",
            ),
        );
    }
    Ok(looked)
}

/// Sums what is read.
struct Summing {
    reader: Reader,
    crc: u32,
    bytes: u64,
    done: Arc<AtomicU64>,
}

impl Read for Summing {
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
    fn a_nodes_disk_is_not_filled() {
        let judged = |needed, free| matches!(enough(needed, free, 15_000_000_000), Room::Enough);
        assert!(judged(10_000_000_000, 25_000_000_000));
        assert!(!judged(10_000_000_000, 24_000_000_000));
        let Room::Less(why) = enough(40_000_000_000, 30_000_000_000, 15_000_000_000) else {
            panic!("there is no room")
        };
        assert_eq!(
            why,
            "40.0 GB are needed beside the 15.0 GB that a disk keeps free, and 30.0 GB are free"
        );
    }
}
