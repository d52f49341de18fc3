//! `make bench`: what the programs add to a cut, beside the floor that a bare script reaches on the same kind of stage in the same
//! run, and what a program costs to start. Figures of one run, as medians; absolute times are the machine's.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    application::Origin,
    authority::Authority,
    kubelet::program,
    migration::{CLUSTER, Migration, succeeded},
    source::SourceOptions,
};
use tokio::{net::TcpListener, time::timeout};

use crate::{STEP, WRITES_AFTER, cut, floor, report::Report};

/// Cuts of each kind.
const CUTS: usize = 5;
/// Starts of a program.
const STARTS: usize = 20;
/// The goal of the issue: what the programs may add to the target's own time.
const ADDED_MS_MAX: u128 = 500;

/// Runs everything and prints the table.
pub async fn bench() -> Result<()> {
    let (mut added, mut waited, mut floors, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=CUTS {
        let (report, peak_bytes) = one_cut().await.with_context(|| format!("cut {round}"))?;
        ensure!(report.verdict.holds(), "cut {round} has broken a promise: {:?}", report.verdict);
        let own = report.own_time().context("the cut has no times")?;
        added.push(own);
        waited.push(report.verdict.gap.context("the cut has no gap")?.length());
        memory.push(peak_bytes);
        let script = floor::cut().await.with_context(|| format!("bare script {round}"))?;
        floors.push(script);
        println!("cut {round}: added {} ms, bare script {} ms", own.as_millis(), script.as_millis());
    }
    let starts = starts().await?;
    let ms = |values: &mut Vec<Duration>| {
        values.sort();
        values[values.len() / 2].as_millis()
    };
    let (added, floor) = (ms(&mut added), ms(&mut floors));
    memory.sort_unstable();
    println!("\nmedian of {CUTS}, block to the target's first write less the target's own time");
    println!("  cutover                      {added:>6} ms   goal {ADDED_MS_MAX} ms or less");
    println!("  bare script                  {floor:>6} ms   sql fence, pg_promote, no proof, no record, no way back");
    println!("  cutover / bare script        {:>6.1}", added as f64 / floor.max(1) as f64);
    println!(
        "  wait of all clients          {:>6} ms   with promotion, restart and the pods' start",
        ms(&mut waited)
    );
    println!(
        "  cutover resident             {:>6.1} MB  goal 40 MB or less",
        memory[memory.len() / 2] as f64 / 1e6
    );
    println!("median of {STARTS} starts, process start to first call of the api");
    for (name, mut times) in starts {
        println!("  {name:<28} {:>6} ms   goal 50 ms or less", ms(&mut times));
    }
    Ok(())
}

/// A stage, the steps, and the cut.
async fn one_cut() -> Result<(Report, u64)> {
    let origin = Origin::now();
    let migration = Migration::stage(SourceOptions::default(), origin, |_| ()).await?;
    let target = migration.until_ready().await?;
    let ended = migration.step("cutover").run(STEP).await?;
    succeeded("cutover", &ended)?;
    migration.application.acknowledges(WRITES_AFTER, STEP).await?;
    migration.target.phase(CLUSTER, "Cluster in healthy state", STEP).await?;
    let mut report = Report::default();
    cut::judge(migration, target, &mut report, origin).await?;
    Ok((report, ended.memory_peak_bytes))
}

/// How long each program takes until it knocks at the API server's door.
async fn starts() -> Result<Vec<(&'static str, Vec<Duration>)>> {
    let door = TcpListener::bind("127.0.0.1:0").await?;
    let address = door.local_addr()?;
    let account = std::env::temp_dir().join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&account)?;
    let authority = Authority::root("bench")?;
    for (name, text) in [("token", "a"), ("namespace", "a"), ("ca.crt", authority.certificate())] {
        std::fs::write(account.join(name), text)?;
    }
    let mut all = Vec::new();
    for name in ["prepare-zalando", "extract-certs", "validate-replication", "cutover"] {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let begun = Instant::now();
            let mut child = Command::new(program(name).await?)
                .env_clear()
                .env("SERVICE_ACCOUNT_DIRECTORY", &account)
                .env("KUBERNETES_SERVICE_HOST", address.ip().to_string())
                .env("KUBERNETES_SERVICE_PORT", address.port().to_string())
                .envs(ENVIRONMENT)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let knocked = timeout(STEP, door.accept()).await;
            times.push(begun.elapsed());
            child.kill()?;
            child.wait()?;
            knocked.with_context(|| format!("{name} has not called the api"))??;
        }
        all.push((name, times));
    }
    std::fs::remove_dir_all(account)?;
    Ok(all)
}

/// Enough for every program to come to its first call.
const ENVIRONMENT: [(&str, &str); 30] = [
    ("SOURCE_CLUSTER", "a"),
    ("TARGET_CLUSTER", "b"),
    ("DATABASE", "a"),
    ("SOURCE_HOST", "127.0.0.1"),
    ("SOURCE_PORT", "5432"),
    ("SOURCE_USER", "postgres"),
    ("SOURCE_SSLMODE", "require"),
    ("SOURCE_PASSWORD_FILE", "/dev/null"),
    ("TARGET_HOST", "127.0.0.1"),
    ("TARGET_PORT", "5432"),
    ("TARGET_USER", "postgres"),
    ("TARGET_SSLMODE", "require"),
    ("TARGET_PASSWORD_FILE", "/dev/null"),
    ("SOURCE_AUTH", "standby"),
    ("ALLOW_SOURCE_ROLLING_UPDATE", "false"),
    ("WAL_KEEP_MB", ""),
    ("TARGET_IMAGE", "a:17.10"),
    ("TARGET_STORAGE", "1Gi"),
    ("TARGET_STORAGE_CLASS", ""),
    ("ADOPT_IMAGE", "a:1"),
    ("CERT_MIN_DAYS", "30"),
    ("KEY_TABLES", "a"),
    ("LAG_BYTES_MAX", "1"),
    ("VALIDATE_MAX_SECONDS", "10"),
    ("APPS", "a"),
    ("APP_CONFIGMAP", "a"),
    ("APP_CONFIG_TARGET", "A=b"),
    ("ROUTE", "config"),
    ("DRY_RUN", "false"),
    ("CUTOVER_MAX_SECONDS", "10"),
];
