//! The ways into the cut.

use shared::{
    config::{Connection, prefixed},
    error::{Error, Result},
    job::Run,
    readiness,
};

use crate::{
    decide,
    drive::{self, World as _},
    lease,
    live::Live,
    plan,
    settings::Settings,
};

/// Moves the application from the source to the target, or goes on where an earlier run ended.
///
/// # Errors
/// Refused when the application runs on the source as before, Unsafe when a person must look, Transient when another run goes on.
pub async fn cutover(settings: Settings, run: Run) -> Result<()> {
    let (source, target): (Connection, Connection) = (prefixed("SOURCE_")?, prefixed("TARGET_")?);
    let limits = settings.limits();
    let mut world = Live::new(run.clone(), settings.clone(), source, target);
    if settings.dry_run {
        return dry_run(&mut world, &settings, &run).await;
    }
    let lease = lease::take(&run.client, &run.namespace, &world.record_name()).await?;
    let outcome = async {
        world.begin_anew_after_return().await?;
        drive::drive(&mut world, &limits).await?;
        world.narrate_end();
        Ok(())
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
