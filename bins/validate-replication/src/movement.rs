//! Whether the target's replay moves while the source writes.

use std::time::Duration;

use job::quantity::size;
use protocol::{
    checks::{Finding, Verdict},
    wal::Lsn,
};

/// The source's and the target's movement over a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The source's flush LSN at the beginning: what is flushed has been sent.
    pub source: Lsn,
    /// Bytes that the source wrote in `within`.
    pub bytes: u64,
    /// The target's replay LSN at the end.
    pub replayed: Option<Lsn>,
    /// The length of that while.
    pub within: Duration,
}

/// The target's replay moves with the source; an idle source needs no movement, only equality.
pub fn progress(moved: &Moved) -> Finding {
    let wanted = format!("the source's {} replayed", moved.source);
    let Some(replayed) = moved.replayed.filter(|replayed| *replayed >= moved.source) else {
        let found = moved.replayed.map_or_else(
            || "nothing replayed".to_owned(),
            |lsn| format!("replay stands at {lsn}"),
        );
        return Finding::ok("lsn progress", wanted, found).but(
            Verdict::NotYet,
            "a long query on the target may hold the replay (pg_stat_activity there), or its disk \
             is slow; run this step again",
        );
    };
    let seconds = moved.within.as_secs_f64();
    let found = match moved.bytes {
        0 => format!(
            "the source wrote nothing in {seconds:.1} s; the target has replayed all, {replayed}"
        ),
        bytes => format!(
            "the source wrote {} in {seconds:.1} s, the target follows: {replayed}",
            size(bytes)
        ),
    };
    Finding::ok("lsn progress", wanted, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_source_needs_no_movement_and_a_standing_replay_is_said() {
        let lsn = |text: &str| text.parse().unwrap();
        let moved = Moved {
            source: lsn("0/5000000"),
            bytes: 0,
            replayed: Some(lsn("0/5000000")),
            within: Duration::from_secs(1),
        };
        assert!(progress(&moved).found.contains("wrote nothing in 1.0 s"));
        assert_eq!(
            progress(&Moved {
                bytes: 2_500_000,
                ..moved
            })
            .found,
            "the source wrote 2.5 MB in 1.0 s, the target follows: 0/5000000"
        );
        assert_eq!(
            progress(&Moved {
                replayed: Some(lsn("0/4FFFFF8")),
                ..moved
            })
            .verdict,
            Verdict::NotYet
        );
        assert_eq!(
            progress(&Moved {
                replayed: None,
                ..moved
            })
            .verdict,
            Verdict::NotYet
        );
    }
}
