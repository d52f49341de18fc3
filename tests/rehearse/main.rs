//! `make rehearse`: the whole migration on this machine, in the order of guide.md, with a verdict
//! and a page to keep.

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

/// A step may take so long before something is wrong.
const STEP: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged by the target before the verdict.
const WRITES_AFTER: usize = 400;
/// The chart's slices.
const SLICE: Duration = Duration::from_millis(100);
/// A second hole of this length is shown.
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

/// `bench` as the only argument measures, `bench-backup` the backup only; nothing rehearses.
async fn chosen() -> Result<bool> {
    harness::setup::Setup::ready().await?;
    match std::env::args().nth(1).as_deref() {
        None => rehearse().await,
        Some("bench") => bench::bench().await.map(|()| true),
        Some("bench-backup") => bench::backup().await.map(|()| true),
        Some(other) => anyhow::bail!("{other:?} is no argument of this; give none, or bench"),
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
    // CNPG's phase says healthy long after the restart; whatever still happens until then belongs
    // to the verdict.
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

/// Runs a step as `kubectl create job --from=cronjob/…` does, and prints its log as it comes.
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

/// The writer that nobody told about the migration.
fn is_unmanaged(client: &str) -> bool {
    client.starts_with(UNMANAGED)
}
