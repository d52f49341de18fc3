//! The copy itself: the server's stream goes to the storage and, at the same time, through the
//! comparison with the backup manifest. The WAL comes on a second connection.

use job::{
    error::{Context as _, Error, Result},
    quantity::size,
    report::Reporter,
};
use platform::postgres::replication::base_backup::{BackupEnd, BackupStart, Compression};
use protocol::wal::Lsn;
use tokio::sync::watch;

use crate::{
    backup_manifest::Manifest,
    pipe::{pipe, root_cause},
    receive::receive,
    server::{Server, ServerState},
    settings::CompressBy,
    storage::{StorageTarget, StoredBackup, WAL},
    wal::{self, TarWriter, WalRequest},
};

/// A copy that agrees with its backup manifest.
pub struct Copied {
    /// The server's answer at the beginning.
    pub begun: BackupStart,
    /// The server's answer at the end.
    pub ended: BackupEnd,
    /// End of the WAL in pg_wal.tar.
    pub wal_end: Lsn,
    /// The stored archive, WAL and manifest.
    pub backup: StoredBackup,
    /// Content of the backup manifest.
    pub manifest: Manifest,
}

/// What is requested of a copy.
#[derive(Clone, Copy, Debug)]
pub struct BackupOptions {
    /// Which side compresses.
    pub compress_by: CompressBy,
    /// Position that the WAL must reach, if it is later than the end of the base backup.
    pub until: Option<Lsn>,
}

/// Copies a server.
///
/// # Errors
/// Unsafe for damage; Refused for tablespaces and for a full volume; Transient for anything that
/// another run may overcome. The caller removes what was written.
pub async fn copy(
    server: &Server,
    state: &ServerState,
    options: BackupOptions,
    storage: &StorageTarget,
    report: &Reporter,
) -> Result<Copied> {
    let slot = format!("final_backup_{}", std::process::id());
    let mut wal_sender = server.walsender().await?;
    // Create the slot before the backup begins, so that the server keeps the WAL from its start on.
    wal_sender.temporary_slot(&slot).await?;
    let base = server.walsender().await?;
    report.info(format!(
        "asking {} for a checkpoint and a base backup",
        server.name
    ));
    let (backup, begun) = base
        .base_backup("final-backup", options.compress_by.requested())
        .await?;
    if !begun.tablespaces.is_empty() {
        return Err(tablespaces_refused(&begun.tablespaces));
    }
    report_begun(&begun, report);
    let history = wal_sender.timeline_history(begun.timeline).await?;
    let from = wal::segment_start(begun.start, state.segment_bytes);
    let stream = wal_sender.stream_wal(&slot, from, begun.timeline).await?;
    let (announce_end, end) = watch::channel(None);
    let request = WalRequest {
        start: begun.start,
        timeline: begun.timeline,
        segment_bytes: state.segment_bytes,
    };
    let wal = async {
        let (writer, reader) = pipe();
        let received = async {
            let mut tar = TarWriter::new(writer);
            if let Some(history) = history {
                tar.file(&history.name, history.content).await?;
            }
            let end = wal::receive(stream, request, &mut tar, end).await?;
            tar.end().await.map(|()| end)
        };
        match tokio::join!(storage.store(WAL, reader, 0), received) {
            (Ok(stored), Ok(end)) => Ok((stored, end)),
            (Err(storing), Err(receiving)) => Err(root_cause(storing, receiving)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    };
    let base = async {
        let received = receive(backup, &begun, storage, report).await?;
        let end = options
            .until
            .map_or(received.ended.end, |until| until.max(received.ended.end));
        announce_end
            .send(Some(end))
            .map(|()| received)
            .map_err(|_| Error::transient("the stream of wal ended early"))
    };
    let (received, (wal, wal_end)) =
        tokio::try_join!(base, wal).context(format!("copying {}", server.name))?;
    Ok(Copied {
        ended: received.ended,
        wal_end,
        backup: StoredBackup {
            objects: vec![received.base, wal, received.manifest_file],
            compression: received.compression,
            bytes: received.bytes,
        },
        manifest: received.manifest,
        begun,
    })
}

fn tablespaces_refused(tablespaces: &[String]) -> Error {
    Error::refused(format!(
        "the server has tablespaces outside of its data directory: {}",
        tablespaces.join(", ")
    ))
    .hint(
        "move their content (alter table … set tablespace pg_default; \\db+ lists it), then drop \
         the tablespaces; the Zalando operator creates none",
    )
}

fn report_begun(begun: &BackupStart, report: &Reporter) {
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
