//! Receives the base backup on the first connection: the archive and the backup manifest. Each is
//! stored and, at the same time, read and checked.

use std::time::{Duration, Instant};

use bytes::Bytes;
use job::{
    error::{Error, Result},
    report::Reporter,
};
use platform::postgres::replication::base_backup::{
    BackupEnd, BackupStart, BaseBackup, Compression, Part,
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::{
    archive::{self, Files},
    backup_manifest::{self, Manifest},
    compress::compress,
    pipe::{PipeWriter, joined, pipe, root_cause},
    progress::Progress,
    storage::{MANIFEST, StorageTarget, StoredFile},
};

/// How often to check whether a progress line is due.
const TICK: Duration = Duration::from_secs(1);

/// A base backup that agrees with its manifest.
pub struct Received {
    /// The server's answer at the end.
    pub ended: BackupEnd,
    /// The stored archive.
    pub base: StoredFile,
    /// Compression of the stored archive.
    pub compression: Compression,
    /// The stored manifest.
    pub manifest_file: StoredFile,
    /// Content of the manifest.
    pub manifest: Manifest,
    /// Size of all files in bytes, uncompressed.
    pub bytes: u64,
}

/// Receives a base backup to its end.
///
/// # Errors
/// Unsafe for damage; Transient if the server sends its parts in an order that the protocol does
/// not allow.
pub async fn receive(
    mut backup: BaseBackup,
    begun: &BackupStart,
    storage: &StorageTarget,
    report: &Reporter,
) -> Result<Received> {
    let mut progress = Progress::new("copying", begun.bytes, Instant::now());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut archive, mut manifest) = (None::<Incoming<Files>>, None::<Incoming<Manifest>>);
    let (mut base, mut done, mut bytes) = (None, 0, 0);
    loop {
        // Keep one future per part across ticks: it has the timeout for a silent server.
        let mut next = Box::pin(backup.next());
        let part = loop {
            tokio::select! {
                part = &mut next => break part?,
                _ = ticks.tick() => if let Some(line) = progress.line(Instant::now(), done) {
                    report.progress(line);
                },
            }
        };
        drop(next);
        for warning in backup.take_warnings() {
            report.info(format!("the server warns: {warning}"));
        }
        match part {
            Some(Part::Archive(_)) if archive.is_some() || base.is_some() => {
                return Err(Error::transient("the server sent a second archive"));
            }
            Some(Part::Archive(_)) => archive = Some(incoming_archive(begun, storage)),
            Some(Part::Data(bytes)) => match (&mut archive, &mut manifest) {
                (Some(archive), _) => archive.send(bytes).await?,
                (None, Some(manifest)) => manifest.send(bytes).await?,
                (None, None) => {
                    return Err(Error::transient(
                        "the server sent CopyData before it announced an archive or a manifest",
                    ));
                }
            },
            Some(Part::Progress(bytes)) => done = bytes,
            Some(Part::Manifest) => {
                let incoming = archive
                    .take()
                    .ok_or_else(|| Error::transient("the server sent no archive"))?;
                let (stored, files) = incoming.end().await?;
                bytes = files.bytes();
                base = Some(stored);
                manifest = Some(incoming_manifest(storage, files));
            }
            None => break,
        }
    }
    let ended = backup.end().await?;
    let (Some(base), Some(manifest)) = (base, manifest) else {
        return Err(Error::transient("the server sent no manifest"));
    };
    let (manifest_file, manifest) = manifest.end().await?;
    Ok(Received {
        ended,
        base,
        compression: stored_compression(begun.compression),
        manifest_file,
        manifest,
        bytes,
    })
}

/// What the server sends uncompressed is stored with this program's zstd.
fn stored_compression(sent: Compression) -> Compression {
    match sent {
        Compression::None => Compression::Zstd,
        other => other,
    }
}

/// A file that is being received: it is stored, and read by a second thread.
struct Incoming<T> {
    writers: Vec<PipeWriter>,
    storing: JoinHandle<Result<StoredFile>>,
    reading: JoinHandle<Result<T>>,
}

fn incoming_archive(begun: &BackupStart, storage: &StorageTarget) -> Incoming<Files> {
    let ((to_storage, to_store), (to_reader, to_read)) = (pipe(), pipe());
    let (compression, storage, bytes) = (begun.compression, storage.clone(), begun.bytes);
    let name = format!("base.tar{}", stored_compression(compression).suffix());
    let storing = tokio::spawn(async move {
        if compression != Compression::None {
            return storage.store(&name, to_store, bytes).await;
        }
        let (writer, compressed) = pipe();
        let compressing = spawn_blocking(move || compress(to_store, writer));
        match tokio::join!(storage.store(&name, compressed, bytes), joined(compressing)) {
            (Ok(stored), Ok(())) => Ok(stored),
            (Err(storing), Err(compressing)) => Err(root_cause(storing, compressing)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    });
    Incoming {
        writers: vec![to_storage, to_reader],
        storing,
        reading: spawn_blocking(move || {
            archive::read_archive(to_read.into_blocking(), compression, None)
        }),
    }
}

fn incoming_manifest(storage: &StorageTarget, files: Files) -> Incoming<Manifest> {
    let ((to_storage, to_store), (to_reader, to_read)) = (pipe(), pipe());
    let storage = storage.clone();
    Incoming {
        writers: vec![to_storage, to_reader],
        storing: tokio::spawn(async move { storage.store(MANIFEST, to_store, 0).await }),
        reading: spawn_blocking(move || backup_manifest::compare(to_read.into_blocking(), files)),
    }
}

impl<T> Incoming<T> {
    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        for writer in &self.writers {
            if writer.send(bytes.clone()).await.is_err() {
                return Err(self.failure().await);
            }
        }
        Ok(())
    }

    /// The error of the task that dropped its end of the pipe. The other task is still waiting.
    async fn failure(&mut self) -> Error {
        let ended = tokio::select! {
            stored = joined(&mut self.storing) => stored.map(drop),
            read = joined(&mut self.reading) => read.map(drop),
        };
        ended
            .err()
            .unwrap_or_else(|| Error::transient("the server sent data after the end of the file"))
    }

    async fn end(mut self) -> Result<(StoredFile, T)> {
        for writer in std::mem::take(&mut self.writers) {
            // A task that has already failed returns its error below.
            let _ = writer.end().await;
        }
        tokio::try_join!(joined(self.storing), joined(self.reading))
    }
}
