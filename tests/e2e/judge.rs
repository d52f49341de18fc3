//! From what the clients said and what the servers hold to the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use harness::{
    ledger::{self, Attempt, Cut, Gap, Key},
    route::Route,
};

use crate::{
    application::FORGOTTEN,
    clients::{self, Pod, Said},
    report::{Client, Report},
};

/// Everything that was collected.
pub struct Collected {
    /// The clients' words.
    pub said: Said,
    /// Rows of the target.
    pub on_target: Vec<Key>,
    /// Rows of the source, as far as it still answers.
    pub on_source: Vec<Key>,
    /// Addresses of both sides, and when the source was proved to be down.
    pub cut: Cut,
}

/// Fills in the verdict and the clients.
///
/// # Errors
/// None of the clients is known by name.
pub fn judge(report: &mut Report, route: Route, collected: &Collected) -> Result<()> {
    let Collected {
        said,
        on_target,
        on_source,
        cut,
    } = collected;
    // By the guide's way a client is a Deployment, whose pods are others after the cut.
    let named: fn(&str) -> &str = match route {
        Route::Service => |pod| pod,
        Route::Config => clients::deployment,
    };
    report.verdict = ledger::judge(
        &said.attempts,
        on_target,
        on_source,
        cut,
        Duration::from_millis(500),
    );
    let renamed: Vec<Attempt> = said
        .attempts
        .iter()
        .cloned()
        .map(|attempt| renamed(attempt, named))
        .collect();
    let gaps = ledger::gap_by_client(&renamed, cut);
    let later = clients::longest_later(&said.attempts, &cut.target, named);
    for (pod, session) in &said.pods {
        let name = named(pod);
        let client = report.clients.entry(name.to_owned()).or_default();
        client.pooled = clients::deployment(pod) != FORGOTTEN;
        (client.cut, client.later) = match session.reads[..] {
            [] => (gaps.get(name).copied(), later.get(name).copied()),
            _ => of_reader(&session.reads, &cut.target),
        };
        add(client, session);
    }
    report.failures.extend(
        said.broken_off()
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
    let cut = before
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
    (cut, later.max_by_key(Gap::length))
}
