//! Whether text sorts alike on both sides, and which indexes it touches if not.
//!
//! The copy brings indexes that were sorted by the source's C library or ICU. Where the target's
//! sorts differently they are wrong until rebuilt, which a standby cannot do
//! (docs/operators/zalando.md#collation, docs/operators/cloudnative-pg.md#collations). The versions
//! that PostgreSQL knows may say too much, since most strings sort the same, or too little, since
//! Spilo can exchange the locale behind them (USE_OLD_LOCALES): so some strings that are known to
//! have moved are sorted on both sides, too.

use job::quantity::size;
use protocol::checks::{Finding, Verdict, listed};

/// Indexes of the database's default collation carry this collation (pg_collation's row `default`).
pub const DEFAULT_OID: u32 = 100;

/// Strings whose order has changed between versions of the C library or ICU, or differs between
/// languages.
pub const PROBES: [&str; 44] = [
    "a", "A", "b", "B", "aa", "a a", "a-a", "a+a", "a_a", "a.a", "aA", "ab", "1", "11", "1-1",
    "1 1", "2", "10", "_x", "x", "#1", "@a", "$a", "co-op", "coop", "CO-OP", "e", "é", "E", "É",
    "z", "Z", "ss", "ß", "ä", "ae", "az", "ø", "o", "ł", "l", "½", "日", "🙂",
];

/// A collation as one server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collation {
    /// Its oid; [`DEFAULT_OID`] for a database's own.
    pub oid: u32,
    /// Its name, or that of the database.
    pub name: String,
    /// Version that the catalog recorded when it was made; None for those without versions, such as
    /// C.
    pub recorded: Option<String>,
    /// Version that this server's library provides.
    pub provided: Option<String>,
}

/// What one server tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorting {
    /// The default collation of every database.
    pub databases: Vec<Collation>,
    /// The collations that columns or indexes of the application's database use.
    pub named: Vec<Collation>,
    /// [`PROBES`] in the order of the application's database.
    pub order: Vec<String>,
}

/// A collation that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its oid.
    pub oid: u32,
    /// In words: name, version recorded, versions provided.
    pub words: String,
}

/// What depends on the order of collations that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Their number.
    pub indexes: u64,
    /// Those that must keep values unique.
    pub unique: u64,
    /// Size of all on disk.
    pub bytes: u64,
    /// The largest of them.
    pub names: Vec<String>,
    /// Tables partitioned by ranges of such text: rows may lie in the wrong partition.
    pub range_partitioned: Vec<String>,
}

/// The collations that differ. What has no version on any side, such as C, never does.
pub fn differences(source: &[Collation], target: &[Collation]) -> Vec<Difference> {
    let pairs = source.iter().filter_map(|one| {
        Some((
            one,
            target
                .iter()
                .find(|other| other.oid == one.oid && other.name == one.name)?,
        ))
    });
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "no version".into());
    let differing = pairs
        .filter(|(one, other)| one.provided != other.provided || one.recorded != other.provided);
    let words = |(one, other): (&Collation, &Collation)| Difference {
        oid: one.oid,
        words: format!(
            "{} made with {}, the source provides {}, the target {}",
            one.name,
            version(&one.recorded),
            version(&one.provided),
            version(&other.provided)
        ),
    };
    differing.map(words).collect()
}

/// The collations of the application's database by which its indexes may be sorted differently at
/// the target.
pub fn in_question(database: &str, source: &Sorting, target: &Sorting) -> Vec<Difference> {
    let own = |sorting: &Sorting| {
        sorting
            .databases
            .iter()
            .filter(|one| one.name == database)
            .cloned()
            .collect::<Vec<_>>()
    };
    let mut found = differences(&own(source), &own(target));
    if found.is_empty() && source.order != target.order {
        found.push(Difference {
            oid: DEFAULT_OID,
            words: format!("{database} has one version on both sides"),
        });
    }
    found.extend(differences(&source.named, &target.named));
    found
}

/// The verdict: never a blocker, because the cure is a rebuild after the cut.
pub fn finding(
    database: &str,
    source: &Sorting,
    target: &Sorting,
    differing: &[Difference],
    touched: &Touched,
) -> Finding {
    let wanted = "the same versions of all collations on both sides";
    let moved = source
        .order
        .iter()
        .zip(&target.order)
        .filter(|(one, other)| one != other)
        .count();
    let words = |differences: &[Difference]| {
        differences
            .iter()
            .map(|one| one.words.clone())
            .collect::<Vec<_>>()
    };
    if differing.is_empty() {
        let elsewhere = words(&differences(&source.databases, &target.databases));
        if elsewhere.is_empty() {
            return Finding::ok(
                "collations",
                wanted,
                "the same versions, and test strings sort alike",
            );
        }
        return Finding::ok("collations", wanted, listed(&elsewhere)).but(
            Verdict::Warning,
            "other databases of the cluster: after the cut reindex them and alter database … \
             refresh collation version",
        );
    }
    let order = match moved {
        0 => "test strings sort alike all the same".to_owned(),
        _ => format!(
            "test strings sort differently ({moved} of {} places)",
            source.order.len()
        ),
    };
    let mut found = format!(
        "{}; {order}; {}",
        listed(&words(differing)),
        indexes(database, touched)
    );
    if !touched.range_partitioned.is_empty() {
        found.push_str(&format!(
            "; partitioned by ranges of text: {}",
            listed(&touched.range_partitioned)
        ));
    }
    let after = "right after the cut: reindex (concurrently) these indexes, then alter database … \
        refresh collation version";
    let hint = match moved {
        0 => format!("{after}; or use a TARGET_IMAGE with the source's C library"),
        _ => format!(
            "{after}; until then unique indexes may let duplicates in and searches may miss rows: \
             plan it into the window, or use a TARGET_IMAGE with the source's C library"
        ),
    };
    Finding::ok("collations", wanted, found).but(Verdict::Warning, hint)
}

fn indexes(database: &str, touched: &Touched) -> String {
    if touched.indexes == 0 {
        return format!("no index of {database} depends on it");
    }
    let more = touched.indexes.saturating_sub(touched.names.len() as u64);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    format!(
        "{} indexes of {database} depend on it ({} unique, {}): {}{more}",
        touched.indexes,
        touched.unique,
        size(touched.bytes),
        touched.names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collation(name: &str, recorded: Option<&str>, provided: Option<&str>) -> Collation {
        Collation {
            oid: DEFAULT_OID,
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

    fn judge(source: &Sorting, target: &Sorting, touched: &Touched) -> Finding {
        finding(
            "app",
            source,
            target,
            &in_question("app", source, target),
            touched,
        )
    }

    #[test]
    fn equal_versions_and_order_are_as_wanted() {
        let one = sorting("2.36", &["a", "b"]);
        assert_eq!(judge(&one, &one, &Touched::default()).verdict, Verdict::Ok);
    }

    #[test]
    fn another_library_names_versions_indexes_and_partitions() {
        let (source, target) = (sorting("2.36", &["a", "b"]), sorting("2.41", &["a", "b"]));
        let touched = Touched {
            indexes: 3,
            unique: 1,
            bytes: 8192,
            names: vec!["i".into(), "j".into()],
            range_partitioned: vec!["p".into()],
        };
        let finding = judge(&source, &target, &touched);
        assert_eq!(finding.verdict, Verdict::Warning);
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
        let (source, target) = (
            sorting("2.35", &["11", "1-1"]),
            sorting("2.35", &["1-1", "11"]),
        );
        let source = Sorting {
            databases: vec![collation("app", Some("2.35"), Some("2.35"))],
            ..source
        };
        let target = Sorting {
            databases: source.databases.clone(),
            ..target
        };
        let finding = judge(&source, &target, &Touched::default());
        assert!(
            finding.found.contains("sort differently (2 of 2 places)"),
            "{}",
            finding.found
        );
        assert!(finding.hint.unwrap().contains("duplicates"));
    }

    #[test]
    fn other_databases_are_named_and_a_stale_record_at_the_source_too() {
        let mut source = sorting("2.36", &["a"]);
        let mut target = source.clone();
        source
            .databases
            .push(collation("other", Some("2.36"), Some("2.36")));
        target
            .databases
            .push(collation("other", Some("2.36"), Some("2.41")));
        let finding = judge(&source, &target, &Touched::default());
        assert_eq!(
            (
                finding.verdict,
                finding.found.starts_with("other made with 2.36")
            ),
            (Verdict::Warning, true)
        );
        let stale = vec![collation("app", Some("2.31"), Some("2.36"))];
        assert_eq!(differences(&stale, &stale).len(), 1);
    }

    #[test]
    fn the_probes_are_all_different() {
        let mut probes = PROBES.to_vec();
        probes.sort_unstable();
        probes.dedup();
        assert_eq!(probes.len(), PROBES.len());
    }
}
