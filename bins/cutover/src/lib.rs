//! The cutover and the rollback on real servers: their settings ([`settings`]), their entry points
//! (here), and the world that the protocol drives (`live`).

mod dry_run;
mod failpoint;
mod live;
mod receipt;
pub mod settings;

use job::{
    context::JobContext,
    error::{Error, Result},
    lease,
};
use platform::collector::endpoints::{Endpoints, Login};
use protocol::{
    checks,
    decide::{Health, decide},
    driver::{World as _, drive},
    failure::Failure,
    finding,
    reason::{Contradiction, Refusal, Stopped},
    rollback::{RollbackAvailability, rollback_availability},
    steps,
};

use crate::{
    live::{LiveWorld, abort},
    settings::Settings,
};

const LOGIN: Login = Login {
    program: "cutover",
    read_only: false,
};

/// Moves the application from the source to the target, or continues where an earlier run ended.
///
/// # Errors
/// Refused when the application runs on the source as before, Unsafe when manual intervention is
/// required, Transient when another run is active.
pub async fn cutover(settings: Settings, run: JobContext) -> Result<()> {
    let endpoints = Endpoints::from_environment(&settings.database, LOGIN)?;
    let limits = settings.limits();
    let mut world = LiveWorld::new(run.clone(), settings.clone(), endpoints);
    if settings.dry_run {
        return dry_run(&mut world, &settings, &run).await;
    }
    let lease = lease::take(&run.client, &run.namespace, &world.record_name(), "cutover").await;
    let lease =
        lease.map_err(|error| error.hint("follow its log; this one has changed nothing"))?;
    let outcome = async {
        world.complete_rollback(&limits).await?;
        world.start_over_after_rollback().await?;
        drive(&mut world, &limits).await.map_err(Failure::from)?;
        world.log_end();
        Ok(())
    }
    .await;
    lease.release().await;
    if outcome.is_err()
        && let Ok(record) = world.record().await
    {
        run.report
            .info(format!("state: {}", steps::summary(&record)));
    }
    outcome
}

/// Brings the application back to the source, from outside, when no cutover runs any more.
///
/// # Errors
/// Refused when that is no longer possible, or a cutover runs; Transient when another
/// run is active.
pub async fn rollback(settings: Settings, run: JobContext) -> Result<()> {
    let endpoints = Endpoints::from_environment(&settings.database, LOGIN)?;
    let limits = settings.limits();
    let mut world = LiveWorld::new(run.clone(), settings.clone(), endpoints).rollback_started();
    match rollback_availability(&world.record().await?) {
        RollbackAvailability::TooLate(refusal) => {
            return Err(Failure::from(Stopped::Refused(refusal)).into());
        }
        RollbackAvailability::Nothing => {
            if world.operator_is_suspended().await? {
                return Err(Failure::from(Contradiction::MarksWithoutRecord).into());
            }
            run.report
                .info("no cutover has begun: the application runs on the source");
            return Ok(());
        }
        RollbackAvailability::Possible if settings.dry_run => {
            run.report.info(
                "a cutover has begun and can be rolled back: without DRY_RUN rollback restores \
                 everything that it changed",
            );
            return Ok(());
        }
        RollbackAvailability::Possible => {}
    }
    let lease = lease::take(&run.client, &run.namespace, &world.record_name(), "cutover")
        .await
        .map_err(|error| {
            error.hint(format!(
                "ask it to roll back by itself: kubectl annotate cronjob/{} {}=true",
                abort::CRON_JOB,
                abort::ANNOTATION
            ))
        })?;
    let outcome = drive(&mut world, &limits).await;
    lease.release().await;
    match outcome {
        // A cutover that has rolled back is refused; a rollback has done what it was asked for.
        Err(Stopped::Refused(Refusal::RolledBack { .. })) => Ok(()),
        Err(stopped) => Err(Failure::from(stopped).into()),
        Ok(()) => Ok(()),
    }
}

/// Observes once and logs the plan. Its requests to the API server are dry runs there, too.
async fn dry_run(world: &mut LiveWorld, settings: &Settings, run: &JobContext) -> Result<()> {
    let (record, snapshot) = world.observe().await?;
    if record.started.is_some() {
        let next = decide(&record, &snapshot, &Health::default(), &settings.limits());
        run.report.info(format!(
            "a cutover has begun; the next decision would be: {next}"
        ));
        return Ok(());
    }
    for line in dry_run::lines(&snapshot, settings) {
        run.report.info(line);
    }
    let possible = async {
        world.no_receipt_yet().await?;
        finding::worst(&checks::all(&snapshot, &settings.limits()))?;
        world.check_late_changes().await
    };
    possible.await.map_err(|error: Error| {
        error.hint("this was a dry run; fix this before the maintenance window")
    })
}
