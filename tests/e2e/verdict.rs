//! Turns the clients' observations and the rows of both servers into the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use harness::{
    ledger::{self, Attempt, Gap, Key, Topology},
    route::Route,
};

use crate::{
    application::UNMANAGED,
    clients::{self, ClientOutput, Pod},
    report::{Client, Report},
};

/// The input of the verdict.
pub struct Collected {
    /// The clients' observations.
    pub output: ClientOutput,
    /// Rows found on the target.
    pub on_target: Vec<Key>,
    /// Rows found on the members of the source that still answer.
    pub on_source: Vec<Key>,
    /// Addresses of both servers, and when the source was verified to be down.
    pub topology: Topology,
}

/// Fills in the verdict and the per-client figures of the report.
///
/// # Errors
/// None at present.
pub fn judge(report: &mut Report, route: Route, collected: &Collected) -> Result<()> {
    let Collected {
        output,
        on_target,
        on_source,
        topology,
    } = collected;
    // With ROUTE=config a client is identified by its Deployment: its pods are replaced during the
    // cutover.
    let named: fn(&str) -> &str = match route {
        Route::Service => |pod| pod,
        Route::Config => clients::deployment,
    };
    report.verdict = ledger::judge(
        &output.attempts,
        on_target,
        on_source,
        topology,
        Duration::from_millis(500),
    );
    let renamed: Vec<Attempt> = output
        .attempts
        .iter()
        .cloned()
        .map(|attempt| renamed(attempt, named))
        .collect();
    let gaps = ledger::gap_by_client(&renamed, topology);
    let later = clients::longest_later(&output.attempts, &topology.target, named);
    for (pod, session) in &output.pods {
        let name = named(pod);
        let client = report.clients.entry(name.to_owned()).or_default();
        client.pooled = clients::deployment(pod) != UNMANAGED;
        (client.cutover, client.later) = match session.reads[..] {
            [] => (gaps.get(name).copied(), later.get(name).copied()),
            _ => of_reader(&session.reads, &topology.target),
        };
        add(client, session);
    }
    report.failures.extend(
        output
            .broken_off()
            .iter()
            .map(|pod| format!("the log of {pod} breaks off: some outcomes are unknown")),
    );
    Ok(())
}

fn renamed(mut attempt: Attempt, named: impl Fn(&str) -> &str) -> Attempt {
    attempt.key.client = named(&attempt.key.client).to_owned();
    attempt
}

fn add(client: &mut Client, session: &Pod) {
    client.session.errors.extend(session.errors.iter().cloned());
    client
        .session
        .disconnects
        .extend(session.disconnects.iter().cloned());
}

/// A reader's wait: from the last row read from a server other than the target to the first row
/// read from the target, and the longest interval after that.
fn of_reader(
    reads: &[(Duration, String)],
    target: &BTreeSet<String>,
) -> (Option<Gap>, Option<Gap>) {
    let mut by_side: BTreeMap<bool, Vec<Duration>> = BTreeMap::new();
    for (at, server) in reads {
        by_side
            .entry(target.contains(server))
            .or_default()
            .push(*at);
    }
    let (before, after) = (
        by_side.remove(&false).unwrap_or_default(),
        by_side.remove(&true).unwrap_or_default(),
    );
    let cutover = before
        .iter()
        .max()
        .zip(after.iter().min())
        .map(|(from, to)| Gap {
            from: *from,
            to: *to,
        });
    let later = after.windows(2).map(|pair| Gap {
        from: pair[0],
        to: pair[1],
    });
    (cutover, later.max_by_key(Gap::length))
}
