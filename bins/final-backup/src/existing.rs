//! What the storage already holds: nothing, files of an unfinished run, or a finished backup, which
//! is never overwritten.

use job::error::{Error, Result};
use protocol::wal::SystemIdentifier;

use crate::{
    complete::{Complete, FORMAT},
    receipt::CutoverState,
    settings::Side,
    storage::{COMPLETE, Entry, StorageTarget, UNFINISHED, is_backup_file},
};

/// What the storage holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing.
    Nothing,
    /// Files of a run that did not finish.
    Unfinished,
    /// A finished backup.
    Finished(Box<Complete>),
}

/// Lists the storage and classifies what it holds.
///
/// # Errors
/// Refused if it holds other files; Unsafe if a finished backup is not whole.
pub async fn inspect(storage: &StorageTarget) -> Result<Existing> {
    let entries = storage.entries().await?;
    let complete = if entries.iter().any(|entry| entry.name == COMPLETE) {
        storage.read_small(COMPLETE).await?
    } else {
        None
    };
    classify(&entries, complete.as_deref(), &storage.to_string())
}

fn classify(entries: &[Entry], complete: Option<&[u8]>, storage: &str) -> Result<Existing> {
    let foreign_file = |other: &Entry| {
        Err(
            Error::refused(format!("{storage} holds something else: {}", other.name))
                .hint("choose another BACKUP_NAME or BACKUP_TO; nothing there was changed"),
        )
    };
    if let Some(other) = entries.iter().find(|entry| !is_backup_file(&entry.name)) {
        return foreign_file(other);
    }
    let Some(complete) = complete else {
        return match entries {
            [] => Ok(Existing::Nothing),
            all if all.iter().any(|entry| entry.name == UNFINISHED) => Ok(Existing::Unfinished),
            [other, ..] => foreign_file(other),
        };
    };
    let not_whole = |problem: String| {
        Error::manual_intervention(format!("the backup in {storage} is not whole: {problem}"))
            .hint(NOT_WHOLE)
    };
    let complete: Complete = serde_json::from_slice(complete)
        .map_err(|error| not_whole(format!("{COMPLETE}: {error}")))?;
    if complete.format != FORMAT {
        return Err(not_whole(format!(
            "{COMPLETE} has format {}, and this program reads format {FORMAT}",
            complete.format
        )));
    }
    for object in &complete.objects {
        match entries.iter().find(|entry| entry.name == object.name) {
            None => return Err(not_whole(format!("{} is missing", object.name))),
            Some(found) if found.bytes != object.bytes => {
                return Err(not_whole(format!(
                    "{} has {} bytes instead of {}",
                    object.name, found.bytes, object.bytes
                )));
            }
            Some(_) => {}
        }
    }
    Ok(Existing::Finished(Box::new(complete)))
}

const NOT_WHOLE: &str = "find out what changed it; take another backup under another BACKUP_NAME";

/// Checks that a finished backup is the one that is requested now: of the same side and system, and
/// after a cutover complete up to it. The system identifier is the receipt's, or the server's own
/// before a cutover.
///
/// # Errors
/// Refused if it is another backup.
pub fn ensure_matches(
    complete: &Complete,
    from: Side,
    cutover: &CutoverState,
    system_identifier: SystemIdentifier,
) -> Result<()> {
    let mismatch = |problem: String| {
        Err(Error::refused(format!("the existing backup {problem}"))
            .hint("choose another BACKUP_NAME for another backup; this one is kept"))
    };
    if complete.from != from {
        return mismatch(format!("is one of the {}", complete.from));
    }
    if complete.identity.system_identifier != system_identifier {
        return mismatch(format!(
            "has the system identifier {}, and this cluster has {system_identifier}",
            complete.identity.system_identifier
        ));
    }
    let CutoverState::Completed(receipt) = cutover else {
        return Ok(());
    };
    let includes_cutover = match from {
        Side::Source => {
            complete.identity.timeline == receipt.promotion.timeline
                && complete.wal_end_lsn >= receipt.promotion.replayed
        }
        Side::Target => complete.identity.timeline >= receipt.promoted.timeline,
    };
    if !includes_cutover {
        return mismatch(format!(
            "is older than the cutover: it ends at {} on timeline {}, and the source ended at {} \
             on timeline {}",
            complete.wal_end_lsn,
            complete.identity.timeline,
            receipt.promotion.replayed,
            receipt.promotion.timeline
        ));
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use job::error::ErrorKind;
    use platform::postgres::replication::base_backup::Compression;
    use protocol::wal::Timeline;

    use super::*;
    use crate::{
        complete::Verified, position::tests::state, receipt::tests::receipt, storage::StoredFile,
    };

    pub fn complete() -> Complete {
        let lsn = |text: &str| text.parse().unwrap();
        Complete {
            format: FORMAT,
            program: "final-backup 0.1.0".into(),
            from: Side::Source,
            server: "pg-1".into(),
            started: "2026-01-02T00:00:00Z".parse().unwrap(),
            finished: "2026-01-02T00:01:00Z".parse().unwrap(),
            identity: state("0/0").identity,
            start_lsn: lsn("0/4000028"),
            end_lsn: lsn("0/40000A0"),
            wal_end_lsn: lsn("0/40000A0"),
            source_end: None,
            page_checksums: true,
            verified: Verified::Restore,
            compression: Compression::Zstd,
            files: 1000,
            bytes: 40_000_000,
            objects: vec![StoredFile::new("base.tar.zst", 10, 0)],
        }
    }

    fn entries(list: &[(&str, u64)]) -> Vec<Entry> {
        let entry = |(name, bytes): &(&str, u64)| Entry {
            name: (*name).to_owned(),
            bytes: *bytes,
        };
        list.iter().map(entry).collect()
    }

    fn classified(
        list: &[(&str, u64)],
        complete: Option<&Complete>,
    ) -> Result<Existing, ErrorKind> {
        let text = complete.map(|complete| serde_json::to_vec(complete).unwrap());
        classify(&entries(list), text.as_deref(), "/backup/final").map_err(|error| error.kind())
    }

    #[test]
    fn nothing_unfinished_foreign_and_finished_are_told_apart() {
        assert_eq!(classified(&[], None), Ok(Existing::Nothing));
        assert_eq!(
            classified(&[("base.tar.zst.partial", 1), (UNFINISHED, 1)], None),
            Ok(Existing::Unfinished)
        );
        assert_eq!(classified(&[("photos", 1)], None), Err(ErrorKind::Refused));
        // Files of pg_basebackup -Ft.
        assert_eq!(
            classified(&[("backup_manifest", 1), ("base.tar", 1)], None),
            Err(ErrorKind::Refused)
        );
        let whole = [("base.tar.zst", 10), (COMPLETE, 500)];
        assert_eq!(
            classified(&whole, Some(&complete())),
            Ok(Existing::Finished(Box::new(complete())))
        );
    }

    #[test]
    fn a_finished_backup_that_has_changed_requires_intervention() {
        for list in [
            &[("base.tar.zst", 9), (COMPLETE, 500)][..],
            &[(COMPLETE, 500)],
        ] {
            assert_eq!(classified(list, Some(&complete())), Err(ErrorKind::Unsafe));
        }
        let later = Complete {
            format: FORMAT + 1,
            ..complete()
        };
        assert_eq!(
            classified(&[("base.tar.zst", 10), (COMPLETE, 500)], Some(&later)),
            Err(ErrorKind::Unsafe)
        );
    }

    #[test]
    fn only_the_requested_backup_matches() {
        let completed = CutoverState::Completed(Box::new(receipt()));
        let identifier = complete().identity.system_identifier;
        let matches = |complete: &Complete, from, cutover: &CutoverState| {
            ensure_matches(complete, from, cutover, identifier)
        };
        assert!(matches(&complete(), Side::Source, &CutoverState::NotDone).is_ok());
        let mut foreign = complete();
        foreign.identity.system_identifier = SystemIdentifier(1);
        for cutover in [&CutoverState::NotDone, &completed] {
            assert!(
                matches(&foreign, Side::Source, cutover)
                    .unwrap_err()
                    .to_string()
                    .contains("has the system identifier 1,")
            );
        }
        assert!(matches(&complete(), Side::Source, &completed).is_ok());
        assert!(
            matches(&complete(), Side::Target, &completed)
                .unwrap_err()
                .to_string()
                .contains("is one of the source")
        );
        let before = Complete {
            wal_end_lsn: "0/4000028".parse().unwrap(),
            ..complete()
        };
        assert!(
            matches(&before, Side::Source, &completed)
                .unwrap_err()
                .to_string()
                .contains("older than the cutover")
        );
        let mut of_target = Complete {
            from: Side::Target,
            ..complete()
        };
        assert!(matches(&of_target, Side::Target, &completed).is_err());
        of_target.identity.timeline = Timeline(2);
        assert!(matches(&of_target, Side::Target, &completed).is_ok());
    }
}
