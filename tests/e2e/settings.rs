//! The environment variables of `make e2e`.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use harness::route::Route;

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// E2E_NAMESPACE: created and removed by the run. Default: `e2e-` and some digits.
    pub namespace: String,
    /// E2E_IMAGE: the programs.
    pub image: String,
    /// E2E_SOURCE_IMAGE: Spilo. Default: the image that the Zalando operator is configured with.
    pub source_image: Option<String>,
    /// E2E_TARGET_IMAGE: PostgreSQL for CloudNativePG.
    pub target_image: String,
    /// E2E_WRITER_IMAGE: bash and psql, for the application's clients. Default: the target's image,
    /// which has both.
    pub writer_image: String,
    /// E2E_ROUTE: service or config.
    pub route: Route,
    /// E2E_KILL: end the cutover's pod once, when its log contains this text; `1`: when writes are
    /// blocked.
    pub kill: Option<String>,
    /// E2E_KILL_WITH: a program that ends the pod instead of `kubectl delete pod --force
    /// --grace-period=0`. Its arguments are the namespace and the pod's name.
    pub kill_with: Option<String>,
    /// E2E_BEFORE: a program that runs under load before the cutover, to try what no variable
    /// covers; the verdict counts what it has lost. Its argument is the namespace.
    pub before: Option<String>,
    /// E2E_KEEP: keep the namespace at the end.
    pub keep: bool,
    /// E2E_WATCH_SECONDS: how long the clients are observed after DOWNTIME ENDS.
    pub watch: Duration,
    /// E2E_ARCHIVE_RESTART: the setting ARCHIVE_RESTART, never or before-traffic. Default: that of
    /// settings.env.
    pub archive_restart: Option<String>,
    /// E2E_SKIP_WAL_ARCHIVING: create the Cluster with cnpg.io/skipWalArchiving, so that
    /// CloudNativePG does not restart it.
    pub skip_wal_archiving: bool,
    /// E2E_AUDIT_LOG: the API server's audit log, if it can be read here.
    pub audit_log: Option<PathBuf>,
}

/// The target's image, as in manifests/base/settings.env.
const TARGET_IMAGE: &str = "ghcr.io/cloudnative-pg/postgresql:17.6-standard-trixie";
const IMAGE: &str = "replica-migration:0.1.0";
const KILL_AT: &str = "writes are blocked";

impl Settings {
    /// Reads the environment variables.
    ///
    /// # Errors
    /// A variable has an invalid value.
    pub fn read() -> Result<Self> {
        let target_image = text("E2E_TARGET_IMAGE").unwrap_or_else(|| TARGET_IMAGE.to_owned());
        Ok(Self {
            namespace: text("E2E_NAMESPACE").unwrap_or_else(|| {
                format!("e2e-{}", jiff::Timestamp::now().as_second() % 1_000_000)
            }),
            image: text("E2E_IMAGE").unwrap_or_else(|| IMAGE.to_owned()),
            source_image: text("E2E_SOURCE_IMAGE"),
            writer_image: text("E2E_WRITER_IMAGE").unwrap_or_else(|| target_image.clone()),
            target_image,
            route: match text("E2E_ROUTE").as_deref() {
                None | Some("service") => Route::Service,
                Some("config") => Route::Config,
                Some(other) => bail!("E2E_ROUTE={other}: service or config"),
            },
            kill: text("E2E_KILL")
                .filter(|at| at != "0")
                .map(|at| if at == "1" { KILL_AT.to_owned() } else { at }),
            kill_with: text("E2E_KILL_WITH"),
            before: text("E2E_BEFORE"),
            keep: switch("E2E_KEEP")?,
            watch: Duration::from_secs(match text("E2E_WATCH_SECONDS") {
                None => 60,
                Some(seconds) => seconds
                    .parse()
                    .with_context(|| format!("E2E_WATCH_SECONDS={seconds}: not a number"))?,
            }),
            archive_restart: text("E2E_ARCHIVE_RESTART"),
            skip_wal_archiving: switch("E2E_SKIP_WAL_ARCHIVING")?,
            audit_log: text("E2E_AUDIT_LOG").map(PathBuf::from),
        })
    }

    /// Whether CloudNativePG restarts the target during the cutover.
    pub fn with_restart(&self) -> bool {
        self.archive_restart.as_deref() == Some("before-traffic") && !self.skip_wal_archiving
    }

    /// The settings in one line.
    pub fn description(&self) -> String {
        let restart = match (self.with_restart(), self.skip_wal_archiving) {
            (true, _) => "with CNPG's restart",
            (false, true) => "without a WAL archive",
            (false, false) => "without a restart",
        };
        let kill = self
            .kill
            .as_ref()
            .map_or_else(String::new, |at| format!(", the pod killed at {at:?}"));
        format!(
            "ROUTE={}, {restart}{kill}, namespace {}",
            self.route.word(),
            self.namespace
        )
    }
}

/// The value of a variable that is set and not empty.
fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn switch(name: &str) -> Result<bool> {
    match text(name).as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => bail!("{name}={other}: 1 or 0"),
    }
}
