//! Whether a server is the one that is meant, and stands where the receipt says that it must.

use job::error::{Error, Result};

use crate::{receipt::Receipt, server::Seen};

/// A member of the source after a cut: in recovery, on the source's timeline, exactly at its last
/// record.
///
/// # Errors
/// Refused while it is behind; Unsafe when it is another server, or holds more than the cut knows
/// of.
pub fn of_source(name: &str, seen: &Seen, receipt: &Receipt) -> Result<()> {
    same_system(name, seen, receipt)?;
    let (position, end) = (seen.position, receipt.promotion.replayed);
    let (timeline, last) = (seen.identity.timeline, receipt.promotion.timeline);
    if !seen.in_recovery {
        return Err(Error::contradiction(format!(
            "{name} runs as a primary although the cut is over"
        ))
        .hint(LOOK));
    }
    if timeline != last {
        return Err(Error::contradiction(format!(
            "{name} is on timeline {timeline}, and the source ended \
                on timeline {last}"
        ))
        .hint(
            "it has been promoted, or it follows the target on the way back; copy the \
                    target with FROM=target",
        ));
    }
    if position > end {
        return Err(Error::contradiction(format!(
            "{name} stands at {position}, behind the source's last record, which ends at {end}"
        ))
        .hint(LOOK));
    }
    if position < end {
        return Err(Error::refused(format!(
            "{name} stands at {position} and lacks the end of the source's wal, {end}"
        ))
        .hint("name another member in BACKUP_MEMBER, or set FROM=target"));
    }
    Ok(())
}

const LOOK: &str = "somebody has started the source after the cut: find out what was written \
    there, and delete nothing until then";

/// The target after a cut: a primary, on its own timeline.
///
/// # Errors
/// Unsafe when it is another server; Refused while it is a standby.
pub fn of_target(name: &str, seen: &Seen, receipt: &Receipt) -> Result<()> {
    same_system(name, seen, receipt)?;
    if seen.in_recovery {
        return Err(
            Error::refused(format!("{name} is a standby, and not the new primary"))
                .hint("correct TARGET_HOST"),
        );
    }
    if seen.identity.timeline < receipt.promoted.timeline {
        return Err(Error::contradiction(format!(
            "{name} is on timeline {}, and the target was promoted to timeline {}",
            seen.identity.timeline, receipt.promoted.timeline
        ))
        .hint("is TARGET_HOST the target that the receipt is about?"));
    }
    Ok(())
}

fn same_system(name: &str, seen: &Seen, receipt: &Receipt) -> Result<()> {
    let (found, wanted) = (
        seen.identity.system_identifier,
        receipt.started.source.system_identifier,
    );
    if found == wanted {
        return Ok(());
    }
    Err(Error::contradiction(format!(
        "{name} is the system {found}, and the receipt is about \
            {wanted}"
    ))
    .hint(
        "the receipt, or the host, is of another cluster; check the names in the \
                ConfigMap replica-migration",
    ))
}

#[cfg(test)]
pub mod tests {
    use job::error::ErrorKind;
    use protocol::wal::{Identity, SystemIdentifier, Timeline};

    use super::*;
    use crate::receipt::tests::receipt;

    pub fn seen(position: &str) -> Seen {
        Seen {
            identity: Identity {
                system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
                timeline: Timeline(1),
                version: 170_010,
            },
            position: position.parse().unwrap(),
            in_recovery: true,
            page_checksums: true,
            segment_bytes: 16 << 20,
        }
    }

    #[test]
    fn a_member_stands_exactly_at_the_last_record() {
        let judged =
            |seen: &Seen| of_source("pg-1", seen, &receipt()).map_err(|error| error.kind());
        assert_eq!(judged(&seen("0/40000A0")), Ok(()));
        assert_eq!(judged(&seen("0/4000028")), Err(ErrorKind::Refused));
        assert_eq!(judged(&seen("0/40000A8")), Err(ErrorKind::Unsafe));
        let primary = Seen {
            in_recovery: false,
            ..seen("0/40000A0")
        };
        assert_eq!(judged(&primary), Err(ErrorKind::Unsafe));
        for wrong in [
            Identity {
                timeline: Timeline(2),
                ..seen("0/0").identity
            },
            Identity {
                system_identifier: SystemIdentifier(1),
                ..seen("0/0").identity
            },
        ] {
            let other = Seen {
                identity: wrong,
                ..seen("0/40000A0")
            };
            assert_eq!(judged(&other), Err(ErrorKind::Unsafe));
        }
    }

    #[test]
    fn the_target_is_a_primary_on_its_own_timeline() {
        let judged = |in_recovery, timeline| {
            let mut target = seen("0/5000000");
            target.in_recovery = in_recovery;
            target.identity.timeline = Timeline(timeline);
            of_target("database-rw", &target, &receipt()).map_err(|error| error.kind())
        };
        assert_eq!((judged(false, 2), judged(false, 3)), (Ok(()), Ok(())));
        assert_eq!(
            (judged(true, 2), judged(false, 1)),
            (Err(ErrorKind::Refused), Err(ErrorKind::Unsafe))
        );
    }
}
