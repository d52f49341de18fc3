//! Whether the source may be deleted: every condition that is missing, in words.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::{complete::Complete, receipt::Cut};

/// What validate-cnpg leaves in the ConfigMap `validate-cnpg-<cluster>`: `verdict`, which is
/// `green` when the new cluster is whole, and `at`, the time of that. A missing ConfigMap is not
/// green.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Validated {
    /// `green`, or anything else.
    pub verdict: String,
    /// When it was given.
    pub at: Timestamp,
}

/// What the answer depends on.
pub struct Facts<'a> {
    /// The backup, when there is one.
    pub backup: Option<&'a Complete>,
    /// The cut.
    pub cut: &'a Cut,
    /// The verdict over the new cluster.
    pub validated: Option<&'a Validated>,
    /// How long the source is kept.
    pub retention_days: u32,
    /// Now.
    pub now: Timestamp,
    /// How many still use the source.
    pub uses: usize,
}

/// What stands against a deletion; nothing when it is ready.
pub fn missing(facts: &Facts<'_>) -> Vec<String> {
    let mut missing = Vec::new();
    if facts.backup.is_none() {
        missing.push("there is no verified backup".to_owned());
    }
    match facts.cut {
        Cut::Over(receipt) => {
            let kept = SignedDuration::from_hours(24 * i64::from(facts.retention_days));
            let until = receipt.serving.checked_add(kept).unwrap_or(Timestamp::MAX);
            if facts.now < until {
                missing.push(format!(
                    "the retention of {} days is over at {until:.0} (RETENTION_DAYS)",
                    facts.retention_days
                ));
            }
            match facts.validated {
                None => missing.push("validate-cnpg has not said anything yet".to_owned()),
                Some(Validated { verdict, at }) if verdict != "green" => {
                    missing.push(format!("validate-cnpg said {verdict:?} at {at:.0}"))
                }
                Some(Validated { at, .. }) if *at < receipt.serving => {
                    missing.push(format!(
                        "validate-cnpg was green at {at:.0}, before the cut was over; run it again"
                    ));
                }
                Some(_) => {}
            }
        }
        Cut::UnderWay => missing.push("a cutover is under way".to_owned()),
        Cut::NotYet => missing
            .push("there is no receipt of a cut: the application runs on this source".to_owned()),
    }
    match facts.uses {
        0 => {}
        1 => missing.push("one use of it is listed above".to_owned()),
        uses => missing.push(format!("{uses} uses of it are listed above")),
    }
    missing
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

    /// The cut was over at 2026-01-01 00:00:04.
    fn judged(
        backup: bool,
        cut: &Cut,
        validated: Option<Validated>,
        now: &str,
        uses: usize,
    ) -> Vec<String> {
        let complete = complete();
        missing(&Facts {
            backup: backup.then_some(&complete),
            cut,
            validated: validated.as_ref(),
            retention_days: 7,
            now: now.parse().unwrap(),
            uses,
        })
    }

    const LATER: &str = "2026-01-08T00:00:04Z";

    #[test]
    fn everything_must_hold() {
        let over = Cut::Over(Box::new(receipt()));
        let validated = || Some(green("2026-01-05T00:00:00Z"));
        assert_eq!(
            judged(true, &over, validated(), LATER, 0),
            Vec::<String>::new()
        );
        assert_eq!(judged(false, &over, validated(), LATER, 0).len(), 1);
        assert_eq!(judged(true, &over, None, LATER, 0).len(), 1);
        assert_eq!(
            judged(true, &over, Some(green("2026-01-01T00:00:00Z")), LATER, 0).len(),
            1
        );
        let red = Validated {
            verdict: "red".into(),
            ..green(LATER)
        };
        assert!(judged(true, &over, Some(red), LATER, 0)[0].contains("\"red\""));
        assert_eq!(
            judged(true, &over, validated(), LATER, 2),
            ["2 uses of it are listed above"]
        );
        let early = judged(true, &over, validated(), "2026-01-08T00:00:03Z", 0);
        assert_eq!(
            early,
            ["the retention of 7 days is over at 2026-01-08T00:00:04Z (RETENTION_DAYS)"]
        );
        assert_eq!(judged(true, &Cut::NotYet, validated(), LATER, 0).len(), 1);
        assert_eq!(judged(false, &Cut::UnderWay, None, LATER, 1).len(), 3);
    }
}
