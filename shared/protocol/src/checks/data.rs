//! Whether both sides hold the same data: the replay moves, text sorts alike, the rows have
//! arrived.

#![deny(dead_code)]

mod row_counts;

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict, listed},
    quantity::size,
    snapshot::{
        Snapshot,
        data::{
            CollationComparison, CollationDifference, DataComparison, DependentObjects, differing,
            version_differences,
        },
    },
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("replay-progress", replay_progress),
    Check::new("collations", collations),
    Check::new("row-counts", row_counts::row_counts),
];

/// The target's replay moves with the source; an idle source needs no movement, only equality.
fn replay_progress(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let Some(DataComparison { replay, .. }) = &snapshot.data else {
        return Vec::new();
    };
    let wanted = format!("the source's {} replayed", replay.source);
    let finding = |found: String| Finding::ok("replay-progress", wanted, found);
    let Some(replayed) = replay.replayed.filter(|lsn| *lsn >= replay.source) else {
        let found = replay.replayed.map_or_else(
            || "nothing replayed".to_owned(),
            |lsn| format!("replay stands at {lsn}"),
        );
        return vec![finding(found).with(
            Verdict::NotYet,
            "a long query on the target may hold the replay (pg_stat_activity there), or its disk \
             is slow; run this step again",
        )];
    };
    let seconds = replay.within.as_secs_f64();
    vec![finding(match replay.bytes {
        0 => format!(
            "the source wrote nothing in {seconds:.1} s; the target has replayed all, {replayed}"
        ),
        bytes => format!(
            "the source wrote {} in {seconds:.1} s, the target follows: {replayed}",
            size(bytes)
        ),
    })]
}

/// Text sorts alike on both sides. Never a blocker, because the cure is a rebuild after the
/// cutover.
///
/// The copy brings indexes that were sorted by the source's C library or ICU. Where the target's
/// sorts differently they are wrong until rebuilt, which a standby cannot do. The versions that
/// PostgreSQL knows may say too much, since most strings sort the same, or too little, since Spilo
/// can exchange the locale behind them (USE_OLD_LOCALES): so some strings that are known to have
/// moved are sorted on both sides, too.
fn collations(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let compared = snapshot.data.as_ref().map(|data| &data.collations);
    compared.map(compare).into_iter().collect()
}

fn compare(compared: &CollationComparison) -> Finding {
    let CollationComparison {
        database,
        source,
        target,
        dependent,
    } = compared;
    let finding = |found: String| {
        let wanted = "the same versions of all collations on both sides";
        Finding::ok("collations", wanted, found)
    };
    let differing = differing(database, source, target);
    if differing.is_empty() {
        let elsewhere = described(&version_differences(&source.databases, &target.databases));
        if elsewhere.is_empty() {
            return finding("the same versions, and test strings sort alike".into());
        }
        return finding(listed(&elsewhere)).with(
            Verdict::Decide,
            "other databases of the cluster: after the cutover reindex them and alter database … \
             refresh collation version",
        );
    }
    let pairs = source.order.iter().zip(&target.order);
    let places = pairs.filter(|(one, other)| one != other).count();
    let order = match places {
        0 => "test strings sort alike all the same".to_owned(),
        _ => format!(
            "test strings sort differently ({places} of {} places)",
            source.order.len()
        ),
    };
    let mut found = format!(
        "{}; {order}; {}",
        listed(&described(&differing)),
        indexes(database, dependent)
    );
    if !dependent.range_partitioned.is_empty() {
        found.push_str(&format!(
            "; partitioned by ranges of text: {}",
            listed(&dependent.range_partitioned)
        ));
    }
    let after = "right after the cutover: reindex (concurrently) these indexes, then alter \
        database … refresh collation version";
    let hint = match places {
        0 => format!("{after}; or use a TARGET_IMAGE with the source's C library"),
        _ => format!(
            "{after}; until then unique indexes may let duplicates in and searches may miss rows: \
             plan it into the window, or use a TARGET_IMAGE with the source's C library"
        ),
    };
    finding(found).with(Verdict::Decide, hint)
}

fn described(differences: &[CollationDifference]) -> Vec<String> {
    let each = differences.iter();
    each.map(|one| one.description.clone()).collect()
}

fn indexes(database: &str, dependent: &DependentObjects) -> String {
    if dependent.indexes == 0 {
        return format!("no index of {database} depends on it");
    }
    let more = match dependent
        .indexes
        .saturating_sub(dependent.names.len() as u64)
    {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} indexes of {database} depend on it ({} unique, {}): {}{more}",
        dependent.indexes,
        dependent.unique,
        size(dependent.bytes),
        dependent.names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        simulation::{limits, look},
        snapshot::data::{Collation, DEFAULT_COLLATION_OID, ReplayProgress, Sorting},
    };

    fn collation(name: &str, recorded: Option<&str>, provided: Option<&str>) -> Collation {
        Collation {
            oid: DEFAULT_COLLATION_OID,
            name: name.into(),
            recorded: recorded.map(str::to_owned),
            provided: provided.map(str::to_owned),
        }
    }

    fn sorting(provided: &str, order: &[&str]) -> Sorting {
        Sorting {
            databases: vec![
                collation("app", Some("2.36"), Some(provided)),
                collation("c", None, None),
            ],
            named: vec![],
            order: order.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    fn judged(source: &Sorting, target: &Sorting, dependent: DependentObjects) -> Finding {
        compare(&CollationComparison {
            database: "app".into(),
            source: source.clone(),
            target: target.clone(),
            dependent,
        })
    }

    #[test]
    fn equal_versions_and_order_are_as_wanted() {
        let one = sorting("2.36", &["a", "b"]);
        let finding = judged(&one, &one, DependentObjects::default());
        assert_eq!(finding.verdict, Verdict::Ok);
    }

    #[test]
    fn another_library_names_versions_indexes_and_partitions() {
        let (source, target) = (sorting("2.36", &["a", "b"]), sorting("2.41", &["a", "b"]));
        let dependent = DependentObjects {
            indexes: 3,
            unique: 1,
            bytes: 8192,
            names: vec!["i".into(), "j".into()],
            range_partitioned: vec!["p".into()],
        };
        let finding = judged(&source, &target, dependent);
        assert_eq!(finding.verdict, Verdict::Decide);
        assert_eq!(
            finding.found,
            "app made with 2.36, the source provides 2.36, the target 2.41; test strings sort \
             alike all the same; \
             3 indexes of app depend on it (1 unique, 8 kB): i, j and 1 more; partitioned by \
             ranges of text: p"
        );
    }

    #[test]
    fn an_order_that_differs_counts_more_than_versions_that_agree() {
        let database = vec![collation("app", Some("2.35"), Some("2.35"))];
        let ordered = |order: &[&str]| Sorting {
            databases: database.clone(),
            ..sorting("2.35", order)
        };
        let (source, target) = (ordered(&["11", "1-1"]), ordered(&["1-1", "11"]));
        let finding = judged(&source, &target, DependentObjects::default());
        assert!(
            finding.found.contains("sort differently (2 of 2 places)"),
            "{}",
            finding.found
        );
        assert!(finding.hint.unwrap().contains("duplicates"));
    }

    #[test]
    fn other_databases_are_named_and_an_outdated_version_at_the_source_too() {
        let mut source = sorting("2.36", &["a"]);
        let mut target = source.clone();
        source
            .databases
            .push(collation("other", Some("2.36"), Some("2.36")));
        target
            .databases
            .push(collation("other", Some("2.36"), Some("2.41")));
        let finding = judged(&source, &target, DependentObjects::default());
        assert_eq!(finding.verdict, Verdict::Decide);
        assert!(finding.found.starts_with("other made with 2.36"));
        let outdated = vec![collation("app", Some("2.31"), Some("2.36"))];
        assert_eq!(version_differences(&outdated, &outdated).len(), 1);
    }

    #[test]
    fn an_idle_source_needs_no_movement_and_a_standing_replay_is_waited_for() {
        let one = sorting("2.36", &["a"]);
        let judged = |bytes, replayed: Option<&str>| {
            let mut snapshot = look();
            snapshot.data = Some(DataComparison {
                replay: ReplayProgress {
                    source: "0/5000000".parse().unwrap(),
                    bytes,
                    replayed: replayed.map(|lsn| lsn.parse().unwrap()),
                    within: Duration::from_secs(1),
                },
                collations: CollationComparison {
                    database: "app".into(),
                    source: one.clone(),
                    target: one.clone(),
                    dependent: DependentObjects::default(),
                },
                tables: Vec::new(),
            });
            replay_progress(&snapshot, &limits()).remove(0)
        };
        let idle = judged(0, Some("0/5000000"));
        assert!(idle.found.contains("wrote nothing in 1.0 s"));
        assert_eq!(
            judged(2_500_000, Some("0/5000000")).found,
            "the source wrote 2.5 MB in 1.0 s, the target follows: 0/5000000"
        );
        assert_eq!(judged(0, Some("0/4FFFFF8")).verdict, Verdict::NotYet);
        assert_eq!(judged(0, None).verdict, Verdict::NotYet);
    }
}
