//! From what the clients said and what the servers hold to the report.

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

/// Everything that was collected.
pub struct Collected {
    /// The clients' words.
    pub output: ClientOutput,
    /// Rows of the target.
    pub on_target: Vec<Key>,
    /// Rows of the source, as far as it still answers.
    pub on_source: Vec<Key>,
    /// Addresses of both sides, and when the source was proved to be down.
    pub topology: Topology,
}

/// Fills in the verdict and the clients.
///
/// # Errors
/// None of the clients is known by name.
pub fn judge(report: &mut Report, route: Route, collected: &Collected) -> Result<()> {
    let Collected {
        output,
        on_target,
        on_source,
        topology,
    } = collected;
    // By the guide's way a client is a Deployment, whose pods are others after the cut.
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
            .map(|pod| format!("the log of {pod} breaks off: what it was told is not all known")),
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

/// A reader's wait: from the last row that another server than the target gave to the first of the
/// target, and the longest after it.
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
