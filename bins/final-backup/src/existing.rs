//! What is where the backup shall go: nothing, the rest of a run that did not finish, or a finished
//! backup, which is never overwritten.

use job::error::{Error, Result};
use protocol::wal::SystemIdentifier;

use crate::{
    complete::{Complete, FORMAT},
    place::{COMPLETE, Entry, Place, UNFINISHED, is_ours},
    receipt::Cut,
    settings::Side,
};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Files of a run that did not finish.
    Unfinished,
    /// A finished backup.
    Finished(Box<Complete>),
}

/// Looks, and judges.
///
/// # Errors
/// Refused when something else is there; Unsafe when a finished backup is not whole.
pub async fn look(place: &Place) -> Result<Found> {
    let entries = place.entries().await?;
    let complete = match entries.iter().any(|entry| entry.name == COMPLETE) {
        true => place.small(COMPLETE).await?,
        false => None,
    };
    judge(&entries, complete.as_deref(), &place.to_string())
}

fn judge(entries: &[Entry], complete: Option<&[u8]>, place: &str) -> Result<Found> {
    let else_there = |other: &Entry| {
        Err(
            Error::refused(format!("{place} holds something else: {}", other.name))
                .hint("choose another BACKUP_NAME or BACKUP_TO; nothing there was changed"),
        )
    };
    if let Some(other) = entries.iter().find(|entry| !is_ours(&entry.name)) {
        return else_there(other);
    }
    let Some(complete) = complete else {
        return match entries {
            [] => Ok(Found::Nothing),
            marked if marked.iter().any(|entry| entry.name == UNFINISHED) => Ok(Found::Unfinished),
            [other, ..] => else_there(other),
        };
    };
    let broken = |what: String| {
        Error::contradiction(format!("the backup in {place} is not whole: {what}")).hint(BROKEN)
    };
    let complete: Complete =
        serde_json::from_slice(complete).map_err(|error| broken(format!("{COMPLETE}: {error}")))?;
    if complete.format != FORMAT {
        return Err(broken(format!(
            "{COMPLETE} has the format {}, and {FORMAT} is known here",
            complete.format
        )));
    }
    for object in &complete.objects {
        match entries.iter().find(|entry| entry.name == object.name) {
            None => return Err(broken(format!("{} is missing", object.name))),
            Some(found) if found.bytes != object.bytes => {
                return Err(broken(format!(
                    "{} has {} bytes, and had {}",
                    object.name, found.bytes, object.bytes
                )));
            }
            Some(_) => {}
        }
    }
    Ok(Found::Finished(Box::new(complete)))
}

const BROKEN: &str = "find out who changed it; take another backup under another BACKUP_NAME";

/// Whether a finished backup is the one that is asked for now: of this system, which the receipt
/// names, or the server itself before a cut.
///
/// # Errors
/// Refused when it is another one.
pub fn fits(complete: &Complete, from: Side, cut: &Cut, system: SystemIdentifier) -> Result<()> {
    let other = |what: String| {
        Err(Error::refused(format!("the backup that is there {what}"))
            .hint("choose another BACKUP_NAME for another backup; this one is kept"))
    };
    if complete.from != from {
        return other(format!("is one of the {}", complete.from));
    }
    if complete.identity.system_identifier != system {
        return other(format!(
            "is of the system {}, and this is {system}",
            complete.identity.system_identifier
        ));
    }
    let Cut::Over(receipt) = cut else {
        return Ok(());
    };
    let whole = match from {
        Side::Source => {
            complete.identity.timeline == receipt.promotion.timeline
                && complete.wal_end_lsn >= receipt.promotion.replayed
        }
        Side::Target => complete.identity.timeline >= receipt.promoted.timeline,
    };
    if !whole {
        return other(format!(
            "is older than the cut: it ends at {} on timeline {}, the source ended at {} on \
             timeline {}",
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
        complete::Verified, place::Stored, position::tests::seen, receipt::tests::receipt,
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
            identity: seen("0/0").identity,
            start_lsn: lsn("0/4000028"),
            end_lsn: lsn("0/40000A0"),
            wal_end_lsn: lsn("0/40000A0"),
            cut: None,
            page_checksums: true,
            verified: Verified::Restore,
            compression: Compression::Zstd,
            files: 1000,
            bytes: 40_000_000,
            objects: vec![Stored::new("base.tar.zst", 10, 0)],
        }
    }

    fn entries(list: &[(&str, u64)]) -> Vec<Entry> {
        let entry = |(name, bytes): &(&str, u64)| Entry {
            name: (*name).to_owned(),
            bytes: *bytes,
        };
        list.iter().map(entry).collect()
    }

    fn judged(list: &[(&str, u64)], complete: Option<&Complete>) -> Result<Found, ErrorKind> {
        let text = complete.map(|complete| serde_json::to_vec(complete).unwrap());
        judge(&entries(list), text.as_deref(), "/backup/final").map_err(|error| error.kind())
    }

    #[test]
    fn what_is_there_is_told_apart() {
        assert_eq!(judged(&[], None), Ok(Found::Nothing));
        assert_eq!(
            judged(&[("base.tar.zst.partial", 1), (UNFINISHED, 1)], None),
            Ok(Found::Unfinished)
        );
        assert_eq!(judged(&[("photos", 1)], None), Err(ErrorKind::Refused));
        // What pg_basebackup -Ft leaves.
        assert_eq!(
            judged(&[("backup_manifest", 1), ("base.tar", 1)], None),
            Err(ErrorKind::Refused)
        );
        let whole = [("base.tar.zst", 10), (COMPLETE, 500)];
        assert_eq!(
            judged(&whole, Some(&complete())),
            Ok(Found::Finished(Box::new(complete())))
        );
    }

    #[test]
    fn a_finished_backup_that_has_changed_is_for_a_person_to_look_at() {
        for list in [
            &[("base.tar.zst", 9), (COMPLETE, 500)][..],
            &[(COMPLETE, 500)],
        ] {
            assert_eq!(judged(list, Some(&complete())), Err(ErrorKind::Unsafe));
        }
        let later = Complete {
            format: FORMAT + 1,
            ..complete()
        };
        assert_eq!(
            judged(&[("base.tar.zst", 10), (COMPLETE, 500)], Some(&later)),
            Err(ErrorKind::Unsafe)
        );
    }

    #[test]
    fn only_the_backup_that_is_asked_for_fits() {
        let over = Cut::Over(Box::new(receipt()));
        let system = complete().identity.system_identifier;
        let fits = |complete: &Complete, from, cut: &Cut| fits(complete, from, cut, system);
        assert!(fits(&complete(), Side::Source, &Cut::NotYet).is_ok());
        let mut foreign = complete();
        foreign.identity.system_identifier = SystemIdentifier(1);
        for cut in [&Cut::NotYet, &over] {
            assert!(
                fits(&foreign, Side::Source, cut)
                    .unwrap_err()
                    .to_string()
                    .contains("of the system 1,")
            );
        }
        assert!(fits(&complete(), Side::Source, &over).is_ok());
        assert!(
            fits(&complete(), Side::Target, &over)
                .unwrap_err()
                .to_string()
                .contains("is one of the source")
        );
        let before = Complete {
            wal_end_lsn: "0/4000028".parse().unwrap(),
            ..complete()
        };
        assert!(
            fits(&before, Side::Source, &over)
                .unwrap_err()
                .to_string()
                .contains("older than the cut")
        );
        let mut of_target = Complete {
            from: Side::Target,
            ..complete()
        };
        assert!(fits(&of_target, Side::Target, &over).is_err());
        of_target.identity.timeline = Timeline(2);
        assert!(fits(&of_target, Side::Target, &over).is_ok());
    }
}
