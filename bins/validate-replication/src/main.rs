//! Shows that the target is a physical copy of the source, streams from it, and is ready for
//! cutover.
//!
//! **Promise** when it exits 0: system identifier, timeline and version agree, the target streams
//! from the source's leader and lags at most `LAG_BYTES_MAX` behind, the rows of `KEY_TABLES` have
//! arrived, and nothing is left that cutover would refuse for. Exit 1: not yet at the deadline; 2:
//! a setting, Secret or permission is wrong; 3: the cutover must not begin, or has taken place.
//!
//! **Steps**
//! 1. refuse to run after a cutover; find the `postgresql` resource and the Cluster, and connect to
//!    the source
//! 2. while the target does not answer: show how far the clone is (`wait_clone.rs`, `clone.rs`), at
//!    most `VALIDATE_MAX_SECONDS`
//! 3. observe both servers and all objects (`platform::collector`), judge (`protocol::checks`), and
//!    wait for what settles by itself (`wait_ready.rs`)
//! 4. watch the replay follow the source and compare collations (`data_checks.rs`) and row counts
//!    (`row_counts.rs`)
//! 5. list everything that blocks a cutover
//!
//! It reads only, with one exception: a clone, or a further instance that joins (`joins.rs`), and
//! waits for the next checkpoint gets one at once.
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`.

mod clone;
mod collations;
mod data_checks;
mod joins;
mod log;
mod row_counts;
mod settings;
mod wait_clone;
mod wait_ready;

use std::process::ExitCode;

use data_checks::Sessions;
use job::{
    context::{self, JobContext},
    error::{Error, ErrorKind, Result},
    record_store,
};
use platform::collector::{
    Collector,
    endpoints::{Endpoints, Login},
};
use protocol::{checks, finding::worst};
use settings::Settings;
use tokio::time::Instant;

const LOGIN: Login = Login {
    program: "validate-replication",
    read_only: true,
};

fn main() -> ExitCode {
    context::main(
        "validate-replication",
        async |settings: Settings, run: JobContext| {
            run.until_stopped(validate(&settings, &run)).await
        },
    )
}

async fn validate(settings: &Settings, run: &JobContext) -> Result<()> {
    let deadline = Instant::now() + settings.validate_max();
    let limits = settings.limits();
    let endpoints = Endpoints::from_environment(&settings.database, LOGIN)?;
    let (client, subject) = (run.client.clone(), settings.subject());
    let mut collector = Collector::new(client, &run.namespace, subject, endpoints);
    // First, because what is found about a target that is gone or promoted would mislead after a
    // cutover. But that its record cannot be read says less than that its name is wrong.
    let cutover = record_store::refuse_after_cutover(&run.client, &run.namespace, &run.target);
    let none_yet = match cutover.await {
        Err(error) if error.kind() == ErrorKind::Refused => return Err(error),
        other => other,
    };
    let (_, cluster) = collector.resources().await?;
    none_yet?;
    // Once the target is promoted the source may be down for good: that it is promoted is the more
    // helpful error.
    let following = || worst(&[checks::replica_mode(&cluster.state(), None)]);
    let source = collector
        .endpoints()
        .source()
        .await
        .or_else(|error| following().map_err(Error::from).and(Err(error)))?;
    log::begin(run, settings, collector.endpoints());

    drop(wait_clone::wait(run, settings, &collector, source, deadline).await?);
    let mut snapshot = wait_ready::wait(run, &mut collector, &limits, deadline).await?;
    let replication = worst(&checks::replication(&snapshot, &limits));
    let (source, target) = collector.sessions().await?;
    let primary = snapshot.source.answer().is_some_and(|one| one.primary);
    let flushed = if primary {
        Some(data_checks::flush_lsn(source).await?)
    } else {
        None
    };
    log::positions(run, &snapshot, flushed);
    log::findings(run, &checks::all(&snapshot, &limits));

    if replication.is_ok() {
        log::data_begins(run);
        let sessions = Sessions { source, target };
        snapshot.data = Some(data_checks::compare(settings, sessions).await?);
        log::findings(run, &checks::data(&snapshot, &limits));
    } else {
        log::data_skipped(run);
    }
    let findings = checks::all(&snapshot, &limits);
    log::end(run, &findings);
    Ok(worst(&findings)?)
}
