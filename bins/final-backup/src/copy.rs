//! The copy itself: the server's stream goes to its place and, at the same time, through the
//! comparison with the manifest; its WAL comes on a second connection.

use job::{
    error::{Context as _, Error, Result},
    quantity::size,
    report::Reporter,
};
use platform::postgres::replication::base_backup::{Begun, Compression, Ended};
use protocol::wal::Lsn;
use tokio::sync::watch;

use crate::{
    flow::{cause, pipe},
    manifest::Manifest,
    place::{Place, Stored, WAL},
    receive::receive,
    restore::Kept,
    server::{Seen, Server},
    settings::CompressBy,
    wal::{self, Tar, Wanted},
};

/// A copy that agrees with its manifest.
pub struct Copied {
    /// How it began.
    pub begun: Begun,
    /// How it ended.
    pub ended: Ended,
    /// End of the WAL in pg_wal.tar.
    pub wal_end: Lsn,
    /// The archive, the WAL, the manifest.
    pub stored: Vec<Stored>,
    /// Compression of the archive as it is kept.
    pub compression: Compression,
    /// What the manifest says.
    pub manifest: Manifest,
    /// Bytes of all files, unpacked.
    pub bytes: u64,
}

impl Copied {
    /// What is kept of it.
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            objects: &self.stored,
            compression: self.compression,
            bytes: self.bytes,
        }
    }
}

/// What is wanted of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Who compresses.
    pub compress_by: CompressBy,
    /// The WAL goes at least as far as this.
    pub until: Option<Lsn>,
}

/// Copies a server.
///
/// # Errors
/// Unsafe for damage, Refused for tablespaces and a full volume, Transient for whatever another run
/// may heal. What was written is for the caller to remove.
pub async fn copy(
    server: &Server,
    seen: &Seen,
    wish: Wish,
    place: &Place,
    report: &Reporter,
) -> Result<Copied> {
    let slot = format!("final_backup_{}", std::process::id());
    let mut wal_sender = server.walsender().await?;
    // Before the backup begins, so that the WAL from its beginning on is kept.
    wal_sender.temporary_slot(&slot).await?;
    let base = server.walsender().await?;
    report.info(format!(
        "asking {} for a checkpoint, and for a base backup",
        server.name
    ));
    let (backup, begun) = base
        .base_backup("final-backup", wish.compress_by.asked())
        .await?;
    if !begun.tablespaces.is_empty() {
        return Err(refuse(&begun.tablespaces));
    }
    narrate(&begun, report);
    let history = wal_sender.timeline_history(begun.timeline).await?;
    let from = wal::first_of_segment(begun.start, seen.segment_bytes);
    let stream = wal_sender.stream_wal(&slot, from, begun.timeline).await?;
    let (tell, enough) = watch::channel(None);
    let wanted = Wanted {
        start: begun.start,
        timeline: begun.timeline,
        segment_bytes: seen.segment_bytes,
    };
    let wal = async {
        let (feed, drain) = pipe();
        let followed = async {
            let mut tar = Tar::new(feed);
            if let Some(history) = history {
                tar.file(&history.name, history.content).await?;
            }
            let end = wal::follow(stream, wanted, &mut tar, enough).await?;
            tar.end().await.map(|()| end)
        };
        match tokio::join!(place.store(WAL, drain, 0), followed) {
            (Ok(stored), Ok(end)) => Ok((stored, end)),
            (Err(stored), Err(followed)) => Err(cause(stored, followed)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    };
    let base = async {
        let received = receive(backup, &begun, place, report).await?;
        let end = wish
            .until
            .map_or(received.ended.end, |until| until.max(received.ended.end));
        tell.send(Some(end))
            .map(|()| received)
            .map_err(|_| Error::transient("the stream of wal has ended early"))
    };
    let (received, (wal, wal_end)) =
        tokio::try_join!(base, wal).context(format!("copying {}", server.name))?;
    Ok(Copied {
        ended: received.ended,
        wal_end,
        stored: vec![received.base, wal, received.manifest_file],
        compression: received.compression,
        manifest: received.manifest,
        bytes: received.bytes,
        begun,
    })
}

fn refuse(tablespaces: &[String]) -> Error {
    Error::refused(format!(
        "the server has tablespaces outside of its data directory: {}",
        tablespaces.join(", ")
    ))
    .hint(
        "move what is in them (alter table … set tablespace pg_default; \\db+ lists them), \
            then drop tablespace; the Zalando operator makes none",
    )
}

fn narrate(begun: &Begun, report: &Reporter) {
    let compression = match begun.compression {
        Compression::None => "compressed here with zstd".to_owned(),
        other => format!("compressed by the server with {}", other.word()),
    };
    report.step(
        "BackupBegun",
        format!(
            "base backup begun at {} on timeline {}: about {}, {compression}",
            begun.start,
            begun.timeline,
            size(begun.bytes)
        ),
    );
}
