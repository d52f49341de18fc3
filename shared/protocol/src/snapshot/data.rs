//! The data of both sides compared: the movement of the replay, the collations, the rows.

use std::time::Duration;

use crate::{failure::Failure, wal::Lsn};

/// What is compared once replication is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataComparison {
    /// The replay while the source writes.
    pub replay: ReplayProgress,
    /// The collations.
    pub collations: CollationComparison,
    /// The tables of KEY_TABLES, in their order.
    pub tables: Vec<TableComparison>,
}

/// The movement of both sides over a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayProgress {
    /// The source's flush LSN at the beginning: what is flushed has been sent.
    pub source: Lsn,
    /// Bytes of WAL that the source wrote in `within`.
    pub bytes: u64,
    /// The target's replay LSN at the end.
    pub replayed: Option<Lsn>,
    /// The length of that while.
    pub within: Duration,
}

/// Indexes of the database's default collation carry this collation (pg_collation's row `default`).
pub const DEFAULT_COLLATION_OID: u32 = 100;

/// A collation as one server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collation {
    /// Its oid; [`DEFAULT_COLLATION_OID`] for a database's own.
    pub oid: u32,
    /// Its name, or that of the database.
    pub name: String,
    /// Version that the catalog recorded when it was made; None for those without versions, such as
    /// C.
    pub recorded: Option<String>,
    /// Version that this server's library provides.
    pub provided: Option<String>,
}

/// How one server sorts text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorting {
    /// The default collation of every database.
    pub databases: Vec<Collation>,
    /// The collations that columns or indexes of the application's database use.
    pub named: Vec<Collation>,
    /// Test strings in the order of the application's database.
    pub order: Vec<String>,
}

/// A collation that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollationDifference {
    /// Its oid.
    pub oid: u32,
    /// Its name, the version recorded, and the versions provided.
    pub description: String,
}

/// What depends on the order of collations that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DependentObjects {
    /// Number of indexes.
    pub indexes: u64,
    /// Number of those that keep values unique.
    pub unique: u64,
    /// Size of all of them on disk, in bytes.
    pub bytes: u64,
    /// The largest of them.
    pub names: Vec<String>,
    /// Tables partitioned by ranges of such text: rows may lie in the wrong partition.
    pub range_partitioned: Vec<String>,
}

/// How both sides sort text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollationComparison {
    /// The application's database.
    pub database: String,
    /// The source.
    pub source: Sorting,
    /// The target.
    pub target: Sorting,
    /// What depends on the collations in [`differing`].
    pub dependent: DependentObjects,
}

/// The collations of the application's database by which its indexes may be sorted differently at
/// the target.
pub fn differing(database: &str, source: &Sorting, target: &Sorting) -> Vec<CollationDifference> {
    let own = |sorting: &Sorting| {
        sorting
            .databases
            .iter()
            .filter(|one| one.name == database)
            .cloned()
            .collect::<Vec<_>>()
    };
    let mut found = version_differences(&own(source), &own(target));
    if found.is_empty() && source.order != target.order {
        found.push(CollationDifference {
            oid: DEFAULT_COLLATION_OID,
            description: format!("{database} has one version on both sides"),
        });
    }
    found.extend(version_differences(&source.named, &target.named));
    found
}

/// The collations whose versions differ. What has no version on any side, such as C, never does.
pub fn version_differences(source: &[Collation], target: &[Collation]) -> Vec<CollationDifference> {
    let pairs = source.iter().filter_map(|one| {
        let same = |other: &&Collation| other.oid == one.oid && other.name == one.name;
        Some((one, target.iter().find(same)?))
    });
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "no version".into());
    let differing = pairs
        .filter(|(one, other)| one.provided != other.provided || one.recorded != other.provided);
    let described = |(one, other): (&Collation, &Collation)| CollationDifference {
        oid: one.oid,
        description: format!(
            "{} made with {}, the source provides {}, the target {}",
            one.name,
            version(&one.recorded),
            version(&one.provided),
            version(&other.provided)
        ),
    };
    differing.map(described).collect()
}

/// A table of KEY_TABLES.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableComparison {
    /// Its name, as KEY_TABLES has it.
    pub table: String,
    /// Its counts, or why there are none.
    pub counts: Result<RowCounts, Uncounted>,
}

/// A count in one snapshot of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All rows.
    pub rows: u64,
    /// Those of them that were written before X, the oldest transaction that ran at the first
    /// count.
    pub kept: u64,
}

/// A table counted three times, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// At the source.
    pub first: Count,
    /// At the target, which has replayed everything that `first` counts.
    pub target: Count,
    /// At the source again.
    pub again: Count,
}

impl RowCounts {
    /// The target has replayed a deletion that the source does not show yet: a standby may show a
    /// transaction a moment before its primary does.
    pub fn target_is_ahead(&self) -> bool {
        self.target.kept < self.again.kept
    }
}

/// Why a table was not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uncounted {
    /// The source has no such table.
    Missing,
    /// More than one schema has it, and none of them is `public`.
    Ambiguous {
        /// The schemas.
        schemas: Vec<String>,
    },
    /// It is a view or a foreign table.
    WithoutRows,
    /// It is unlogged, so its rows are not replicated.
    Unlogged,
    /// The counts failed.
    Failed(Failure),
}
