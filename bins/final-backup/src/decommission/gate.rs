//! Decides whether the source may be deleted, and lists every condition that is not met.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::{complete::Complete, receipt::CutoverState};

/// The result of validate-cnpg, as it writes it to the ConfigMap `validate-cnpg-<cluster>`. Only an
/// existing ConfigMap with the verdict `green` permits a deletion.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Validated {
    /// `green` if the new cluster is valid.
    pub verdict: String,
    /// Time of the verdict.
    pub at: Timestamp,
}

/// What the decision depends on.
pub struct Conditions<'a> {
    /// The verified backup, if there is one.
    pub backup: Option<&'a Complete>,
    /// The state of the cutover.
    pub cutover: &'a CutoverState,
    /// The verdict on the new cluster.
    pub validated: Option<&'a Validated>,
    /// How long the source is kept after the cutover, in days.
    pub retention_days: u32,
    /// The current time.
    pub now: Timestamp,
    /// Number of users that the source still has.
    pub uses: usize,
}

/// The conditions that are not met; none if the source is ready to be deleted.
pub fn unmet(conditions: &Conditions<'_>) -> Vec<String> {
    let mut unmet = Vec::new();
    if conditions.backup.is_none() {
        unmet.push("there is no verified backup".to_owned());
    }
    match conditions.cutover {
        CutoverState::Completed(receipt) => {
            unmet.extend(retention(conditions, receipt.serving));
            unmet.extend(validation(conditions.validated, receipt.serving));
        }
        CutoverState::InProgress => unmet.push("a cutover is in progress".to_owned()),
        CutoverState::NotDone => unmet.push(
            "there is no receipt of a cutover: the application runs on this source".to_owned(),
        ),
    }
    match conditions.uses {
        0 => {}
        1 => unmet.push("one use of it is listed above".to_owned()),
        uses => unmet.push(format!("{uses} uses of it are listed above")),
    }
    unmet
}

fn retention(conditions: &Conditions<'_>, serving: Timestamp) -> Option<String> {
    let days = conditions.retention_days;
    let retention = SignedDuration::from_hours(24 * i64::from(days));
    let until = serving.checked_add(retention).unwrap_or(Timestamp::MAX);
    (conditions.now < until)
        .then(|| format!("the retention of {days} days ends at {until:.0} (RETENTION_DAYS)"))
}

fn validation(validated: Option<&Validated>, serving: Timestamp) -> Option<String> {
    match validated {
        None => Some("no result from validate-cnpg found".to_owned()),
        Some(Validated { verdict, at }) if verdict != "green" => Some(format!(
            "the verdict of validate-cnpg at {at:.0} is {verdict:?}"
        )),
        Some(Validated { at, .. }) if *at < serving => Some(format!(
            "validate-cnpg was green at {at:.0}, before the cutover completed; run it again"
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{existing::tests::complete, receipt::tests::receipt};

    fn green(at: &str) -> Validated {
        Validated {
            verdict: "green".into(),
            at: at.parse().unwrap(),
        }
    }

    /// The cutover completed at 2026-01-01 00:00:04.
    fn unmet_conditions(
        backup: bool,
        cutover: &CutoverState,
        validated: Option<Validated>,
        now: &str,
        uses: usize,
    ) -> Vec<String> {
        let complete = complete();
        unmet(&Conditions {
            backup: backup.then_some(&complete),
            cutover,
            validated: validated.as_ref(),
            retention_days: 7,
            now: now.parse().unwrap(),
            uses,
        })
    }

    const LATER: &str = "2026-01-08T00:00:04Z";

    #[test]
    fn every_condition_must_be_met() {
        let completed = CutoverState::Completed(Box::new(receipt()));
        let validated = || Some(green("2026-01-05T00:00:00Z"));
        assert_eq!(
            unmet_conditions(true, &completed, validated(), LATER, 0),
            Vec::<String>::new()
        );
        assert_eq!(
            unmet_conditions(false, &completed, validated(), LATER, 0).len(),
            1
        );
        assert_eq!(unmet_conditions(true, &completed, None, LATER, 0).len(), 1);
        assert_eq!(
            unmet_conditions(
                true,
                &completed,
                Some(green("2026-01-01T00:00:00Z")),
                LATER,
                0
            )
            .len(),
            1
        );
        let red = Validated {
            verdict: "red".into(),
            ..green(LATER)
        };
        assert!(unmet_conditions(true, &completed, Some(red), LATER, 0)[0].contains("\"red\""));
        assert_eq!(
            unmet_conditions(true, &completed, validated(), LATER, 2),
            ["2 uses of it are listed above"]
        );
        let early = unmet_conditions(true, &completed, validated(), "2026-01-08T00:00:03Z", 0);
        assert_eq!(
            early,
            ["the retention of 7 days ends at 2026-01-08T00:00:04Z (RETENTION_DAYS)"]
        );
        assert_eq!(
            unmet_conditions(true, &CutoverState::NotDone, validated(), LATER, 0).len(),
            1
        );
        assert_eq!(
            unmet_conditions(false, &CutoverState::InProgress, None, LATER, 1).len(),
            3
        );
    }
}
