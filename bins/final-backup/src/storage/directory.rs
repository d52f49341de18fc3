//! A folder of a mounted volume, in which files are written under a `.partial` name and renamed
//! once they are whole.

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
    COMPLETE, Entry, PARTIAL, PendingWrites, StoredFile, UNFINISHED, UNFINISHED_TEXT,
    file_vanished, unfinished_files, wait_for_pending_writes,
};
use crate::pipe::{CHUNK_BYTES, PipeReader, PipeWriter, joined};

/// How many bytes to write between checks of the free space. The kernel is then also told to write
/// them to disk.
const CHECK_BYTES: u64 = 16 << 20;

/// A folder of a volume.
#[derive(Clone, Debug)]
pub struct Directory {
    volume: PathBuf,
    folder: PathBuf,
    /// In bytes.
    keep_free: u64,
    pending_writes: PendingWrites,
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
            pending_writes: Arc::default(),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        // Do not mistake a volume that is not mounted for an empty one.
        if !self.volume.is_dir() {
            return Err(
                Error::config(format!("{} is not a directory", self.volume.display()))
                    .hint("mount a volume there (components/backup-volume), or correct BACKUP_TO"),
            );
        }
        let list = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| self.access_error(error))?,
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

    fn access_error(&self, error: io::Error) -> Error {
        Error::config(format!("using {}", self.folder.display()))
            .caused_by(error)
            .hint("the volume must be writable for the user and group 65532 of the pod")
    }

    pub(super) fn read_small(&self, name: &str) -> Result<Option<Bytes>> {
        match fs::read(self.folder.join(name)) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.access_error(error)),
        }
    }

    pub(super) fn prepare(&self) -> Result<()> {
        self.check_space(0)?;
        fs::create_dir_all(&self.folder).map_err(|error| self.access_error(error))?;
        let marker = self
            .write_marker(UNFINISHED_TEXT.as_bytes())
            .and_then(|()| self.sync());
        marker.map_err(|error| self.access_error(error))
    }

    /// Refuses before the volume is full: other programs may use the volume, and a full one may not
    /// even allow files to be removed.
    fn check_space(&self, needed: u64) -> Result<()> {
        let free = free_bytes(&self.volume).map_err(|error| self.access_error(error))?;
        if free >= self.keep_free + needed {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{} has only {} free, and {} must stay free",
            self.volume.display(),
            size(free),
            size(self.keep_free)
        ))
        .hint(
            "enlarge the volume, or use a bucket (components/s3); BACKUP_KEEP_FREE_MB sets how \
             much stays free",
        ))
    }

    pub(super) async fn store(&self, name: &str, reader: PipeReader) -> Result<StoredFile> {
        let (directory, name) = (self.clone(), name.to_owned());
        // A thread cannot be cancelled: it writes until it finds that its stream was cut off.
        let pending = Arc::clone(&self.pending_writes).read_owned().await;
        let thread = move || {
            let _pending = pending;
            let partial = directory.folder.join(format!("{name}{PARTIAL}"));
            let stored = directory.receive(&name, &partial, reader);
            if stored.is_err() {
                let _ = fs::remove_file(&partial);
            }
            stored
        };
        joined(tokio::task::spawn_blocking(thread)).await
    }

    fn receive(&self, name: &str, partial: &Path, mut reader: PipeReader) -> Result<StoredFile> {
        let context = || format!("writing {}", self.folder.join(name).display());
        let mut file = File::create(partial).map_err(|error| self.access_error(error))?;
        let (mut crc, mut bytes, mut checked) = (0, 0, 0);
        while let Some(chunk) = reader.blocking_next()? {
            crc = crc32c_append(crc, &chunk);
            file.write_all(&chunk)
                .map_err(|error| self.write_error(error))
                .context(context())?;
            bytes += chunk.len() as u64;
            if bytes - checked >= CHECK_BYTES {
                self.check_space(CHECK_BYTES)?;
                drop_from_cache(&file);
                checked = bytes;
            }
        }
        file.sync_all()
            .map_err(|error| self.write_error(error))
            .context(context())?;
        // Make VERIFY=restore read from disk instead of from the page cache.
        drop_from_cache(&file);
        fs::rename(partial, self.folder.join(name))
            .and_then(|()| self.sync())
            .context(context())?;
        Ok(StoredFile::new(name, bytes, crc))
    }

    fn write_error(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::refused(format!("{} is full", self.volume.display()))
                    .caused_by(error)
                    .hint("enlarge the volume, or use a bucket (components/s3)")
            }
            _ => error.into(),
        }
    }

    /// Makes the names in the folder durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn write_marker(&self, content: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.folder.join(UNFINISHED))?;
        file.write_all(content)?;
        file.sync_all()
    }

    /// Writes the content into the marker, and renames that to the last file.
    pub(super) fn finish(&self, complete: &[u8]) -> Result<()> {
        let last = self.folder.join(COMPLETE);
        self.write_marker(complete)
            .and_then(|()| fs::rename(self.folder.join(UNFINISHED), &last))
            .and_then(|()| self.sync())
            .map_err(|error| self.write_error(error))
            .context(format!("writing {}", last.display()))
    }

    pub(super) async fn read(&self, name: &str, writer: PipeWriter) -> Result<()> {
        let (path, name) = (self.folder.join(name), name.to_owned());
        let thread = move || {
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(file_vanished(&name));
                }
                other => other.context(format!("reading {}", path.display()))?,
            };
            loop {
                let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
                let read = file
                    .read(&mut chunk)
                    .context(format!("reading {}", path.display()))?;
                if read == 0 {
                    let _ = writer.blocking_end();
                    return Ok(());
                }
                chunk.truncate(read);
                // The reader that has stopped returns the error.
                if writer.blocking_send(chunk.freeze()).is_err() {
                    return Ok(());
                }
            }
        };
        joined(tokio::task::spawn_blocking(thread)).await
    }

    pub(super) async fn remove_unfinished(&self) -> Result<()> {
        let _no_writes = wait_for_pending_writes(&self.pending_writes).await;
        for name in unfinished_files(self.entries()?, self)? {
            fs::remove_file(self.folder.join(name)).map_err(|error| self.access_error(error))?;
        }
        // Fails if the folder holds other files, which are kept.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

/// Makes the kernel write the file to disk and drop what it has written from the page cache
/// (posix_fadvise(2)). Best effort: it leaves the node's memory to its databases, and shortens the
/// final fsync.
fn drop_from_cache(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Space that an unprivileged user may still write to.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::pipe;

    fn directory(keep_free_mb: u64) -> (tempfile::TempDir, Directory) {
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
    async fn a_stream_becomes_a_file_once_it_has_ended() {
        let (_volume, directory) = directory(0);
        directory.prepare().unwrap();
        let (writer, reader) = pipe();
        let send = async {
            writer.send(Bytes::from_static(b"123456789")).await.unwrap();
            writer.end().await.unwrap();
        };
        let (stored, ()) = tokio::join!(directory.store("base.tar", reader), send);
        let stored = stored.unwrap();
        assert_eq!(stored.bytes, 9);
        assert_eq!(stored.crc32c, "e3069283", "the check value of CRC-32C");
        assert_eq!(
            directory.read_small("base.tar").unwrap().unwrap(),
            Bytes::from_static(b"123456789")
        );
    }

    #[tokio::test]
    async fn a_stream_that_was_cut_off_leaves_no_file() {
        let (_volume, directory) = directory(0);
        directory.prepare().unwrap();
        let (writer, reader) = pipe();
        let send = async {
            writer.send(Bytes::from_static(b"abc")).await.unwrap();
            drop(writer);
        };
        let (stored, ()) = tokio::join!(directory.store("base.tar", reader), send);
        assert!(stored.is_err());
        assert_eq!(names(&directory), [UNFINISHED]);
    }

    #[test]
    fn a_volume_that_is_nearly_full_is_refused_before_anything_is_written() {
        let (volume, directory) = directory(u64::MAX / 1_000_000);
        let error = directory.prepare().unwrap_err();
        assert!(error.to_string().contains("must stay free"), "{error}");
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
    async fn only_files_of_a_backup_are_removed() {
        let (_volume, directory) = directory(0);
        directory.prepare().unwrap();
        for name in ["base.tar.zst.partial", "backup_manifest", "notes.txt"] {
            fs::write(directory.folder.join(name), "").unwrap();
        }
        directory.remove_unfinished().await.unwrap();
        assert_eq!(names(&directory), ["notes.txt"]);
        fs::remove_file(directory.folder.join("notes.txt")).unwrap();
        directory.remove_unfinished().await.unwrap();
        assert!(!directory.folder.exists());
    }

    #[tokio::test]
    async fn a_finished_backup_is_never_removed() {
        let (_volume, directory) = directory(0);
        directory.prepare().unwrap();
        fs::write(directory.folder.join("base.tar.zst"), "").unwrap();
        directory.finish(b"{}").unwrap();
        let error = directory.remove_unfinished().await.unwrap_err();
        assert!(
            error.to_string().contains("a finished backup by now"),
            "{error}"
        );
        let mut names = names(&directory);
        names.sort();
        assert_eq!(names, ["base.tar.zst", COMPLETE]);
    }
}
