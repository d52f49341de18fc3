//! `make e2e`: the quick start of README on a real cluster with both real operators, under write
//! load, with a verdict at the end.
//!
//! It runs against the cluster of $KUBECONFIG, which needs the Zalando postgres-operator (watching
//! all namespaces), CloudNativePG and a default storage class. It creates a namespace of its own
//! and removes it at the end, also after a failure or Ctrl-C. It calls `kubectl` as README tells
//! users to. All variables are optional, except for the images where the cluster cannot pull the
//! defaults:
//!
//! - `E2E_IMAGE`: the programs; default replica-migration:0.1.0
//! - `E2E_TARGET_IMAGE`: PostgreSQL for CloudNativePG
//! - `E2E_SOURCE_IMAGE`: Spilo; default: the one that the Zalando operator is configured with
//! - `E2E_WRITER_IMAGE`: bash and psql for the application's clients; default: the target's image
//! - `E2E_NAMESPACE`: must not exist yet; default: e2e- and digits
//! - `E2E_ROUTE`: service (default) or config
//! - `E2E_KILL`: 1: force-delete the cutover's pod once writes are blocked; any other text: when
//!   the log contains it
//! - `E2E_KILL_WITH`: program that ends the pod instead of kubectl; arguments: namespace and pod
//!   name
//! - `E2E_BEFORE`: program that runs under load before the cutover, to try what no variable covers,
//!   for example a cutover that is rolled back; argument: the namespace
//! - `E2E_ARCHIVE_RESTART`: before-traffic: CloudNativePG restarts the target during the cutover;
//!   default: it does not
//! - `E2E_SKIP_WAL_ARCHIVING`: 1: create the target with cnpg.io/skipWalArchiving
//! - `E2E_WATCH_SECONDS`: how long the clients are watched after the downtime; default 60
//! - `E2E_AUDIT_LOG`: the API server's audit log, needed to check for refused requests
//! - `E2E_KEEP`: 1: keep the namespace
//!
//! Without the operators, `tests/it/cutover` runs the same scenario against the harness and a real
//! control plane.

mod application;
mod checks;
mod clients;
mod environment;
mod kubectl;
mod overlay;
mod report;
mod settings;
mod source;
mod step;
mod target;
mod verdict;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use harness::{ledger::Topology, route::Route, setup::target_directory};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    checks::Receipt, clients::ClientOutput, kubectl::Kubectl, report::Report, settings::Settings,
    step::Ended, verdict::Collected,
};

/// Writes that must be acknowledged before the cutover, so that it happens under load.
const WRITES_BEFORE: usize = 300;
/// CloudNativePG reports the phase healthy some seconds after the restart.
const HEALTHY: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nFAIL  {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the scenario, and removes the namespace whatever the outcome is.
async fn run() -> Result<bool> {
    let settings = Settings::read()?;
    let kubectl = Kubectl {
        namespace: settings.namespace.clone(),
    };
    let folder = folder(&settings)?;
    println!("{}", settings.description());
    environment::create(&kubectl).await?;
    let outcome = tokio::select! {
        outcome = scenario(&kubectl, &settings, &folder) => outcome,
        signal = interrupted() => Err(anyhow::anyhow!("{signal}")),
    };
    if !matches!(outcome, Ok(true)) {
        environment::keep_state(&kubectl, &folder).await;
    }
    if settings.keep {
        println!("\nE2E_KEEP: the namespace {} is kept", kubectl.namespace);
    } else {
        tokio::select! {
            () = environment::remove(&kubectl) => {}
            signal = interrupted() => bail!(
                "{signal} again: the namespace {} is only partly removed", kubectl.namespace
            ),
        }
    }
    println!("\nlogs and report: {}", folder.display());
    outcome
}

/// The migration from the source's creation to the promoted Cluster, and the verdict.
async fn scenario(kubectl: &Kubectl, settings: &Settings, folder: &Path) -> Result<bool> {
    source::up(kubectl, settings).await?;
    let application = application::up(kubectl, settings).await?;

    let overlay = overlay::write(folder, settings)?;
    kubectl
        .run_shown(&["apply", "-k", &overlay.display().to_string()])
        .await?;
    step::done(kubectl, "prepare-zalando", "prepare-1").await?;
    step::done(kubectl, "extract-certs", "certs-1").await?;
    target::apply_rendered(kubectl, settings).await?;
    step::done(kubectl, "validate-replication", "validate-1").await?;

    application.acknowledges(WRITES_BEFORE).await?;
    if let Some(program) = &settings.before {
        step::call(program, &[&kubectl.namespace])
            .await
            .context("E2E_BEFORE")?;
    }
    let source_addresses = source::members(kubectl).await?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut failures = Vec::new();
    let cutover = cutover(kubectl, settings, &mut failures).await?;
    let receipt = Receipt::read(kubectl).await?;
    watch(kubectl, settings, &receipt).await?;
    // validate-cnpg and rollback are not part of the scenario yet.

    let lines = application.stop().await?;
    fs::write(folder.join("clients.log"), lines.join("\n"))?;
    let collected = Collected {
        output: ClientOutput::read(lines.iter().map(String::as_str))?,
        on_target: source::ledger(kubectl, &["database-1", "-c", "postgres", "--"]).await?,
        on_source: source::rows(kubectl).await?,
        topology: Topology {
            source: source_addresses,
            target: target::instances(kubectl).await?,
            fenced: Some(receipt.instant("promotion")?),
        },
    };
    failures.extend(receipt.failures(&cutover));
    failures.extend(checks::events(kubectl, &cutover).await?);
    let (permissions, refused) =
        checks::refused(settings.audit_log.as_deref(), &settings.namespace)?;
    failures.extend(refused);
    let mut report = Report {
        description: settings.description(),
        unnoticed: settings.route == Route::Service,
        bar: bar(settings),
        watched: settings.watch,
        load: load.split(' ').take(2).collect::<Vec<_>>().join(" "),
        steps: receipt.steps(),
        permissions,
        failures,
        ..Report::default()
    };
    verdict::judge(&mut report, settings.route, &collected)?;
    write_report(&report, &cutover, folder)
}

/// Runs the cutover, and once more if the first attempt was killed on purpose and rolled back.
async fn cutover(
    kubectl: &Kubectl,
    settings: &Settings,
    failures: &mut Vec<String>,
) -> Result<Ended> {
    let kill = settings.kill.is_some().then_some(settings);
    let mut ended = step::run(kubectl, "cutover", "cutover-1", kill).await?;
    if kill.is_some() && ended.killed.is_none() {
        failures.push("the pod was not killed: its log never contained the text".to_owned());
    }
    if ended.killed.is_some() && !ended.failures().is_empty() {
        println!(
            "\nthe cutover that was killed ended with {}; the next attempt",
            ended.failures().join("; ")
        );
        let killed = ended.killed.take();
        ended = step::run(kubectl, "cutover", "cutover-2", None).await?;
        ended.killed = killed;
    }
    failures.extend(ended.failures());
    Ok(ended)
}

/// Waits for the period in which no client may be interrupted again, and for CloudNativePG to
/// report the end of the promotion.
async fn watch(kubectl: &Kubectl, settings: &Settings, receipt: &Receipt) -> Result<()> {
    let now = Timestamp::now()
        .duration_since(Timestamp::UNIX_EPOCH)
        .unsigned_abs();
    let end = receipt.instant("serving")? + settings.watch;
    println!(
        "\nwatching the clients until {} s after DOWNTIME ENDS",
        settings.watch.as_secs()
    );
    tokio::time::sleep(end.saturating_sub(now)).await;
    let healthy = [
        "wait",
        "--for=jsonpath={.status.phase}=Cluster in healthy state",
        "cluster/database",
    ];
    kubectl.wait(&healthy, HEALTHY).await
}

/// The longest wait that is acceptable for a client of the example application.
fn bar(settings: &Settings) -> Duration {
    Duration::from_millis(match (settings.route, settings.with_restart()) {
        (Route::Service, true) => 3_500,
        (Route::Service, false) => 2_000,
        (Route::Config, _) => 8_000,
    })
}

fn write_report(report: &Report, cutover: &Ended, folder: &Path) -> Result<bool> {
    let text = report.lines().join("\n");
    println!("\n{text}");
    fs::write(folder.join("report.txt"), text)?;
    fs::write(folder.join("cutover.log"), cutover.lines.join("\n"))?;
    fs::write(
        folder.join("summary.json"),
        serde_json::to_string_pretty(&report.summary())?,
    )?;
    Ok(report.all_failures().is_empty())
}

fn folder(settings: &Settings) -> Result<PathBuf> {
    let folder = target_directory().join("e2e").join(&settings.namespace);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder.canonicalize()?)
}

/// Resolves on SIGTERM or Ctrl-C.
async fn interrupted() -> &'static str {
    let Ok(mut term) = signal(SignalKind::terminate()) else {
        return "no signals";
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = tokio::signal::ctrl_c() => "interrupted",
    }
}
