//! Row counts of two servers that never stand still, compared at positions where they are
//! comparable.
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
//! three are equal: an exact proof. (A transaction is visible on a standby a moment before the
//! primary shows it, so the third count is repeated for a while before it counts against the
//! target.)

use job::error::Error;
use protocol::checks::{Finding, Verdict};

use crate::settings::TableName;

/// The check of every table.
pub const CHECK: &str = "row counts";

/// A count in one snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All rows that it shows.
    pub rows: u64,
    /// Those of them that were written before X.
    pub kept: u64,
}

/// A table counted three times, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its name, for people.
    pub table: String,
    /// At the source.
    pub first: Count,
    /// At the target, which has replayed everything that `first` saw.
    pub target: Count,
    /// At the source again.
    pub again: Count,
}

impl Counted {
    /// The chain may still close: the target has seen a deletion that the source will show in a
    /// moment.
    pub fn target_is_ahead(&self) -> bool {
        self.target.kept < self.again.kept
    }
}

/// What the three counts prove.
pub fn compare(counted: &Counted) -> Finding {
    let Counted {
        table,
        first,
        target,
        again,
    } = counted;
    let rows = grouped(first.rows);
    if first.kept >= target.kept && target.kept >= again.kept {
        let proof = match first.kept == again.kept {
            true if first.rows == target.rows => "matches (CNPG)".to_owned(),
            true => format!(
                "matches (CNPG, which has {} by now; none of the first is missing)",
                grouped(target.rows)
            ),
            false => format!(
                "matches (CNPG has {} of {}, the source kept {} of them meanwhile)",
                grouped(target.kept),
                grouped(first.kept),
                grouped(again.kept)
            ),
        };
        return Finding::ok(
            CHECK,
            "every row at the target",
            format!("{table}: {rows} rows (Zalando) ✓ {proof}"),
        );
    }
    let (from, to) = (grouped(again.kept), grouped(first.kept));
    Finding::ok(
        CHECK,
        format!("{from} to {to} of the {rows} rows of {table} at the target"),
        grouped(target.kept),
    )
    .but(
        Verdict::Blocker,
        "the target is no faithful copy: do not cut; keep its volume for a look with pg_amcheck, \
         and clone again",
    )
}

/// What a table's name leads to in the catalog of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its schema.
    pub schema: String,
    /// Schema and name, quoted for SQL.
    pub quoted: String,
    /// pg_class.relkind: r, p and m have rows of their own or of their partitions, all else does
    /// not.
    pub kind: char,
    /// pg_class.relpersistence: u is unlogged.
    pub persistence: char,
}

/// The one relation that a name of KEY_TABLES means, or why there is none to count.
///
/// # Errors
/// The finding that says so.
pub fn resolve<'a>(
    name: &TableName,
    candidates: &'a [Candidate],
) -> Result<&'a Candidate, Box<Finding>> {
    let wanted = || Finding::ok(CHECK, format!("a table {name}"), "");
    let wrong = |found: String, verdict, hint: &str| {
        Err(Box::new(Finding { found, ..wanted() }.but(verdict, hint)))
    };
    let one = match candidates {
        [] => {
            return wrong(
                "none at the source".into(),
                Verdict::Misconfigured,
                "correct KEY_TABLES or DATABASE in the ConfigMap replica-migration",
            );
        }
        [one] => one,
        several => match several
            .iter()
            .find(|candidate| candidate.schema == "public")
        {
            Some(public) => public,
            None => {
                let schemas: Vec<&str> = several
                    .iter()
                    .map(|candidate| candidate.schema.as_str())
                    .collect();
                return wrong(
                    format!("one in each of {}", schemas.join(", ")),
                    Verdict::Misconfigured,
                    "write schema.table in KEY_TABLES",
                );
            }
        },
    };
    if !matches!(one.kind, 'r' | 'p' | 'm') {
        return wrong(
            "a view or foreign table, which has no rows of its own".into(),
            Verdict::Misconfigured,
            "name tables in KEY_TABLES",
        );
    }
    if one.persistence == 'u' {
        return wrong(
            "an unlogged table".into(),
            Verdict::Blocker,
            "its rows are not replicated: alter table … set logged on the source, or take it out \
             of KEY_TABLES",
        );
    }
    Ok(one)
}

/// The table could not be counted now.
pub fn not_counted(table: &TableName, error: &Error) -> Finding {
    let hint = error.next_step().unwrap_or(
        "run this step again when the servers are quieter, or name smaller tables in KEY_TABLES",
    );
    Finding::ok(
        CHECK,
        format!("the rows of {table} counted"),
        error.to_string(),
    )
    .but(Verdict::NotYet, hint)
}

/// No table is named: nothing about the data itself is compared.
pub fn nothing_named() -> Finding {
    Finding::ok(CHECK, "the tables that matter", "KEY_TABLES is empty").but(
        Verdict::Warning,
        "name the application's main tables in KEY_TABLES",
    )
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
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

    fn counted(first: (u64, u64), target: (u64, u64), again: (u64, u64)) -> Counted {
        let count = |(rows, kept)| Count { rows, kept };
        Counted {
            table: "accounts".into(),
            first: count(first),
            target: count(target),
            again: count(again),
        }
    }

    #[test]
    fn a_quiet_table_matches_exactly() {
        let finding = compare(&counted(
            (123_456, 123_456),
            (123_456, 123_456),
            (123_456, 123_456),
        ));
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (
                Verdict::Ok,
                "accounts: 123,456 rows (Zalando) ✓ matches (CNPG)"
            )
        );
    }

    #[test]
    fn inserts_meanwhile_do_not_blur_the_proof() {
        let finding = compare(&counted((1000, 998), (1010, 998), (1020, 998)));
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(
            finding.found.contains("none of the first is missing"),
            "{}",
            finding.found
        );
    }

    #[test]
    fn updates_and_deletions_widen_it_and_a_missing_row_still_shows() {
        assert_eq!(
            compare(&counted((1000, 1000), (1000, 990), (1000, 980))).verdict,
            Verdict::Ok
        );
        let missing = counted((1000, 1000), (979, 979), (1000, 980));
        assert_eq!(compare(&missing).verdict, Verdict::Blocker);
        assert!(missing.target_is_ahead());
        assert_eq!(
            compare(&counted((1000, 1000), (1001, 1001), (1000, 980))).verdict,
            Verdict::Blocker
        );
        assert_eq!(
            compare(&counted((1000, 1000), (999, 999), (1000, 1000))).verdict,
            Verdict::Blocker
        );
    }

    fn candidate(schema: &str, kind: char, persistence: char) -> Candidate {
        Candidate {
            schema: schema.into(),
            quoted: format!("{schema}.t"),
            kind,
            persistence,
        }
    }

    #[test]
    fn a_name_means_one_table_or_says_why_not() {
        let name: TableName = "t".parse().unwrap();
        let table = |schema| candidate(schema, 'r', 'p');
        let verdict = |candidates: &[Candidate]| {
            resolve(&name, candidates)
                .map(|c| c.schema.clone())
                .map_err(|finding| finding.verdict)
        };
        assert_eq!(verdict(&[table("app")]), Ok("app".into()));
        assert_eq!(
            verdict(&[table("app"), table("public")]),
            Ok("public".into())
        );
        assert_eq!(
            verdict(&[table("app"), table("old")]),
            Err(Verdict::Misconfigured)
        );
        assert_eq!(verdict(&[]), Err(Verdict::Misconfigured));
        assert_eq!(
            verdict(&[candidate("app", 'v', 'p')]),
            Err(Verdict::Misconfigured)
        );
        assert_eq!(
            verdict(&[candidate("app", 'r', 'u')]),
            Err(Verdict::Blocker)
        );
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
