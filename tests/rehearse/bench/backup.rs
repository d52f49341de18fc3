//! The backup compared with pg_basebackup: same server, role, compression and file system,
//! alternating in every round.

use std::{fs, path::Path, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    control_plane::ControlPlane,
    cost::{Cost, CostMonitor},
    kubelet::{Kubelet, built},
    manifests,
    migration::{NAMESPACE, succeeded},
    process::Process,
    service::Services,
    source::{Source, SourceOptions},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

const SOURCE: &str = "mastodon-postgresql";
const ROUNDS: usize = 3;
/// How often the table is doubled: to about 1.3 GB.
const DOUBLINGS: u32 = 7;
/// Limit for one copy.
const LIMIT: Duration = Duration::from_secs(300);
/// The goal: one core for 300 MB/s.
const MB_OF_A_CORE: f64 = 300.0;

/// Time and resources of one copy.
#[derive(Clone, Copy, Debug)]
struct Measurement {
    elapsed: Duration,
    cost: Cost,
}

/// Medians of one program.
struct Medians {
    rate: f64,
    cores: f64,
    resident: f64,
}

/// Measures both programs and prints a line for each.
pub async fn bench() -> Result<()> {
    let environment = Environment::start().await?;
    println!("\nbase backup to a directory, median of {ROUNDS}, in turns");
    for (how, compress_by, compress) in [
        ("by the server", "server", "server-zstd"),
        // final-backup requests a worker thread; pg_basebackup does not by default.
        (
            "by the server, in a thread for both",
            "server",
            "server-zstd:workers=1",
        ),
        ("on this side", "job", "client-zstd"),
    ] {
        let (mut own, mut other, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            other.push(environment.pg_basebackup(compress).await?);
            let measurement;
            (measurement, bytes) = environment.final_backup(compress_by).await?;
            own.push(measurement);
        }
        let (own, other) = (medians(&own, bytes), medians(&other, bytes));
        println!("zstd {how}, {:.1} GB", bytes as f64 / 1e9);
        line("final-backup", &own);
        line("pg_basebackup -Ft -X stream", &other);
        println!(
            "  {:<28} {:>6.2}       goal 1.00 or more",
            "rate of the two",
            own.rate / other.rate
        );
    }
    Ok(())
}

fn line(name: &str, medians: &Medians) {
    println!(
        "  {name:<28} {:>6.0} MB/s  {:.2} cores per {MB_OF_A_CORE} MB/s, {:.0} MB resident",
        medians.rate, medians.cores, medians.resident
    );
}

fn medians(all: &[Measurement], bytes: u64) -> Medians {
    let median = |value: &dyn Fn(&Measurement) -> f64| {
        let mut values: Vec<f64> = all.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let megabytes = bytes as f64 / 1e6;
    Medians {
        rate: median(&|measurement| megabytes / measurement.elapsed.as_secs_f64()),
        cores: median(&|measurement| {
            measurement.cost.processor.as_secs_f64() * MB_OF_A_CORE / megabytes
        }),
        resident: median(&|measurement| measurement.cost.memory_peak_bytes as f64 / 1e6),
    }
}

/// A source of one member, before the cutover.
struct Environment {
    plane: Arc<ControlPlane>,
    source: Source,
    kubelet: Kubelet,
    /// The volume that components/backup-volume mounts.
    volume: PathBuf,
}

impl Environment {
    async fn start() -> Result<Self> {
        let plane = Arc::new(ControlPlane::start().await?);
        plane.namespace(NAMESPACE).await?;
        plane
            .apply(
                NAMESPACE,
                &manifests::example_with(plane.setup(), &["backup-volume"])?,
            )
            .await?;
        let options = SourceOptions {
            members: 1,
            ..SourceOptions::default()
        };
        let source = Source::start(&plane, options).await?;
        let services = Arc::new(
            Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE).await?,
        );
        services.wait_for(SOURCE, LIMIT).await?;
        let kubelet = Kubelet::with_programs(&plane, &services, NAMESPACE, built().await?);
        let volume = plane
            .instance()
            .subdirectory(plane.setup(), "claims/zalando-backup")?;
        let ca = fs::read_to_string(source.members()[0].layout().tls.join("ca.crt"))?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-replication-ca"},
            "stringData": {"ca.crt": ca}
        });
        plane.apply(NAMESPACE, &[secret]).await?;
        let session = source.connect(NAMESPACE).await?;
        // Rows that compress to about half, and are farther apart than the compression window.
        session
            .batch_execute(
                "create table filler (text text); alter table filler alter column text set storage \
                 external;
                 insert into filler select (select string_agg(md5(n::text || m), '') from \
                 generate_series(1, 250) m)
                   from generate_series(1, 1250) n",
            )
            .await?;
        for _ in 0..DOUBLINGS {
            session
                .batch_execute("insert into filler select text from filler")
                .await?;
        }
        // Warm-up before the measurements: hint bits, and the files in memory.
        for warm_up in [
            "vacuum filler",
            "select sum(length(text)) from filler",
            "checkpoint",
        ] {
            session.batch_execute(warm_up).await?;
        }
        Ok(Self {
            plane,
            source,
            kubelet,
            volume,
        })
    }

    /// Runs final-backup without reading the backup back, as pg_basebackup does not either; returns
    /// the bytes of all copied files as well.
    async fn final_backup(&self, compress_by: &str) -> Result<(Measurement, u64)> {
        let step = self
            .kubelet
            .step("final-backup")
            .env("VERIFY", "stream")
            .env("COMPRESS_BY", compress_by);
        let ended = step.run(LIMIT).await?;
        succeeded("final-backup", &ended)?;
        let folder = self.volume.join("final");
        let complete: Value = serde_json::from_slice(&fs::read(folder.join("complete.json"))?)?;
        fs::remove_dir_all(folder)?;
        let measurement = Measurement {
            elapsed: ended.elapsed,
            cost: ended.cost,
        };
        Ok((
            measurement,
            complete["bytes"]
                .as_u64()
                .context("complete.json has no bytes")?,
        ))
    }

    async fn pg_basebackup(&self, compress: &str) -> Result<Measurement> {
        let setup = self.plane.setup();
        let folder = self.volume.join("other");
        let mut command = setup.postgres("pg_basebackup");
        let address = self.source.members()[0].address();
        command
            .env("PGPASSWORD", &self.source.credentials().standby)
            .args([
                "--format=tar",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--compress",
                compress,
                "--pgdata",
            ])
            .arg(&folder)
            .arg(format!(
                "--dbname=host={address} user=standby sslmode=require"
            ));
        let log = self.volume.join("pg_basebackup.log");
        let begun = Instant::now();
        let process = Process::start("pg_basebackup", command, &log)?;
        let cost_monitor = CostMonitor::process(process.pid());
        let status = timeout(LIMIT, process.wait())
            .await
            .context("pg_basebackup takes too long")?;
        let elapsed = begun.elapsed();
        ensure!(status.success(), process.error_with_log("pg_basebackup"));
        remove(&folder, &log)?;
        Ok(Measurement {
            elapsed,
            cost: cost_monitor.cost(),
        })
    }
}

fn remove(folder: &Path, log: &Path) -> Result<()> {
    fs::remove_dir_all(folder)?;
    fs::remove_file(log).context("removing the log of pg_basebackup")
}
