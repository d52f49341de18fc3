//! Checks that a server is the expected one and is at the position that the receipt requires.

use job::error::{Error, Result};

use crate::{receipt::Receipt, server::ServerState};

/// Checks a member of the source after a cutover: in recovery, on the source's timeline, exactly at
/// the end of the source's WAL.
///
/// # Errors
/// Refused while it is behind; Unsafe if it is another server, or has WAL that the cutover does not
/// know of.
pub fn check_source(name: &str, state: &ServerState, receipt: &Receipt) -> Result<()> {
    check_system(name, state, receipt)?;
    let (position, end) = (state.position, receipt.promotion.replayed);
    let (timeline, expected) = (state.identity.timeline, receipt.promotion.timeline);
    if !state.in_recovery {
        return Err(Error::manual_intervention(format!(
            "{name} runs as a primary although the cutover has completed"
        ))
        .hint(SOURCE_STARTED));
    }
    if timeline != expected {
        return Err(Error::manual_intervention(format!(
            "{name} is on timeline {timeline}, and the source ended on timeline {expected}"
        ))
        .hint(
            "it was promoted, or it follows the target as its standby; copy the target with \
             FROM=target",
        ));
    }
    if position > end {
        return Err(Error::manual_intervention(format!(
            "{name} is at {position}, past the end of the source's last record, {end}"
        ))
        .hint(SOURCE_STARTED));
    }
    if position < end {
        return Err(Error::refused(format!(
            "{name} is at {position} and lacks the end of the source's WAL, {end}"
        ))
        .hint("name another member in BACKUP_MEMBER, or set FROM=target"));
    }
    Ok(())
}

const SOURCE_STARTED: &str = "the source was started after the cutover: find out what was written \
    to it, and delete nothing until then";

/// Checks the target after a cutover: a primary, on its own timeline.
///
/// # Errors
/// Unsafe if it is another server; Refused while it is a standby.
pub fn check_target(name: &str, state: &ServerState, receipt: &Receipt) -> Result<()> {
    check_system(name, state, receipt)?;
    if state.in_recovery {
        return Err(
            Error::refused(format!("{name} is a standby, not the new primary"))
                .hint("correct TARGET_HOST"),
        );
    }
    if state.identity.timeline < receipt.promoted.timeline {
        return Err(Error::manual_intervention(format!(
            "{name} is on timeline {}, and the target was promoted to timeline {}",
            state.identity.timeline, receipt.promoted.timeline
        ))
        .hint("check that TARGET_HOST is the target of the receipt"));
    }
    Ok(())
}

fn check_system(name: &str, state: &ServerState, receipt: &Receipt) -> Result<()> {
    let (found, expected) = (
        state.identity.system_identifier,
        receipt.started.source.system_identifier,
    );
    if found == expected {
        return Ok(());
    }
    Err(Error::manual_intervention(format!(
        "{name} has the system identifier {found}, and the receipt has {expected}"
    ))
    .hint(
        "the receipt or the host belongs to another cluster; check the names in the ConfigMap \
         replica-migration",
    ))
}

#[cfg(test)]
pub mod tests {
    use job::error::ErrorKind;
    use protocol::wal::{Identity, SystemIdentifier, Timeline};

    use super::*;
    use crate::receipt::tests::receipt;

    pub fn state(position: &str) -> ServerState {
        ServerState {
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
    fn a_member_must_be_exactly_at_the_end_of_the_sources_wal() {
        let checked = |state: &ServerState| {
            check_source("pg-1", state, &receipt()).map_err(|error| error.kind())
        };
        assert_eq!(checked(&state("0/40000A0")), Ok(()));
        assert_eq!(checked(&state("0/4000028")), Err(ErrorKind::Refused));
        assert_eq!(checked(&state("0/40000A8")), Err(ErrorKind::Unsafe));
        let primary = ServerState {
            in_recovery: false,
            ..state("0/40000A0")
        };
        assert_eq!(checked(&primary), Err(ErrorKind::Unsafe));
        for wrong in [
            Identity {
                timeline: Timeline(2),
                ..state("0/0").identity
            },
            Identity {
                system_identifier: SystemIdentifier(1),
                ..state("0/0").identity
            },
        ] {
            let other = ServerState {
                identity: wrong,
                ..state("0/40000A0")
            };
            assert_eq!(checked(&other), Err(ErrorKind::Unsafe));
        }
    }

    #[test]
    fn the_target_is_a_primary_on_its_own_timeline() {
        let checked = |in_recovery, timeline| {
            let mut target = state("0/5000000");
            target.in_recovery = in_recovery;
            target.identity.timeline = Timeline(timeline);
            check_target("database-rw", &target, &receipt()).map_err(|error| error.kind())
        };
        assert_eq!((checked(false, 2), checked(false, 3)), (Ok(()), Ok(())));
        assert_eq!(
            (checked(true, 2), checked(false, 1)),
            (Err(ErrorKind::Refused), Err(ErrorKind::Unsafe))
        );
    }
}
