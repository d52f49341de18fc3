//! Creates a backup, from the selection of the server to the last file, or verifies a finished one.

use jiff::Timestamp;
use job::{
    context::JobContext,
    error::{Error, Result},
    lease::{self, Held},
    quantity::{duration, size},
};
use protocol::wal::Lsn;

use crate::{
    complete::{Complete, FORMAT, SourceEnd, Verified},
    copy::{self, BackupOptions, Copied},
    existing::{self, Existing},
    receipt::CutoverState,
    restore::{self, Scratch},
    server::{Server, ServerState, locate},
    settings::{Settings, Side, Verify},
    storage::{COMPLETE, StorageTarget, StoredBackup},
};

/// Creates a backup, or verifies one that another run has finished in the meantime.
///
/// # Errors
/// Refused while another run holds the Lease; else whatever stopped the backup. On an error nothing
/// that looks like a finished backup is left.
pub async fn create(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    storage: &StorageTarget,
) -> Result<Complete> {
    let lease = format!("final-backup-{}", settings.target_cluster);
    let held = run
        .until_stopped(lease::take(
            &run.client,
            &run.namespace,
            &lease,
            "final-backup",
        ))
        .await
        .map_err(|error| error.hint("follow the log of that run; this run has changed nothing"))?;
    let outcome = create_under_lease(settings, run, cutover, storage, &held).await;
    held.release().await;
    outcome
}

/// Verifies a finished backup by reading it back, whatever VERIFY says about a new one. Writes
/// nothing.
///
/// # Errors
/// Refused if it is a backup of something else; Unsafe if its content has changed.
pub async fn verify_finished(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    storage: &StorageTarget,
    mut complete: Complete,
) -> Result<Complete> {
    run.report.info(format!(
        "a backup is complete already: {storage}, copied from {} at {}",
        complete.server, complete.finished
    ));
    let system_identifier = match cutover {
        CutoverState::Completed(receipt) => receipt.started.source.system_identifier,
        _ => {
            let (_, state) = locate::locate(settings, run, cutover).await?;
            state.identity.system_identifier
        }
    };
    existing::ensure_matches(&complete, settings.from, cutover, system_identifier)?;
    complete.verified = verify(settings, run, storage, &complete.stored())
        .await?
        .max(complete.verified);
    Ok(complete)
}

async fn create_under_lease(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    storage: &StorageTarget,
    held: &Held,
) -> Result<Complete> {
    let prepared = run.until_stopped(async {
        let existing = existing::inspect(storage).await?;
        if let Existing::Finished(complete) = existing {
            return Ok(Err(complete));
        }
        let (server, state) = locate::locate(settings, run, cutover).await?;
        if existing == Existing::Unfinished {
            run.report.info(format!(
                "removing what an unfinished run has left in {storage}"
            ));
        }
        // Also if nothing is listed: an unfinished upload to a bucket is invisible.
        storage.remove_unfinished().await?;
        storage.prepare().await?;
        Ok(Ok((server, state)))
    });
    let (server, state) = match prepared.await? {
        Ok(found) => found,
        Err(complete) => {
            return run
                .until_stopped(verify_finished(settings, run, cutover, storage, *complete))
                .await;
        }
    };
    let outcome = run
        .until_stopped(copy_and_verify(
            settings, run, cutover, storage, held, &server, &state,
        ))
        .await;
    if outcome.is_err() {
        clean_up(run, storage, held).await;
    }
    outcome
}

/// Removes what this run has written, unless another run has taken over the Lease because this one
/// did not renew it.
async fn clean_up(run: &JobContext, storage: &StorageTarget, held: &Held) {
    let removed = async {
        held.confirm().await?;
        storage.remove_unfinished().await
    };
    match removed.await {
        Ok(()) => run
            .report
            .info(format!("what was written to {storage} is removed")),
        // Either it is marked as unfinished, and the next run removes it, or it is finished.
        Err(error) => run.report.warning(
            "NotRemoved",
            format!("what was written to {storage} is still there: {error}"),
        ),
    }
}

async fn copy_and_verify(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    storage: &StorageTarget,
    held: &Held,
    server: &Server,
    state: &ServerState,
) -> Result<Complete> {
    let started = Timestamp::now();
    let options = BackupOptions {
        compress_by: settings.compress_by,
        until: source_end(settings, cutover),
    };
    let copied = copy::copy(server, state, options, storage, &run.report).await?;
    ensure_same_system(&copied, state)?;
    ensure_source_unchanged(&copied, options.until)?;
    let elapsed = Timestamp::now().duration_since(started).unsigned_abs();
    run.report.step(
        "Copied",
        format!(
            "copied {} in {} files in {}: each agrees with the manifest; wal from {} to {}",
            size(copied.backup.bytes),
            copied.manifest.files,
            duration(elapsed),
            copied.begun.start,
            copied.wal_end
        ),
    );
    let verified = match settings.verify {
        Verify::Stream => Verified::Stream,
        Verify::Restore => verify(settings, run, storage, &copied.backup).await?,
    };
    held.confirm().await?;
    let complete = describe(settings, cutover, server, state, copied, started, verified);
    // The backup is whole at this point; a leftover upload costs money, but does not harm it.
    if let Err(error) = storage.abort_uploads().await {
        run.report.warning(
            "UploadsLeft",
            format!("an upload that was never completed may be left in the bucket: {error}"),
        );
    }
    storage
        .finish(serde_json::to_vec_pretty(&complete)?.into())
        .await?;
    run.report.step(
        "BackupComplete",
        format!("backup complete: {storage}/{COMPLETE}"),
    );
    Ok(complete)
}

/// End of the source's WAL, which a backup of the source must include after a cutover.
fn source_end(settings: &Settings, cutover: &CutoverState) -> Option<Lsn> {
    match (settings.from, cutover) {
        (Side::Source, CutoverState::Completed(receipt)) => Some(receipt.promotion.replayed),
        _ => None,
    }
}

/// Checks that the source received no new WAL during the copy. It was at its end before the copy,
/// so new WAL means that it was started in the meantime.
fn ensure_source_unchanged(copied: &Copied, until: Option<Lsn>) -> Result<()> {
    match until {
        Some(until) if copied.ended.end > until => Err(Error::manual_intervention(format!(
            "the copy ends at {}, and the source's last record at {until}: the source was written \
             to while it was copied",
            copied.ended.end
        ))
        .hint("find out what started it, and what was written; delete nothing until then")),
        _ => Ok(()),
    }
}

/// Checks that the backup manifest has the system identifier of the selected server.
fn ensure_same_system(copied: &Copied, state: &ServerState) -> Result<()> {
    match copied.manifest.system_identifier {
        Some(other) if other != state.identity.system_identifier => {
            Err(Error::manual_intervention(format!(
                "the manifest has the system identifier {other}, and the server reported {}",
                state.identity.system_identifier
            )))
        }
        _ => Ok(()),
    }
}

/// Reads the backup back from its storage.
///
/// # Errors
/// Unsafe if it differs from what was written.
async fn verify(
    settings: &Settings,
    run: &JobContext,
    storage: &StorageTarget,
    backup: &StoredBackup,
) -> Result<Verified> {
    run.report.info(format!("reading {storage} back"));
    let scratch = Scratch {
        folder: &settings.scratch_dir,
        keep_free_percent: settings.scratch_keep_free_percent,
    };
    let verified = restore::verify(storage, backup, &scratch, &run.report).await?;
    run.report
        .step("Verified", format!("verified: {}", verified.describe()));
    Ok(verified)
}

fn describe(
    settings: &Settings,
    cutover: &CutoverState,
    server: &Server,
    state: &ServerState,
    copied: Copied,
    started: Timestamp,
    verified: Verified,
) -> Complete {
    Complete {
        format: FORMAT,
        program: format!("final-backup {}", env!("CARGO_PKG_VERSION")),
        from: settings.from,
        server: server.name.clone(),
        started,
        finished: Timestamp::now(),
        identity: state.identity,
        start_lsn: copied.begun.start,
        end_lsn: copied.ended.end,
        wal_end_lsn: copied.wal_end,
        source_end: match cutover {
            CutoverState::Completed(receipt) => Some(SourceEnd {
                lsn: receipt.promotion.replayed,
                timeline: receipt.promotion.timeline,
            }),
            _ => None,
        },
        page_checksums: state.page_checksums,
        verified,
        compression: copied.backup.compression,
        files: copied.manifest.files,
        bytes: copied.backup.bytes,
        objects: copied.backup.objects,
    }
}
