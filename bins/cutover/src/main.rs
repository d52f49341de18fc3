//! Moves the application from the source to the target: the planned downtime of the migration.
//!
//! **Promise** when it exits 0: the application runs on the target, nothing acknowledged was lost, the source cannot take a write,
//! and the ConfigMap `cutover-<cluster>-receipt` proves it. Exit 3: the application runs on the source as before.
//!
//! **Steps** (`decide.rs` is the only place that knows their order; `back.rs` is the way back until the point of no return)
//! 1. check everything, record identities and replica counts
//! 2. freeze the Zalando operator for this cluster
//! 3. checkpoints, so that those in the downtime are short
//! 4. block writes: Patroni's pause and read-only; end the client sessions; the application to 0 — DOWNTIME BEGINS
//! 5. wait until the target has replayed the marker
//! 6. fence: stop the source's server, prove from the target that its last record has arrived (`proof.rs`)
//! 7. record the promotion — POINT OF NO RETURN — and promote
//! 8. wait for primary and for CNPG's restart; prove a write
//! 9. route the application to the target — DOWNTIME ENDS
//! 10. write the receipt
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`. A second run goes on where the first one ended.

mod back;
mod decide;
mod decision;
mod drive;
mod journal;
mod lease;
mod live;
#[cfg(test)]
mod model;
mod observation;
mod plan;
mod preflight;
mod proof;
mod receipt;
mod settings;

use std::process::ExitCode;

use drive::World as _;
use live::Live;
use settings::{Route, Settings};
use shared::{
    config::{Connection, prefixed},
    error::{Error, Result},
    job::{self, Run},
    readiness,
};

fn main() -> ExitCode {
    job::main("cutover", cutover)
}

async fn cutover(settings: Settings, run: Run) -> Result<()> {
    let Route::Config = settings.route;
    let (source, target): (Connection, Connection) = (prefixed("SOURCE_")?, prefixed("TARGET_")?);
    let limits = settings.limits();
    let mut world = Live::new(run.clone(), settings.clone(), source, target);
    if settings.dry_run {
        return dry_run(&mut world, &settings, &run).await;
    }
    let lease = lease::take(&run.client, &run.namespace, &world.record_name()).await?;
    let outcome = async {
        world.begin_anew_after_return().await?;
        drive::drive(&mut world, &limits).await
    }
    .await;
    lease.release().await;
    outcome
}

/// Looks once and prints the plan; makes no mutating call.
async fn dry_run(world: &mut Live, settings: &Settings, run: &Run) -> Result<()> {
    let (journal, seen) = world.observe().await?;
    if journal.started.is_some() {
        let next = decide::decide(&journal, &seen, &settings.limits());
        run.report.info(format!("a cutover has begun; the next decision would be {next:?}"));
        return Ok(());
    }
    for line in plan::lines(&seen, settings) {
        run.report.info(line);
    }
    readiness::worst(&seen.readiness).map_err(|error: Error| error.hint("this was a dry run; mend this before the window"))
}
