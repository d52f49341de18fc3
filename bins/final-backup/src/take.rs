//! Taking a backup, from the choice of the server to the last file.

use jiff::Timestamp;
use shared::{
    error::{Error, Result},
    job::Run,
    kubernetes::lease::{self, Held},
    postgres::Lsn,
};

use crate::{
    complete::{Complete, CutAt, FORMAT, Verified},
    copy::{self, Copied, Wish},
    existing::{self, Found},
    find,
    place::{COMPLETE, Place},
    progress::{duration, size},
    receipt::Cut,
    restore::{self, Kept, Scratch},
    server::{Seen, Server},
    settings::{Settings, Side, Verify},
};

/// Takes a backup, or finds that another run has just taken it.
///
/// # Errors
/// Whatever went wrong; nothing that looks like a backup is left then.
pub async fn take(settings: &Settings, run: &Run, cut: &Cut, place: &Place) -> Result<Complete> {
    let lease = format!("final-backup-{}", settings.target_cluster);
    let held = run
        .until_stopped(lease::take(&run.client, &run.namespace, &lease, "final-backup"))
        .await
        .map_err(|error| error.hint("follow its log; this one has changed nothing"))?;
    let outcome = alone(settings, run, cut, place, &held).await;
    held.release().await;
    outcome
}

async fn alone(settings: &Settings, run: &Run, cut: &Cut, place: &Place, held: &Held) -> Result<Complete> {
    let looked = run.until_stopped(async {
        let found = existing::look(place).await?;
        if let Found::Finished(complete) = found {
            return Ok(Err(complete));
        }
        let (server, seen) = find::find(settings, run, cut).await?;
        if found == Found::Unfinished {
            run.report.info(format!("removing what an unfinished run has left in {place}"));
        }
        // An upload to a bucket may have been begun without any trace that can be seen.
        place.clear().await?;
        place.prepare().await?;
        Ok(Ok((server, seen)))
    });
    let (server, seen) = match looked.await? {
        Ok(found) => found,
        Err(complete) => return Ok(*complete),
    };
    let outcome = run.until_stopped(backup(settings, run, cut, place, held, &server, &seen)).await;
    if outcome.is_err() {
        match place.clear().await {
            Ok(()) => run.report.info(format!("what was written to {place} is removed")),
            // It does not look like a backup; the next run removes it.
            Err(error) => run
                .report
                .warning("NotRemoved", format!("what was written to {place} is still there: {error}")),
        }
    }
    outcome
}

async fn backup(settings: &Settings, run: &Run, cut: &Cut, place: &Place, held: &Held, server: &Server, seen: &Seen) -> Result<Complete> {
    let started = Timestamp::now();
    let wish = Wish {
        compress_by: settings.compress_by,
        until: last_record(settings, cut),
    };
    let copied = copy::copy(server, seen, wish, place, &run.report).await?;
    same_system(&copied, seen)?;
    let took = Timestamp::now().duration_since(started).unsigned_abs();
    run.report.step(
        "Copied",
        format!(
            "copied {} in {} files in {}: each agrees with the manifest; wal from {} to {}",
            size(copied.bytes),
            copied.manifest.files,
            duration(took),
            copied.begun.start,
            copied.wal_end
        ),
    );
    let verified = prove(settings, run, place, &copied.kept()).await?;
    if held.lost() {
        return Err(Error::transient("another final-backup has taken over while this one was held up").hint("run the step again"));
    }
    let complete = complete(settings, cut, server, seen, copied, started, verified);
    place.settle().await?;
    place.write(COMPLETE, serde_json::to_vec_pretty(&complete)?.into()).await?;
    run.report.step("BackupComplete", format!("backup complete: {place}/{COMPLETE}"));
    Ok(complete)
}

/// After a cut the backup must hold the source's very last record.
fn last_record(settings: &Settings, cut: &Cut) -> Option<Lsn> {
    match (settings.from, cut) {
        (Side::Source, Cut::Over(receipt)) => Some(receipt.promotion.replayed),
        _ => None,
    }
}

/// The manifest is the server's own word on whose files these are.
fn same_system(copied: &Copied, seen: &Seen) -> Result<()> {
    match copied.manifest.system_identifier {
        Some(other) if other != seen.identity.system_identifier => Err(Error::contradiction(format!(
            "the manifest is of the system {other}, and the server said {}",
            seen.identity.system_identifier
        ))),
        _ => Ok(()),
    }
}

/// As VERIFY says.
///
/// # Errors
/// Unsafe when what is kept is not what came.
pub async fn prove(settings: &Settings, run: &Run, place: &Place, kept: &Kept<'_>) -> Result<Verified> {
    if settings.verify == Verify::Stream {
        return Ok(Verified::Stream);
    }
    run.report.info(format!("reading {place} back"));
    let scratch = Scratch {
        folder: &settings.scratch_dir,
        keep_free_percent: settings.scratch_keep_free_percent,
    };
    let verified = restore::prove(place, kept, &scratch, &run.report).await?;
    run.report.step("Verified", format!("verified: {}", verified.words()));
    Ok(verified)
}

fn complete(
    settings: &Settings,
    cut: &Cut,
    server: &Server,
    seen: &Seen,
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
        identity: seen.identity,
        start_lsn: copied.begun.start,
        end_lsn: copied.ended.end,
        wal_end_lsn: copied.wal_end,
        cut: match cut {
            Cut::Over(receipt) => Some(CutAt {
                lsn: receipt.promotion.replayed,
                timeline: receipt.promotion.timeline,
            }),
            _ => None,
        },
        page_checksums: seen.page_checksums,
        verified,
        compression: copied.compression,
        files: copied.manifest.files,
        bytes: copied.bytes,
        objects: copied.stored,
    }
}
