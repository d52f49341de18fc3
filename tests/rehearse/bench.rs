//! `make bench`: what the programs add to a cutover, compared with the baseline of a bare script in
//! the same kind of environment and run; what a program's start costs; and the backup compared with
//! pg_basebackup. Medians of one run; absolute times depend on the machine.

mod backup;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
pub use backup::bench as backup;
use harness::{
    application::Epoch,
    kubelet::program,
    migration::{CLUSTER, Migration, succeeded},
    source::SourceOptions,
    start_probe::StartProbe,
};

use crate::{STEP, WRITES_AFTER, baseline, cutover, report::Report};

/// Cutovers of each kind.
const CUTOVERS: usize = 5;
/// Starts of each program.
const STARTS: usize = 20;
/// Goal for the time that the programs may add to the target's own time.
const ADDED_MS_MAX: u128 = 500;

/// Runs all measurements and prints the table.
pub async fn bench() -> Result<()> {
    let (mut added, mut waited, mut baselines, mut memory) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=CUTOVERS {
        let (report, peak_bytes) = one_cutover()
            .await
            .with_context(|| format!("cutover {round}"))?;
        ensure!(
            report.verdict.holds(),
            "cutover {round} broke a promise: {:?}",
            report.verdict
        );
        let own = report.own_time().context("the cutover has no times")?;
        added.push(own);
        waited.push(
            report
                .verdict
                .gap
                .context("the cutover has no gap")?
                .length(),
        );
        memory.push(peak_bytes);
        let script = baseline::cutover()
            .await
            .with_context(|| format!("bare script {round}"))?;
        baselines.push(script);
        println!(
            "cutover {round}: added {} ms, bare script {} ms",
            own.as_millis(),
            script.as_millis()
        );
    }
    let starts = starts().await?;
    let ms = |values: &mut Vec<Duration>| {
        values.sort();
        values[values.len() / 2].as_millis()
    };
    let (added, baseline) = (ms(&mut added), ms(&mut baselines));
    memory.sort_unstable();
    println!(
        "\nmedian of {CUTOVERS}, block to the target's first write less the target's own time"
    );
    println!("  cutover                      {added:>6} ms   goal {ADDED_MS_MAX} ms or less");
    println!(
        "  bare script                  {baseline:>6} ms   sql fence, pg_promote, no verification, \
         no record, no rollback"
    );
    println!(
        "  cutover / bare script        {:>6.1}",
        added as f64 / baseline.max(1) as f64
    );
    println!(
        "  wait of all clients          {:>6} ms   with the promotion, until they write on the \
         target",
        ms(&mut waited)
    );
    println!(
        "  cutover resident             {:>6.1} MB  goal 40 MB or less",
        memory[memory.len() / 2] as f64 / 1e6
    );
    println!("median of {STARTS} starts, process start to first call of the API");
    for (name, mut times) in starts {
        println!("  {name:<28} {:>6} ms   goal 50 ms or less", ms(&mut times));
    }
    backup().await
}

/// Sets up an environment and runs all steps including the cutover.
async fn one_cutover() -> Result<(Report, u64)> {
    let epoch = Epoch::now();
    let migration = Migration::set_up(SourceOptions::default(), epoch, |_| ()).await?;
    let target = migration.until_ready().await?;
    let ended = migration.step("cutover").run(STEP).await?;
    succeeded("cutover", &ended)?;
    migration
        .application
        .acknowledges(WRITES_AFTER, STEP)
        .await?;
    migration
        .target
        .phase(CLUSTER, "Cluster in healthy state", STEP)
        .await?;
    let mut report = Report::default();
    cutover::judge(migration, target, &mut report, epoch).await?;
    Ok((report, ended.cost.memory_peak_bytes))
}

/// How long each program takes until its first call of the API server.
async fn starts() -> Result<Vec<(&'static str, Vec<Duration>)>> {
    let probe = StartProbe::new().await?;
    let mut all = Vec::new();
    for name in [
        "prepare-zalando",
        "extract-certs",
        "validate-replication",
        "cutover",
        "final-backup",
    ] {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            times.push(probe.start(&program(name).await?, name).await?.elapsed);
        }
        all.push((name, times));
    }
    Ok(all)
}
