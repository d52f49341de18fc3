//! The major versions of PostgreSQL that a migration supports.
//!
//! The programs use nothing that differs between them: the statements, the functions and columns of
//! the catalogs, the replication protocol and the checkpoint record are the same in all. Two things
//! are looked at where they are met: the version of a backup manifest (2 from 17 on), and the
//! contributed extensions of an image (prepare-zalando). PostgreSQL 14 has neither `datlocprovider`
//! nor `datcollversion` (release notes of 15), and its BASE_BACKUP takes other options.

use std::ops::RangeInclusive;

/// The supported major versions.
pub const SUPPORTED: RangeInclusive<u32> = 15..=18;

/// The supported major versions in words: "15 to 18".
pub fn supported() -> String {
    format!("{} to {}", SUPPORTED.start(), SUPPORTED.end())
}

/// What to do about a source of an unsupported major version.
pub fn hint(major: u32) -> &'static str {
    if major < *SUPPORTED.start() {
        "upgrade the source first: postgres-operator upgrades it in place when \
         spec.postgresql.version is raised (major_version_upgrade_mode)"
    } else {
        "look for a version of replica-migration that supports it"
    }
}
