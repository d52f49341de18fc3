//! Checks of what the cutover leaves in the cluster besides rows: Events, the receipt, the
//! termination message, and requests that the API server refused.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, Result};
use harness::audit;
use jiff::Timestamp;
use protocol::steps;
use serde_json::Value;

use crate::{kubectl::Kubectl, step::Ended, target::TARGET};

/// Events are posted in the background: those that a killed pod had not sent yet are lost. After a
/// kill the ones from this reason on are expected.
const FIRST_AFTER_A_KILL: &str = "Routed";

/// The expected Events that are missing.
pub async fn events(kubectl: &Kubectl, cutover: &Ended) -> Result<Vec<String>> {
    let events = kubectl.json(&["get", "events"]).await?;
    let cutover_events = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| {
            let (object, by) = (&event["involvedObject"], &event["reportingComponent"]);
            (&object["kind"], &object["name"], by)
                == (&"Cluster".into(), &TARGET.into(), &"cutover".into())
        });
    let reasons: BTreeSet<&str> = cutover_events
        .filter_map(|event| event["reason"].as_str())
        .collect();
    let killed = cutover.killed.is_some();
    let missing: Vec<&str> = steps::events()
        .into_iter()
        .skip_while(|reason| killed && *reason != FIRST_AFTER_A_KILL)
        .filter(|reason| !reasons.contains(reason))
        .collect();
    Ok(match missing[..] {
        [] => Vec::new(),
        _ => vec![format!(
            "no Event on the Cluster for {}; found {reasons:?}",
            missing.join(", ")
        )],
    })
}

/// The receipt that the cutover wrote.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The receipt's ConfigMap.
    pub object: Value,
    /// The content of the key summary.json.
    pub summary: Value,
    journal: Value,
}

impl Receipt {
    /// Reads the receipt's ConfigMap.
    ///
    /// # Errors
    /// The ConfigMap is missing, or a key is missing or is not JSON.
    pub async fn read(kubectl: &Kubectl) -> Result<Self> {
        let object = kubectl
            .json(&["get", "cm", "cutover-database-receipt"])
            .await?;
        let part = |key: &str| -> Result<Value> {
            let text = object["data"][key]
                .as_str()
                .with_context(|| format!("the receipt has no {key}"))?;
            serde_json::from_str(text).with_context(|| format!("{key} of the receipt"))
        };
        Ok(Self {
            summary: part("summary.json")?,
            journal: part("journal.json")?,
            object,
        })
    }

    /// An instant of the journal, since 1970.
    ///
    /// # Errors
    /// The journal has no instant of this name.
    pub fn instant(&self, fact: &str) -> Result<Duration> {
        let fact_of = &self.journal[fact];
        let text = fact_of
            .as_str()
            .or_else(|| fact_of["at"].as_str())
            .with_context(|| format!("the journal has no {fact}"))?;
        Ok(text
            .parse::<Timestamp>()?
            .duration_since(Timestamp::UNIX_EPOCH)
            .unsigned_abs())
    }

    /// Milliseconds from the block of writes to each step, in order.
    pub fn steps(&self) -> Vec<(&'static str, i64)> {
        let since = |key: &str| self.summary["ms_since_block"][key].as_i64();
        steps::milestones()
            .filter_map(|(_, milestone)| Some((milestone.label, since(milestone.key)?)))
            .collect()
    }

    /// Every property of the receipt and of the termination message that is wrong.
    pub fn failures(&self, cutover: &Ended) -> Vec<String> {
        let (word, summary) = (cutover.termination_json(), &self.summary);
        let timeline = &summary["promoted"]["timeline"];
        let checks = [
            (
                self.object["immutable"] == true,
                "the receipt can be changed".to_owned(),
            ),
            (
                summary["source"]["system_identifier"] == summary["target"]["system_identifier"],
                "the receipt names two system identifiers".to_owned(),
            ),
            (
                self.object["data"]["proof.txt"]
                    .as_str()
                    .is_some_and(|text| text.contains("was stopped cleanly")),
                "the receipt has no proof".to_owned(),
            ),
            (
                word["downtime_ms"].as_i64().is_some_and(|ms| ms > 0)
                    && &word["timeline"] == timeline,
                format!(
                    "the termination message lacks downtime_ms or timeline {timeline}: \
                     {word}"
                ),
            ),
        ];
        checks
            .into_iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, failure)| failure)
            .collect()
    }
}

/// Requests of the Jobs that the API server refused, with a sentence on what was examined.
///
/// # Errors
/// The log cannot be read.
pub fn refused(log: Option<&Path>, namespace: &str) -> Result<(String, Vec<String>)> {
    let Some(log) = log else {
        let output = "not asked: only the API server's audit log shows refusals (E2E_AUDIT_LOG). \
            No Job has stopped for lack of a permission; a Job that continues without one would \
            not be noticed";
        return Ok((output.to_owned(), Vec::new()));
    };
    let accounts = format!("system:serviceaccount:{namespace}:replica-migration-");
    let mut uses = audit::read(log)?;
    uses.retain(|one| one.user.starts_with(&accounts));
    let refused = uses.iter().filter(|one| one.is_forbidden());
    let refused: Vec<String> = refused
        .map(|one| {
            format!(
                "a Job was refused {} {} {} ({})",
                one.verb, one.resource, one.name, one.user
            )
        })
        .collect();
    let mut failures = refused.clone();
    if uses.is_empty() {
        failures.push(format!(
            "{} has no request of {accounts}…: is it the log of this cluster?",
            log.display()
        ));
    }
    Ok((
        format!(
            "{} kinds of requests by the Jobs in the audit log, {} refused",
            uses.len(),
            refused.len()
        ),
        failures,
    ))
}
