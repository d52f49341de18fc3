//! What the cutover leaves in the cluster, beside the rows: Events, the receipt, the last word, and
//! what the API server refused.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, Result};
use harness::audit;
use jiff::Timestamp;
use serde_json::Value;

use crate::{kubectl::Kubectl, step::Ended, target::TARGET};

/// Reasons of the Events on the Cluster, in the order of a cut.
const REASONS: [&str; 11] = [
    "Started",
    "Checkpointed",
    "Blocking",
    "WritesBlocked",
    "CaughtUp",
    "Fenced",
    "PointOfNoReturn",
    "Promoted",
    "Routed",
    "Serving",
    "Receipt",
];
/// Posted beside the work: those that a killed pod had not sent yet are lost with it.
const LAST_REASONS: [&str; 3] = ["Routed", "Serving", "Receipt"];

/// The Events that should be there and are not.
pub async fn events(kubectl: &Kubectl, cutover: &Ended) -> Result<Vec<String>> {
    let events = kubectl.json(&["get", "events"]).await?;
    let ours = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| {
            let (object, by) = (&event["involvedObject"], &event["reportingComponent"]);
            (&object["kind"], &object["name"], by)
                == (&"Cluster".into(), &TARGET.into(), &"cutover".into())
        });
    let seen: BTreeSet<&str> = ours.filter_map(|event| event["reason"].as_str()).collect();
    let wanted = if cutover.killed.is_some() {
        &LAST_REASONS[..]
    } else {
        &REASONS[..]
    };
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|reason| !seen.contains(*reason))
        .copied()
        .collect();
    Ok(match missing[..] {
        [] => Vec::new(),
        _ => vec![format!(
            "no Event on the Cluster for {}; there are {seen:?}",
            missing.join(", ")
        )],
    })
}

/// What the cutover has written down for good.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Its ConfigMap.
    pub object: Value,
    /// The key summary.json.
    pub summary: Value,
    journal: Value,
}

impl Receipt {
    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is not whole.
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
    /// The journal has none of this name.
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

    /// Milliseconds from the block to each step, in their order.
    pub fn steps(&self) -> Vec<(&'static str, i64)> {
        const STEPS: [(&str, &str); 6] = [
            ("marker", "writes blocked, sessions ended"),
            ("caught_up", "marker replayed by the target"),
            ("source_down_and_proved", "source stopped, and proved"),
            (
                "primary_restarted_and_written",
                "target primary, and a write proved",
            ),
            ("routed", "application led to the target"),
            ("serving", "clients let through"),
        ];
        let since = |key: &str| self.summary["ms_since_block"][key].as_i64();
        STEPS
            .iter()
            .filter_map(|(key, name)| Some((*name, since(key)?)))
            .collect()
    }

    /// What is not as it must be.
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
                "the receipt tells of two systems".to_owned(),
            ),
            (
                self.object["data"]["proof.txt"]
                    .as_str()
                    .is_some_and(|text| text.contains("was stopped cleanly")),
                "the receipt holds no proof".to_owned(),
            ),
            (
                word["downtime_ms"].as_i64().is_some_and(|ms| ms > 0)
                    && &word["timeline"] == timeline,
                format!(
                    "the termination message does not tell downtime_ms and timeline {timeline}: \
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

/// What the API server has refused to the Jobs. Says in words what was looked at.
///
/// # Errors
/// The log cannot be read.
pub fn refused(log: Option<&Path>, namespace: &str) -> Result<(String, Vec<String>)> {
    let Some(log) = log else {
        let output = "not asked: only the API server's audit log tells (E2E_AUDIT_LOG). No Job has \
            stopped for lack of a permission; one that goes \
                    on without it would not be noticed";
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
            "{} knows of no request of {accounts}…: is it this cluster's?",
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
