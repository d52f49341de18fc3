//! What three counts of a table prove.
//!
//! A standby shows the source as it was at its replay position, and a busy source has gone on
//! meanwhile, so two plain counts prove nothing. Three counts in a chain do:
//!
//! 1. at the source, in one snapshot whose oldest running transaction is X: all rows, and those
//!    written before X (*kept*); then the source's insert LSN is read, which no commit of that
//!    snapshot lies behind;
//! 2. at the target, once it has replayed that LSN: the rows written before X that it has;
//! 3. at the source again: the rows written before X that are still there.
//!
//! Row versions written before X can only become fewer: what is inserted or updated later is
//! written by X or a later transaction, on a physical copy under the same transaction number. The
//! target's view lies between the source's two, so `first >= target >= again` always holds on a
//! faithful copy, however busy the table; and when nothing was updated or deleted in between, all
//! three are equal: an exact proof.

use crate::{
    decision::Limits,
    failure::Failure,
    finding::{Finding, Verdict},
    snapshot::{
        Snapshot,
        data::{RowCounts, Uncounted},
    },
};

const ID: &str = "row-counts";

/// The rows of every table of KEY_TABLES have arrived.
pub(super) fn row_counts(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let Some(data) = &snapshot.data else {
        return Vec::new();
    };
    if data.tables.is_empty() {
        return vec![
            Finding::ok(ID, "the tables that matter", "KEY_TABLES is empty").with(
                Verdict::Decide,
                "name the application's main tables in KEY_TABLES",
            ),
        ];
    }
    let judge = data.tables.iter().map(|table| match &table.counts {
        Ok(counts) => counted(counts).about(&table.table),
        Err(reason) => uncounted(reason).about(&table.table),
    });
    judge.collect()
}

fn counted(counts: &RowCounts) -> Finding {
    let RowCounts {
        first,
        target,
        again,
    } = counts;
    let rows = grouped(first.rows);
    if first.kept >= target.kept && target.kept >= again.kept {
        let proof = if first.kept != again.kept {
            format!(
                "matches (CNPG has {} of {}, the source kept {} of them meanwhile)",
                grouped(target.kept),
                grouped(first.kept),
                grouped(again.kept)
            )
        } else if first.rows == target.rows {
            "matches (CNPG)".to_owned()
        } else {
            format!(
                "matches (CNPG, which has {} by now; none of the first is missing)",
                grouped(target.rows)
            )
        };
        let found = format!("{rows} rows (Zalando) ✓ {proof}");
        return Finding::ok(ID, "every row at the target", found);
    }
    let (from, to) = (grouped(again.kept), grouped(first.kept));
    Finding::ok(
        ID,
        format!("{from} to {to} of the {rows} rows at the target"),
        grouped(target.kept),
    )
    .with(
        Verdict::Blocker,
        "the target is no faithful copy: do not cut over; keep its volume to examine it with \
         pg_amcheck, and clone again",
    )
}

fn uncounted(reason: &Uncounted) -> Finding {
    let finding = |found: &str| Finding::ok(ID, "a table", found);
    match reason {
        Uncounted::Missing => finding("none at the source").wrong_setting(
            "KEY_TABLES",
            "correct KEY_TABLES or DATABASE in the ConfigMap replica-migration",
        ),
        Uncounted::Ambiguous { schemas } => {
            finding(&format!("one in each of {}", schemas.join(", ")))
                .wrong_setting("KEY_TABLES", "write schema.table in KEY_TABLES")
        }
        Uncounted::WithoutRows => finding("a view or foreign table, which has no rows of its own")
            .wrong_setting("KEY_TABLES", "name tables in KEY_TABLES"),
        Uncounted::Unlogged => finding("an unlogged table").with(
            Verdict::Blocker,
            "its rows are not replicated: alter table … set logged on the source, or take it out \
             of KEY_TABLES",
        ),
        Uncounted::Failed(failure) => failed(failure),
    }
}

/// The table could not be counted now.
fn failed(failure: &Failure) -> Finding {
    let hint = failure.hint.as_deref();
    Finding::ok(ID, "its rows counted", failure.to_string()).with(
        Verdict::NotYet,
        hint.unwrap_or(
            "run this step again when the servers are quieter, or name smaller tables in \
             KEY_TABLES",
        ),
    )
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::data::Count;

    fn counts(first: (u64, u64), target: (u64, u64), again: (u64, u64)) -> RowCounts {
        let count = |(rows, kept)| Count { rows, kept };
        RowCounts {
            first: count(first),
            target: count(target),
            again: count(again),
        }
    }

    #[test]
    fn a_quiet_table_matches_exactly() {
        let all = (123_456, 123_456);
        let finding = counted(&counts(all, all, all)).about("accounts");
        assert_eq!(
            (finding.verdict, finding.to_string().as_str()),
            (
                Verdict::Ok,
                "row-counts:accounts: 123,456 rows (Zalando) ✓ matches (CNPG)"
            )
        );
    }

    #[test]
    fn inserts_meanwhile_do_not_blur_the_proof() {
        let finding = counted(&counts((1000, 998), (1010, 998), (1020, 998)));
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(
            finding.found.contains("none of the first is missing"),
            "{}",
            finding.found
        );
    }

    #[test]
    fn updates_and_deletions_widen_it_and_a_missing_row_still_shows() {
        let verdict = |first, target, again| counted(&counts(first, target, again)).verdict;
        assert_eq!(verdict((1000, 1000), (1000, 990), (1000, 980)), Verdict::Ok);
        assert_eq!(
            verdict((1000, 1000), (979, 979), (1000, 980)),
            Verdict::Blocker
        );
        assert!(counts((1000, 1000), (979, 979), (1000, 980)).target_is_ahead());
        assert_eq!(
            verdict((1000, 1000), (1001, 1001), (1000, 980)),
            Verdict::Blocker
        );
        assert_eq!(
            verdict((1000, 1000), (999, 999), (1000, 1000)),
            Verdict::Blocker
        );
    }

    #[test]
    fn what_cannot_be_counted_is_a_wrong_setting_or_a_blocker_or_waited_for() {
        for reason in [
            Uncounted::Missing,
            Uncounted::WithoutRows,
            Uncounted::Ambiguous {
                schemas: vec!["app".into(), "old".into()],
            },
        ] {
            assert_eq!(uncounted(&reason).setting, Some("KEY_TABLES"));
        }
        let unlogged = uncounted(&Uncounted::Unlogged);
        assert_eq!(
            (unlogged.verdict, unlogged.setting),
            (Verdict::Blocker, None)
        );
        let locked = Uncounted::Failed(Failure::transient("lock timeout"));
        assert_eq!(uncounted(&locked).verdict, Verdict::NotYet);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
