//! Takes a final base backup, verifies it, and reports what deleting the source would remove. It
//! deletes nothing.
//!
//! **Guarantee** when it exits 0: the volume or bucket holds a restorable base backup, each of its
//! files has been compared with the server's backup manifest, and the log lists what deleting the
//! `postgresql` resource would remove and what still uses it. Exit 1: not yet, try again; 2: a
//! setting, Secret or permission is wrong; 3: the state of the clusters or of the storage does not
//! allow a backup; 4: damage, or a source that was written to after the cutover: manual
//! intervention required. Without exit 0 it leaves no `complete.json`.
//!
//! **Steps**
//! 1. Read the receipt of the cutover (`receipt.rs`) and inspect what the storage holds
//!    (`existing.rs`). A finished backup is never overwritten.
//! 2. Select the server (`server/`): after a cutover a member in recovery, which must be exactly
//!    where the source's WAL ends (`position.rs`); before a cutover the leader.
//! 3. Copy it (`copy.rs`): BASE_BACKUP, compressed by the server, goes to the storage and at the
//!    same time through the comparison with the backup manifest (`receive.rs`, `archive.rs`,
//!    `backup_manifest.rs`); the WAL comes on a second connection (`wal.rs`).
//! 4. Read it back from the storage, unpack it if there is enough space, and compare again
//!    (`restore.rs`).
//! 5. Write `complete.json`, the last file.
//! 6. Report what decommissioning the source involves (`decommission.rs`).
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`, whose user is
//! always `standby`.
//!
//! Errors of the Kubernetes API and of PostgreSQL are classified in `job::error`; the `# Errors`
//! sections in this program list only what a function adds to them.

mod archive;
mod backup;
mod backup_manifest;
mod complete;
mod compress;
mod copy;
mod decommission;
mod existing;
mod members;
mod pipe;
mod position;
mod progress;
mod receipt;
mod receive;
mod restore;
mod server;
mod settings;
mod storage;
mod wal;

use std::process::ExitCode;

use complete::Complete;
use existing::Existing;
use job::{
    context::{self, JobContext},
    error::Result,
};
use receipt::CutoverState;
use server::locate;
use settings::Settings;
use storage::StorageTarget;

fn main() -> ExitCode {
    context::main(
        "final-backup",
        async |settings: Settings, run: JobContext| final_backup(&settings, &run).await,
    )
}

async fn final_backup(settings: &Settings, run: &JobContext) -> Result<()> {
    if settings.dry_run {
        run.report.events_off();
    }
    let storage = StorageTarget::open(settings)?;
    let (cutover, existing) = run.until_stopped(inspect(settings, run, &storage)).await?;
    let backup = match existing {
        Existing::Finished(complete) => Some(
            run.until_stopped(backup::verify_finished(
                settings, run, &cutover, &storage, *complete,
            ))
            .await?,
        ),
        _ if settings.dry_run => {
            run.until_stopped(dry_run(settings, run, &cutover, &storage))
                .await?;
            None
        }
        _ => Some(backup::create(settings, run, &cutover, &storage).await?),
    };
    if let Some(backup) = &backup {
        report_backup(run, &storage, backup);
    }
    run.until_stopped(decommission::report(
        settings,
        run,
        &cutover,
        backup.as_ref(),
    ))
    .await
}

async fn inspect(
    settings: &Settings,
    run: &JobContext,
    storage: &StorageTarget,
) -> Result<(CutoverState, Existing)> {
    let cutover = receipt::read(&run.client, &run.namespace, &settings.target_cluster).await?;
    let existing = existing::inspect(storage).await?;
    Ok((cutover, existing))
}

/// Adds the backup to the termination message.
fn report_backup(run: &JobContext, storage: &StorageTarget, backup: &Complete) {
    run.report.fact("backup", storage.to_string());
    run.report.fact("from", backup.server.as_str());
    run.report
        .fact("wal_end_lsn", backup.wal_end_lsn.to_string());
    run.report.fact("verified", backup.verified.describe());
}

/// Logs what a run without DRY_RUN would do.
async fn dry_run(
    settings: &Settings,
    run: &JobContext,
    cutover: &CutoverState,
    storage: &StorageTarget,
) -> Result<()> {
    let (server, _) = locate::locate(settings, run, cutover).await?;
    run.report
        .info(format!("would copy {} to {storage}", server.name));
    Ok(())
}
