//! A folder of a mounted volume.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use crc32c::crc32c_append;
use job::{
    error::{Context as _, Error, Result},
    quantity::size,
};
use rustix::fs::{Advice, fadvise, statvfs};

use super::{
    COMPLETE, Entry, OnTheirWay, PARTIAL, Stored, UNFINISHED, UNFINISHED_TEXT, none_on_its_way,
    removable, vanished,
};
use crate::flow::{CHUNK_BYTES, Drain, Feed, joined};

/// After so many bytes space is looked at, and the kernel begins to write them to the disk.
const LOOK_BYTES: u64 = 16 << 20;

/// A folder of a volume.
#[derive(Clone, Debug)]
pub struct Directory {
    volume: PathBuf,
    folder: PathBuf,
    keep_free: u64,
    on_their_way: OnTheirWay,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folder.display().fmt(f)
    }
}

impl Directory {
    pub(super) fn new(volume: &Path, name: &str, keep_free_mb: u64) -> Self {
        Self {
            volume: volume.to_owned(),
            folder: volume.join(name),
            keep_free: keep_free_mb * 1_000_000,
            on_their_way: Arc::default(),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        // A volume that is not mounted must not be taken for one that is empty.
        if !self.volume.is_dir() {
            return Err(
                Error::config(format!("{} is not a directory", self.volume.display()))
                    .hint("mount a volume there (components/backup-volume), or correct BACKUP_TO"),
            );
        }
        let list = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| self.no_way_in(error))?,
        };
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok(Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                bytes: entry.metadata()?.len(),
            })
        };
        list.map(entry).collect()
    }

    fn no_way_in(&self, error: io::Error) -> Error {
        Error::config(format!("using {}", self.folder.display()))
            .caused_by(error)
            .hint("the volume must be writable for the user and group 65532 of the pod")
    }

    pub(super) fn small(&self, name: &str) -> Result<Option<Bytes>> {
        match fs::read(self.folder.join(name)) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.no_way_in(error)),
        }
    }

    pub(super) fn prepare(&self) -> Result<()> {
        self.room(0)?;
        fs::create_dir_all(&self.folder).map_err(|error| self.no_way_in(error))?;
        let marked = self
            .mark(UNFINISHED_TEXT.as_bytes())
            .and_then(|()| self.sync());
        marked.map_err(|error| self.no_way_in(error))
    }

    /// Refuses before the volume is full: a volume that others use, too, must not be filled, and a
    /// full one cannot be tidied up.
    fn room(&self, wanted: u64) -> Result<()> {
        let free = free_bytes(&self.volume).map_err(|error| self.no_way_in(error))?;
        if free >= self.keep_free + wanted {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{} has only {} free, and {} shall stay free",
            self.volume.display(),
            size(free),
            size(self.keep_free)
        ))
        .hint(
            "enlarge the volume, or use a bucket (components/s3); BACKUP_KEEP_FREE_MB says how \
            much stays free",
        ))
    }

    pub(super) async fn store(&self, name: &str, drain: Drain) -> Result<Stored> {
        let (directory, name) = (self.clone(), name.to_owned());
        // A thread cannot be dropped: it is at work until it has seen that nothing more comes.
        let at_work = Arc::clone(&self.on_their_way).read_owned().await;
        let thread = move || {
            let _at_work = at_work;
            let partial = directory.folder.join(format!("{name}{PARTIAL}"));
            let stored = directory.receive(&name, &partial, drain);
            if stored.is_err() {
                let _ = fs::remove_file(&partial);
            }
            stored
        };
        joined(tokio::task::spawn_blocking(thread)).await
    }

    fn receive(&self, name: &str, partial: &Path, mut drain: Drain) -> Result<Stored> {
        let doing = || format!("writing {}", self.folder.join(name).display());
        let mut file = File::create(partial).map_err(|error| self.no_way_in(error))?;
        let (mut crc, mut bytes, mut looked) = (0, 0, 0);
        while let Some(chunk) = drain.blocking_next()? {
            crc = crc32c_append(crc, &chunk);
            file.write_all(&chunk)
                .map_err(|error| self.full(error))
                .context(doing())?;
            bytes += chunk.len() as u64;
            if bytes - looked >= LOOK_BYTES {
                self.room(LOOK_BYTES)?;
                to_the_disk(&file);
                looked = bytes;
            }
        }
        file.sync_all()
            .map_err(|error| self.full(error))
            .context(doing())?;
        // What is read back must come from the disk.
        to_the_disk(&file);
        fs::rename(partial, self.folder.join(name))
            .and_then(|()| self.sync())
            .context(doing())?;
        Ok(Stored::new(name, bytes, crc))
    }

    fn full(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::refused(format!("{} is full", self.volume.display()))
                    .caused_by(error)
                    .hint("enlarge the volume, or use a bucket (components/s3)")
            }
            _ => error.into(),
        }
    }

    /// Makes names as durable as what they name.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn mark(&self, content: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.folder.join(UNFINISHED))?;
        file.write_all(content)?;
        file.sync_all()
    }

    /// The mark becomes the last file.
    pub(super) fn finish(&self, complete: &[u8]) -> Result<()> {
        let last = self.folder.join(COMPLETE);
        self.mark(complete)
            .and_then(|()| fs::rename(self.folder.join(UNFINISHED), &last))
            .and_then(|()| self.sync())
            .map_err(|error| self.full(error))
            .context(format!("writing {}", last.display()))
    }

    pub(super) async fn read(&self, name: &str, feed: Feed) -> Result<()> {
        let (path, name) = (self.folder.join(name), name.to_owned());
        let thread = move || {
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(vanished(&name));
                }
                other => other.context(format!("reading {}", path.display()))?,
            };
            loop {
                let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
                let read = file
                    .read(&mut chunk)
                    .context(format!("reading {}", path.display()))?;
                // Who does not take any more knows why.
                if read == 0 {
                    let _ = feed.blocking_end();
                    return Ok(());
                }
                chunk.truncate(read);
                if feed.blocking_send(chunk.freeze()).is_err() {
                    return Ok(());
                }
            }
        };
        joined(tokio::task::spawn_blocking(thread)).await
    }

    pub(super) async fn clear(&self) -> Result<()> {
        let _none_on_its_way = none_on_its_way(&self.on_their_way).await;
        for name in removable(self.entries()?, self)? {
            fs::remove_file(self.folder.join(name)).map_err(|error| self.no_way_in(error))?;
        }
        // Only when nothing else is in it.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

/// Begins to write to the disk what is in memory only, and forgets what is on it
/// (posix_fadvise(2)). Best effort: the node's memory is for what its databases read, and the wait
/// for the last of it at the end is short.
fn to_the_disk(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// What an unprivileged user may still write.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::pipe;

    fn place(keep_free_mb: u64) -> (tempfile::TempDir, Directory) {
        let volume = tempfile::tempdir().unwrap();
        let directory = Directory::new(volume.path(), "final", keep_free_mb);
        (volume, directory)
    }

    fn names(directory: &Directory) -> Vec<String> {
        directory
            .entries()
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect()
    }

    #[tokio::test]
    async fn a_stream_becomes_a_file_when_its_end_has_come() {
        let (_volume, directory) = place(0);
        directory.prepare().unwrap();
        let (feed, drain) = pipe();
        let send = async {
            feed.send(Bytes::from_static(b"123456789")).await.unwrap();
            feed.end().await.unwrap();
        };
        let (stored, ()) = tokio::join!(directory.store("base.tar", drain), send);
        let stored = stored.unwrap();
        assert_eq!(stored.bytes, 9);
        assert_eq!(stored.crc32c, "e3069283", "the check value of CRC-32C");
        assert_eq!(
            directory.small("base.tar").unwrap().unwrap(),
            Bytes::from_static(b"123456789")
        );
    }

    #[tokio::test]
    async fn of_a_stream_that_was_cut_off_nothing_is_left() {
        let (_volume, directory) = place(0);
        directory.prepare().unwrap();
        let (feed, drain) = pipe();
        let send = async {
            feed.send(Bytes::from_static(b"abc")).await.unwrap();
            drop(feed);
        };
        let (stored, ()) = tokio::join!(directory.store("base.tar", drain), send);
        assert!(stored.is_err());
        assert_eq!(names(&directory), [UNFINISHED]);
    }

    #[test]
    fn a_volume_that_is_nearly_full_is_refused_before_anything_is_written() {
        let (volume, directory) = place(u64::MAX / 1_000_000);
        let error = directory.prepare().unwrap_err();
        assert!(error.to_string().contains("shall stay free"), "{error}");
        assert_eq!(error.kind(), job::error::ErrorKind::Refused);
        let missing = Directory::new(&volume.path().join("none"), "final", 0);
        assert!(
            missing
                .entries()
                .unwrap_err()
                .to_string()
                .contains("is not a directory")
        );
    }

    #[tokio::test]
    async fn only_what_is_ours_is_removed() {
        let (_volume, directory) = place(0);
        directory.prepare().unwrap();
        for name in ["base.tar.zst.partial", "backup_manifest", "notes.txt"] {
            fs::write(directory.folder.join(name), "").unwrap();
        }
        directory.clear().await.unwrap();
        assert_eq!(names(&directory), ["notes.txt"]);
        fs::remove_file(directory.folder.join("notes.txt")).unwrap();
        directory.clear().await.unwrap();
        assert!(!directory.folder.exists());
    }

    #[tokio::test]
    async fn a_finished_backup_is_never_removed() {
        let (_volume, directory) = place(0);
        directory.prepare().unwrap();
        fs::write(directory.folder.join("base.tar.zst"), "").unwrap();
        directory.finish(b"{}").unwrap();
        let error = directory.clear().await.unwrap_err();
        assert!(
            error.to_string().contains("a finished backup by now"),
            "{error}"
        );
        let mut names = names(&directory);
        names.sort();
        assert_eq!(names, ["base.tar.zst", COMPLETE]);
    }
}
