//! `make rehearse`: the whole migration on this machine, in the order of README, with a verdict and
//! a report page.

mod baseline;
mod bench;
mod chart;
mod cutover;
mod report;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use harness::{
    application::Epoch,
    migration::{CLUSTER, Migration, NAMESPACE, UNMANAGED},
    setup::target_directory,
    source::SourceOptions,
};
use jiff::Timestamp;
use report::{Names, Program, Report};

/// Limit for each step.
const STEP: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged by the target before the verdict.
const WRITES_AFTER: usize = 400;
/// Width of the chart's time slices.
const SLICE: Duration = Duration::from_millis(100);
/// Shortest interval without a write that is shown after the cutover.
const PAUSE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match harness::interruptible(chosen()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Without an argument it rehearses; `bench` measures, `bench-backup` measures only the backup.
async fn chosen() -> Result<bool> {
    harness::setup::Setup::ready().await?;
    match std::env::args().nth(1).as_deref() {
        None => rehearse().await,
        Some("bench") => bench::bench().await.map(|()| true),
        Some("bench-backup") => bench::backup().await.map(|()| true),
        Some(other) => anyhow::bail!("unknown argument {other:?}: use none, bench or bench-backup"),
    }
}

async fn rehearse() -> Result<bool> {
    let (began, epoch) = (Timestamp::now(), Epoch::now());
    let mut report = Report {
        began,
        names: names(),
        ..Report::default()
    };
    let outcome = migrate(&mut report, epoch).await;
    report.took = epoch.elapsed();
    report.broken = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let file = page_file();
    std::fs::create_dir_all(file.parent().context("no directory for the report")?)?;
    std::fs::write(&file, report::page(&report)?)
        .with_context(|| format!("writing {}", file.display()))?;
    println!();
    for line in report::verdict_lines(&report) {
        println!("{line}");
    }
    println!("\nreport: {}", file.display());
    outcome.map(|()| report.passed())
}

async fn migrate(report: &mut Report, epoch: Epoch) -> Result<()> {
    let migration = Migration::set_up(SourceOptions::default(), epoch, |what| {
        println!("      {what}")
    })
    .await?;
    for step in ["prepare-zalando", "extract-certs"] {
        run(&migration, step, &[], report).await?;
    }
    println!(
        "\n      kubectl apply: the Cluster and its Poolers, as prepare-zalando rendered them"
    );
    migration.apply_rendered().await?;
    run(&migration, "validate-replication", &[], report).await?;
    run(&migration, "cutover", &[("DRY_RUN", "true")], report).await?;
    migration
        .application
        .acknowledges(WRITES_AFTER, STEP)
        .await?;
    let target = migration.target.instance(CLUSTER, STEP).await?;
    run(&migration, "cutover", &[], report).await?;
    migration
        .application
        .acknowledges(WRITES_AFTER, STEP)
        .await?;
    // CNPG reports the phase healthy long after the restart; interruptions until then count.
    migration
        .target
        .phase(CLUSTER, "Cluster in healthy state", STEP)
        .await?;
    migration
        .application
        .acknowledges(WRITES_AFTER, STEP)
        .await?;
    cutover::judge(migration, target, report, epoch).await
}

/// Runs a step as `kubectl create job --from=cronjob/…` does, and prints its log as it arrives.
async fn run(
    migration: &Migration,
    step: &str,
    changes: &[(&str, &str)],
    report: &mut Report,
) -> Result<()> {
    let dry = if changes.is_empty() { "" } else { " (dry run)" };
    println!(
        "\n      kubectl create job {step} --from=cronjob/replica-migration-{step} -n \
         {NAMESPACE}{dry}"
    );
    let mut launch = migration
        .step(step)
        .on_line(|line| println!("{}", line.text));
    for (key, value) in changes {
        launch = launch.env(key, value);
    }
    let ended = launch.run(STEP).await?;
    let lines = ended.log.iter().map(|line| line.text.clone()).collect();
    report.programs.push(Program {
        name: format!("{step}{dry}"),
        exit: Some(ended.exit_code),
        lines,
    });
    harness::migration::succeeded(step, &ended)
}

fn names() -> Names {
    Names {
        source_cluster: "mastodon-postgresql".into(),
        target_cluster: CLUSTER.into(),
        namespace: NAMESPACE.into(),
        source_postgres: "17.10".into(),
        target_postgres: "17.10".into(),
        patroni: "4.0.4".into(),
        kubernetes: "1.34.4".into(),
    }
}

fn page_file() -> PathBuf {
    target_directory().join("rehearse/report.html")
}

/// True for the writer that is not part of the application.
fn is_unmanaged(client: &str) -> bool {
    client.starts_with(UNMANAGED)
}
