//! Takes a last base backup, proves it, and says what deleting the source would remove. It deletes
//! nothing.
//!
//! **Promise** when it exits 0: a restorable base backup lies in the volume or bucket, each of its
//! files has been compared with the server's manifest, and what a deletion of the `postgresql`
//! resource would remove, and what still uses it, has been listed. Exit 1: not yet; 2: a setting,
//! Secret or permission is wrong; 3: the state of the clusters or of the place does not allow it;
//! 4: damage, or a source that was written to after the cut: a person must look. Unless it exits 0
//! it leaves no `complete.json`.
//!
//! **Steps**
//! 1. read the receipt of the cut (`receipt.rs`), and look at what is in the place of the backup
//!    (`existing.rs`): a finished backup is never overwritten
//! 2. choose the server (`choose.rs`): after a cut a member in recovery, and prove that it stands
//!    exactly where the source has ended (`position.rs`); before it the leader
//! 3. copy it (`copy.rs`): BASE_BACKUP, compressed by the server, to its place and at the same time
//!    through the comparison with the manifest (`receive.rs`, `archive.rs`, `manifest.rs`); the WAL
//!    on a second connection (`wal.rs`)
//! 4. read it back from its place, unpack it where there is room, and compare again (`restore.rs`)
//! 5. write `complete.json`, the last file
//! 6. the goodbye (`goodbye.rs`)
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`, whose user is
//! always `standby`.

mod archive;
mod choose;
mod complete;
mod compress;
mod copy;
mod existing;
mod find;
mod flow;
mod goodbye;
mod manifest;
mod members;
mod place;
mod position;
mod progress;
mod receipt;
mod receive;
mod restore;
mod server;
mod settings;
mod take;
mod wal;

use std::process::ExitCode;

use complete::Complete;
use existing::Found;
use job::{
    context::{self, Run},
    error::Result,
};
use place::Place;
use receipt::Cut;
use settings::Settings;

fn main() -> ExitCode {
    context::main("final-backup", async |settings: Settings, run: Run| {
        final_backup(&settings, &run).await
    })
}

async fn final_backup(settings: &Settings, run: &Run) -> Result<()> {
    if settings.dry_run {
        run.report.events_off();
    }
    let place = Place::open(settings)?;
    let (cut, found) = run.until_stopped(look(settings, run, &place)).await?;
    let backup = match found {
        Found::Finished(complete) => Some(
            run.until_stopped(take::finished(settings, run, &cut, &place, *complete))
                .await?,
        ),
        _ if settings.dry_run => {
            run.until_stopped(plan(settings, run, &cut, &place)).await?;
            None
        }
        _ => Some(take::take(settings, run, &cut, &place).await?),
    };
    if let Some(backup) = &backup {
        tell(run, &place, backup);
    }
    run.until_stopped(goodbye::say(settings, run, &cut, backup.as_ref()))
        .await
}

async fn look(settings: &Settings, run: &Run, place: &Place) -> Result<(Cut, Found)> {
    let cut = receipt::read(&run.client, &run.namespace, &settings.target_cluster).await?;
    let found = existing::look(place).await?;
    Ok((cut, found))
}

/// For the termination message.
fn tell(run: &Run, place: &Place, backup: &Complete) {
    run.report.fact("backup", place.to_string());
    run.report.fact("from", backup.server.as_str());
    run.report
        .fact("wal_end_lsn", backup.wal_end_lsn.to_string());
    run.report.fact("verified", backup.verified.words());
}

/// What would be done.
async fn plan(settings: &Settings, run: &Run, cut: &Cut, place: &Place) -> Result<()> {
    let (server, _) = find::find(settings, run, cut).await?;
    run.report
        .info(format!("would copy {} to {place}", server.name));
    Ok(())
}
