//! The proof that the target holds everything the source has ever written: pure arithmetic on what
//! the target's pg_control says.

use crate::{
    snapshot::target::{ControlCheckpoint, Replay},
    wal::{Lsn, Timeline},
};

/// Bytes of a shutdown checkpoint record in PostgreSQL 15 to 18, aligned: XLogRecord (24) + data
/// header (2) + CheckPoint (88) = 114 → 120 (src/include/access/xlogrecord.h,
/// src/include/catalog/pg_control.h; seen on a live cluster: checkpoint 0/4000028, replay
/// 0/40000A0).
const SHUTDOWN_RECORD_BYTES: u64 = 120;
/// XLOG_BLCKSZ.
const PAGE_BYTES: u64 = 8192;
/// SizeOfXLogShortPHD: header of every WAL page.
const PAGE_HEADER_BYTES: u64 = 24;
/// SizeOfXLogLongPHD: header of a segment's first page.
const SEGMENT_HEADER_BYTES: u64 = 40;

/// Where a shutdown checkpoint record that begins at `start` ends: with the page header in between
/// when it crosses a page.
pub fn end_of_shutdown_checkpoint(start: Lsn, segment_bytes: u64) -> Lsn {
    let start = start.0;
    let (room, mut end) = (
        PAGE_BYTES - start % PAGE_BYTES,
        start + SHUTDOWN_RECORD_BYTES,
    );
    if room < SHUTDOWN_RECORD_BYTES {
        let next_page = start + room;
        end += if next_page.is_multiple_of(segment_bytes) {
            SEGMENT_HEADER_BYTES
        } else {
            PAGE_HEADER_BYTES
        };
    }
    Lsn(end)
}

/// What the proof of a clean stop lacks. It is not a reason to wait: restartpoints are repeated
/// until there is a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingProof {
    /// The target's last restartpoint is not on the source's timeline.
    OtherTimeline {
        /// The timeline of the restartpoint.
        found: Timeline,
        /// The source's timeline.
        expected: Timeline,
    },
    /// The target has no restartpoint of a shutdown checkpoint behind the source's position.
    NoShutdownCheckpoint {
        /// The last restartpoint.
        restartpoint: Lsn,
        /// The source's position before it was stopped.
        since: Lsn,
    },
    /// The target's replay is not exactly at the end of the shutdown checkpoint.
    NotReplayedToItsEnd {
        /// Its replay position, if there is one.
        replayed: Option<Lsn>,
        /// The end of the shutdown checkpoint.
        end: Lsn,
    },
}

/// What is still missing from the proof that `replay` is the end of the source's clean stop.
///
/// All four must hold (docs/protocol.md#proof-of-a-clean-stop): the last checkpoint replayed is a
/// shutdown checkpoint (redo = its own position), it is on the source's timeline, it is later than
/// what the source had written when it was to be stopped (`since`), and the replay position is the
/// end of exactly that record, so nothing follows it.
///
/// # Errors
/// The first of these that does not hold.
pub fn clean_stop(
    control: &ControlCheckpoint,
    replay: &Replay,
    since: Lsn,
    timeline: Timeline,
    segment_bytes: u64,
) -> Result<Lsn, MissingProof> {
    if control.timeline != timeline {
        return Err(MissingProof::OtherTimeline {
            found: control.timeline,
            expected: timeline,
        });
    }
    if !control.ends_a_run_after(since) {
        return Err(MissingProof::NoShutdownCheckpoint {
            restartpoint: control.checkpoint,
            since,
        });
    }
    let end = end_of_shutdown_checkpoint(control.checkpoint, segment_bytes);
    match replay.replay {
        Some(replayed) if replayed == end => Ok(replayed),
        replayed => Err(MissingProof::NotReplayedToItsEnd { replayed, end }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn control(checkpoint: &str, redo: &str) -> ControlCheckpoint {
        ControlCheckpoint {
            checkpoint: lsn(checkpoint),
            redo: lsn(redo),
            timeline: Timeline(3),
        }
    }

    fn at(replay: &str) -> Replay {
        Replay {
            receive: None,
            replay: Some(lsn(replay)),
            streaming: false,
            paused: false,
        }
    }

    #[test]
    fn the_positions_seen_on_real_servers_are_a_proof() {
        for (checkpoint, replay) in [("0/4000028", "0/40000A0"), ("0/18000028", "0/180000A0")] {
            let proved = clean_stop(
                &control(checkpoint, checkpoint),
                &at(replay),
                lsn("0/3FFFFF0"),
                Timeline(3),
                SEGMENT,
            );
            assert_eq!(proved, Ok(lsn(replay)));
        }
    }

    #[test]
    fn a_record_that_crosses_a_page_ends_after_the_header() {
        assert_eq!(
            end_of_shutdown_checkpoint(lsn("0/4001FC0"), SEGMENT),
            lsn("0/4002050")
        );
        assert_eq!(
            end_of_shutdown_checkpoint(lsn("0/4FFFFC0"), SEGMENT),
            lsn("0/5000060")
        );
        assert_eq!(
            end_of_shutdown_checkpoint(lsn("0/4001F88"), SEGMENT),
            lsn("0/4002000")
        );
    }

    #[test]
    fn each_of_the_four_conditions_is_needed() {
        let marker = lsn("0/3000000");
        let ok = control("0/4000028", "0/4000028");
        assert_eq!(
            clean_stop(&ok, &at("0/4000028"), marker, Timeline(3), SEGMENT),
            Err(MissingProof::NotReplayedToItsEnd {
                replayed: Some(lsn("0/4000028")),
                end: lsn("0/40000A0"),
            })
        );
        assert!(
            clean_stop(&ok, &at("0/4000108"), marker, Timeline(3), SEGMENT).is_err(),
            "something follows the checkpoint"
        );
        assert!(
            clean_stop(
                &ok,
                &at("0/40000A0"),
                lsn("0/5000000"),
                Timeline(3),
                SEGMENT
            )
            .is_err(),
            "older than the marker"
        );
        assert!(
            clean_stop(&ok, &at("0/40000A0"), marker, Timeline(4), SEGMENT).is_err(),
            "another timeline"
        );
        let online = control("0/4000028", "0/4000000");
        assert!(
            clean_stop(&online, &at("0/40000A0"), marker, Timeline(3), SEGMENT).is_err(),
            "an online checkpoint"
        );
        assert!(
            clean_stop(
                &ok,
                &Replay {
                    replay: None,
                    ..at("0/0")
                },
                marker,
                Timeline(3),
                SEGMENT
            )
            .is_err()
        );
    }
}
