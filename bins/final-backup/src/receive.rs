//! What the first connection brings: the archive and the manifest, each on its way to its place and
//! through a look at what is in it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use job::{
    error::{Error, Result},
    report::Reporter,
};
use platform::postgres::replication::base_backup::{BaseBackup, Begun, Compression, Ended, Part};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::{
    archive::{self, Files},
    compress::compress,
    flow::{Feed, cause, joined, pipe},
    manifest::{self, Manifest},
    place::{MANIFEST, Place, Stored},
    progress::Progress,
};

/// Whether a line is due is looked at so often.
const TICK: Duration = Duration::from_secs(1);

/// A base backup that agrees with its manifest.
pub struct Received {
    pub ended: Ended,
    pub base: Stored,
    pub compression: Compression,
    pub manifest_file: Stored,
    pub manifest: Manifest,
    pub bytes: u64,
}

/// Receives it to its end.
///
/// # Errors
/// Unsafe for damage; else whatever stopped it.
pub async fn receive(
    mut backup: BaseBackup,
    begun: &Begun,
    place: &Place,
    report: &Reporter,
) -> Result<Received> {
    let mut progress = Progress::new("copying", begun.bytes, Instant::now());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut archive, mut manifest) = (None::<Incoming<Files>>, None::<Incoming<Manifest>>);
    let (mut base, mut done, mut bytes) = (None, 0, 0);
    loop {
        // One wait for one part, however many ticks come meanwhile: a server that falls silent is
        // noticed in it.
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
            Some(Part::Archive(_)) => archive = Some(incoming_archive(begun, place)),
            Some(Part::Data(bytes)) => match (&mut archive, &mut manifest) {
                (Some(archive), _) => archive.send(bytes).await?,
                (None, Some(manifest)) => manifest.send(bytes).await?,
                (None, None) => return Err(Error::transient("the server sent data of nothing")),
            },
            Some(Part::Progress(bytes)) => done = bytes,
            Some(Part::Manifest) => {
                let whole = archive
                    .take()
                    .ok_or_else(|| Error::transient("the server sent no archive"))?;
                let (stored, files) = whole.end().await?;
                bytes = files.bytes();
                base = Some(stored);
                manifest = Some(incoming_manifest(place, files));
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
        compression: kept_as(begun.compression),
        manifest_file,
        manifest,
        bytes,
    })
}

fn kept_as(compression: Compression) -> Compression {
    match compression {
        Compression::None => Compression::Zstd,
        other => other,
    }
}

/// A file on its way: to its place, and through a look at what is in it.
struct Incoming<T> {
    feeds: Vec<Feed>,
    stored: JoinHandle<Result<Stored>>,
    looked: JoinHandle<Result<T>>,
}

fn incoming_archive(begun: &Begun, place: &Place) -> Incoming<Files> {
    let ((to_place, drain), (to_look, look_drain)) = (pipe(), pipe());
    let (compression, place, bytes) = (begun.compression, place.clone(), begun.bytes);
    let name = format!("base.tar{}", kept_as(compression).suffix());
    let stored = tokio::spawn(async move {
        if compression != Compression::None {
            return place.store(&name, drain, bytes).await;
        }
        let (feed, compressed) = pipe();
        let compressing = spawn_blocking(move || compress(drain, feed));
        match tokio::join!(place.store(&name, compressed, bytes), joined(compressing)) {
            (Ok(stored), Ok(())) => Ok(stored),
            (Err(stored), Err(compressing)) => Err(cause(stored, compressing)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    });
    Incoming {
        feeds: vec![to_place, to_look],
        stored,
        looked: spawn_blocking(move || {
            archive::look_through(look_drain.reader(), compression, None)
        }),
    }
}

fn incoming_manifest(place: &Place, files: Files) -> Incoming<Manifest> {
    let ((to_place, drain), (to_look, look_drain)) = (pipe(), pipe());
    let place = place.clone();
    Incoming {
        feeds: vec![to_place, to_look],
        stored: tokio::spawn(async move { place.store(MANIFEST, drain, 0).await }),
        looked: spawn_blocking(move || manifest::compare(look_drain.reader(), files)),
    }
}

impl<T> Incoming<T> {
    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        for feed in &self.feeds {
            if feed.send(bytes.clone()).await.is_err() {
                return Err(self.why().await);
            }
        }
        Ok(())
    }

    /// The one that takes no more has ended, and says why; the other one still waits.
    async fn why(&mut self) -> Error {
        let ended = tokio::select! {
            stored = joined(&mut self.stored) => stored.map(drop),
            looked = joined(&mut self.looked) => looked.map(drop),
        };
        ended
            .err()
            .unwrap_or_else(|| Error::transient("the stream is longer than what it holds"))
    }

    async fn end(mut self) -> Result<(Stored, T)> {
        for feed in std::mem::take(&mut self.feeds) {
            // Whoever has ended before says why below.
            let _ = feed.end().await;
        }
        tokio::try_join!(joined(self.stored), joined(self.looked))
    }
}
