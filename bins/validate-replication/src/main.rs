//! Shows that the target is a physical copy of the source, streams from it, and is ready for
//! cutover.
//!
//! **Promise** when it exits 0: system identifier, timeline and version agree, the target streams
//! from the source's leader and lags at most `LAG_BYTES_MAX` behind, the rows of `KEY_TABLES` have
//! arrived, and nothing is left that cutover would refuse for. Exit 1: not yet at the deadline; 2:
//! a setting, Secret or permission is wrong; 3: the cut must not begin.
//!
//! **Steps**
//! 1. find the `postgresql` resource and the Cluster, and connect to the source
//! 2. while the target does not answer: show how far the clone is (`clone.rs`), at most
//!    `VALIDATE_MAX_SECONDS`
//! 3. look at both servers and all objects (`look.rs`), judge (`checks.rs` and
//!    `protocol::checks`), and wait for what comes right by itself (`settle.rs`)
//! 4. watch the replay follow the source (`movement.rs`), compare collations (`collations.rs`) and
//!    row counts (`counts.rs`)
//! 5. list everything that stands against a cut
//!
//! It reads only, with one exception: a clone that waits for the source's next checkpoint gets one
//! at once.
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`.

mod arrival;
mod catalog;
mod checks;
mod clone;
mod collations;
mod consistency;
mod counting;
mod counts;
mod doors;
mod look;
mod movement;
mod narrate;
mod sessions;
mod settings;
mod settle;

use std::process::ExitCode;

use job::{
    context::{self, Run},
    error::{Error, Result},
};
use protocol::checks::{objects::replica_mode, worst};
use sessions::Ends;
use settings::Settings;
use tokio::time::Instant;

fn main() -> ExitCode {
    context::main(
        "validate-replication",
        async |settings: Settings, run: Run| run.until_stopped(validate(&settings, &run)).await,
    )
}

async fn validate(settings: &Settings, run: &Run) -> Result<()> {
    let deadline = Instant::now() + settings.validate_max();
    let ends = Ends::from_environment(&settings.database)?;
    let (_, cluster) = look::resources(run, settings).await?;
    // After a cut the source is down for good: that the target has been promoted says more than
    // that nobody answers.
    let following = || worst(&[replica_mode(&cluster.seen())]);
    let source = ends
        .source()
        .await
        .or_else(|error| following().map_err(Error::from).and(Err(error)))?;
    narrate::begin(run, settings, &ends);

    drop(arrival::wait(run, settings, &ends, source, deadline).await?);
    let settled = settle::wait(run, settings, &ends, deadline).await?;
    narrate::status(run, &settled);

    let mut findings = settled.of_servers.clone();
    if worst(&findings).is_ok() {
        narrate::data_begins(run);
        let of_data = consistency::check(settings, &settled).await?;
        narrate::findings(run, &of_data);
        findings.extend(of_data);
    } else {
        narrate::data_skipped(run);
    }
    findings.extend(settled.of_objects);
    narrate::end(run, &findings);
    Ok(worst(&findings)?)
}
