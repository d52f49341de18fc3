//! Taking a backup, from the choice of the server to the last file; and one that is finished
//! already.

use jiff::Timestamp;
use job::{
    context::Run,
    error::{Error, Result},
    lease::{self, Held},
    quantity::{duration, size},
};
use protocol::wal::Lsn;

use crate::{
    complete::{Complete, CutAt, FORMAT, Verified},
    copy::{self, Copied, Wish},
    existing::{self, Found},
    find,
    place::{COMPLETE, Place},
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
        .until_stopped(lease::take(
            &run.client,
            &run.namespace,
            &lease,
            "final-backup",
        ))
        .await
        .map_err(|error| error.hint("follow its log; this one has changed nothing"))?;
    let outcome = alone(settings, run, cut, place, &held).await;
    held.release().await;
    outcome
}

/// A finished backup is there: it is proved again, whatever VERIFY says of a new one, and nothing
/// is written.
///
/// # Errors
/// Refused when it is another one than this; Unsafe when it is not what it was.
pub async fn finished(
    settings: &Settings,
    run: &Run,
    cut: &Cut,
    place: &Place,
    mut complete: Complete,
) -> Result<Complete> {
    run.report.info(format!(
        "a backup is complete already: {place}, taken from {} at {}",
        complete.server, complete.finished
    ));
    let system = match cut {
        Cut::Over(receipt) => receipt.started.source.system_identifier,
        _ => {
            find::find(settings, run, cut)
                .await?
                .1
                .identity
                .system_identifier
        }
    };
    existing::fits(&complete, settings.from, cut, system)?;
    complete.verified = prove(settings, run, place, &complete.kept())
        .await?
        .max(complete.verified);
    Ok(complete)
}

async fn alone(
    settings: &Settings,
    run: &Run,
    cut: &Cut,
    place: &Place,
    held: &Held,
) -> Result<Complete> {
    let looked = run.until_stopped(async {
        let found = existing::look(place).await?;
        if let Found::Finished(complete) = found {
            return Ok(Err(complete));
        }
        let (server, seen) = find::find(settings, run, cut).await?;
        if found == Found::Unfinished {
            run.report.info(format!(
                "removing what an unfinished run has left in {place}"
            ));
        }
        // An upload to a bucket may have been begun without any trace that can be seen.
        place.clear().await?;
        place.prepare().await?;
        Ok(Ok((server, seen)))
    });
    let (server, seen) = match looked.await? {
        Ok(found) => found,
        Err(complete) => {
            return run
                .until_stopped(finished(settings, run, cut, place, *complete))
                .await;
        }
    };
    let outcome = run
        .until_stopped(backup(settings, run, cut, place, held, &server, &seen))
        .await;
    if outcome.is_err() {
        tidy(run, place, held).await;
    }
    outcome
}

/// Removes what this run has written; not what another one has, who took it for dead.
async fn tidy(run: &Run, place: &Place, held: &Held) {
    let removed = async {
        held.confirm().await?;
        place.clear().await
    };
    match removed.await {
        Ok(()) => run
            .report
            .info(format!("what was written to {place} is removed")),
        // It does not look like a backup, and the next run removes it; or it is one.
        Err(error) => run.report.warning(
            "NotRemoved",
            format!("what was written to {place} is still there: {error}"),
        ),
    }
}

async fn backup(
    settings: &Settings,
    run: &Run,
    cut: &Cut,
    place: &Place,
    held: &Held,
    server: &Server,
    seen: &Seen,
) -> Result<Complete> {
    let started = Timestamp::now();
    let wish = Wish {
        compress_by: settings.compress_by,
        until: last_record(settings, cut),
    };
    let copied = copy::copy(server, seen, wish, place, &run.report).await?;
    same_system(&copied, seen)?;
    nothing_came(&copied, wish.until)?;
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
    let verified = match settings.verify {
        Verify::Stream => Verified::Stream,
        Verify::Restore => prove(settings, run, place, &copied.kept()).await?,
    };
    held.confirm().await?;
    let complete = complete(settings, cut, server, seen, copied, started, verified);
    // All that was wanted is whole; what may be left costs something, and no backup.
    if let Err(error) = place.settle().await {
        run.report.warning(
            "UploadsLeft",
            format!("an upload that was never completed may be left in the bucket: {error}"),
        );
    }
    place
        .finish(serde_json::to_vec_pretty(&complete)?.into())
        .await?;
    run.report.step(
        "BackupComplete",
        format!("backup complete: {place}/{COMPLETE}"),
    );
    Ok(complete)
}

/// After a cut the backup must hold the source's very last record.
fn last_record(settings: &Settings, cut: &Cut) -> Option<Lsn> {
    match (settings.from, cut) {
        (Side::Source, Cut::Over(receipt)) => Some(receipt.promotion.replayed),
        _ => None,
    }
}

/// A source that was at its end before the copy, and had more to say during it, was started by
/// somebody.
fn nothing_came(copied: &Copied, until: Option<Lsn>) -> Result<()> {
    match until {
        Some(until) if copied.ended.end > until => Err(Error::contradiction(format!(
            "the copy ends at {}, and the source's last record at {until}: something was written \
             to the source while it was copied",
            copied.ended.end
        ))
        .hint("find out who has started it, and what was written; delete nothing until then")),
        _ => Ok(()),
    }
}

/// The manifest is the server's own word on whose files these are.
fn same_system(copied: &Copied, seen: &Seen) -> Result<()> {
    match copied.manifest.system_identifier {
        Some(other) if other != seen.identity.system_identifier => {
            Err(Error::contradiction(format!(
                "the manifest is of the system {other}, and the server said {}",
                seen.identity.system_identifier
            )))
        }
        _ => Ok(()),
    }
}

/// Reads what is kept.
///
/// # Errors
/// Unsafe when it is not what came.
async fn prove(settings: &Settings, run: &Run, place: &Place, kept: &Kept<'_>) -> Result<Verified> {
    run.report.info(format!("reading {place} back"));
    let scratch = Scratch {
        folder: &settings.scratch_dir,
        keep_free_percent: settings.scratch_keep_free_percent,
    };
    let verified = restore::prove(place, kept, &scratch, &run.report).await?;
    run.report
        .step("Verified", format!("verified: {}", verified.words()));
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
