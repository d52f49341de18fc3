//! What the two servers must be before a cut: the target a streaming physical copy of a primary
//! source, close behind it.

use super::{Finding, Verdict};
use crate::{
    snapshot::{
        ServerState,
        settings::{HotStandby, SuperuserLogins},
        target::Replay,
    },
    wal::{Identity, Lsn},
};

/// The major version that the migration is made and tested for.
pub const MAJOR: u32 = 17;

/// The check of [`lag`], whose number moves all the time.
pub const LAG: &str = "lag";

const CLONE_AGAIN: &str =
    "this target can never follow this source: delete the Cluster and its volume and clone again";

/// The target is a physical copy of this source and of no other.
pub fn system_identifier(source: &Identity, target: &Identity) -> Finding {
    let finding = Finding::ok(
        "system identifier",
        format!("the source's {}", source.system_identifier),
        format!("{} at the target", target.system_identifier),
    );
    if source.system_identifier == target.system_identifier {
        return on_both_sides(finding, source.system_identifier);
    }
    finding.but(
        Verdict::Blocker,
        format!(
            "the target was made from another server; check SOURCE_* and TARGET_*, or {CLONE_AGAIN}"
        ),
    )
}

/// The target is on the source's timeline: neither behind a failover of the source, nor promoted on
/// its own.
pub fn timeline(source: &Identity, target: &Identity) -> Finding {
    let finding = Finding::ok(
        "timeline",
        format!("the source's {}", source.timeline),
        format!("{} at the target", target.timeline),
    );
    match target.timeline.cmp(&source.timeline) {
        std::cmp::Ordering::Equal => on_both_sides(finding, source.timeline),
        // A failover of the source begins a timeline; a target that was not ahead of the fork
        // follows within seconds.
        std::cmp::Ordering::Less => finding.but(
            Verdict::NotYet,
            "the source has failed over; if the target's log says that the new timeline forked off \
             before its position, clone again",
        ),
        std::cmp::Ordering::Greater => finding.but(
            Verdict::Blocker,
            format!(
                "the target has been \
            promoted before; {CLONE_AGAIN}"
            ),
        ),
    }
}

/// Both are of the major version that this migration is for.
pub fn major_version(source: &Identity, target: &Identity) -> Finding {
    let finding = Finding::ok(
        "version",
        format!("PostgreSQL {MAJOR} on both sides"),
        format!(
            "{} at the source, {} at the target",
            spelled(source),
            spelled(target)
        ),
    );
    if source.major() == MAJOR && target.major() == MAJOR {
        return finding;
    }
    finding.but(
        Verdict::Blocker,
        "physical replication works within one major version only; upgrade the source first or \
         correct TARGET_IMAGE",
    )
}

fn on_both_sides(finding: Finding, value: impl std::fmt::Display) -> Finding {
    Finding {
        found: format!("{value} on both sides"),
        ..finding
    }
}

fn spelled(identity: &Identity) -> String {
    format!("{}.{}", identity.major(), identity.version % 10_000)
}

/// The source takes writes: SOURCE_HOST leads to the leader and nobody has cut before.
pub fn source_is_primary(source: &ServerState) -> Finding {
    if !source.in_recovery {
        return Finding::ok("source", "a primary", "a primary");
    }
    Finding::ok("source", "a primary", "a standby").but(
        Verdict::NotYet,
        "SOURCE_HOST must lead to the leader; during a failover wait, and after a cut with a way \
         back kept open there is nothing left to do",
    )
}

/// The target is a standby still.
pub fn target_in_recovery(target: &ServerState) -> Finding {
    if target.in_recovery {
        return Finding::ok("target", "a standby", "a standby");
    }
    Finding::ok(
        "target",
        "a standby",
        format!("a primary on timeline {}", target.identity.timeline),
    )
    .but(
        Verdict::Blocker,
        "the target has been promoted already: look at the ConfigMap cutover-<cluster>-receipt; \
         without one, somebody else did it, and the target must be cloned again",
    )
}

/// WAL arrives as it is written.
pub fn streaming(replay: &Replay) -> Finding {
    let finding = Finding::ok(
        "wal receiver",
        "streaming",
        if replay.streaming {
            "streaming"
        } else {
            "not streaming"
        },
    );
    if replay.streaming {
        return finding;
    }
    finding.but(
        Verdict::NotYet,
        "read the log of the target's pod: a refused login is mended by prepare-zalando or \
         extract-certs, a \"requested WAL segment … has already been removed\" only by cloning \
         again with a larger WAL_KEEP_MB",
    )
}

/// Replay has not been paused, by hand or because a hot-standby setting of the source was raised.
pub fn replay_not_paused(replay: &Replay) -> Finding {
    if !replay.paused {
        return Finding::ok("replay", "running", "running");
    }
    Finding::ok("replay", "running", "paused").but(
        Verdict::Blocker,
        "if it was paused by hand: select pg_wal_replay_resume() on the target; if the source's \
         max_connections or alike was raised, raise the Cluster's too",
    )
}

/// The target replays what it receives at once; `delay` is its recovery_min_apply_delay.
pub fn no_apply_delay(delay: &str) -> Finding {
    let finding = Finding::ok("recovery_min_apply_delay of the target", "0", delay);
    if delay == "0" {
        return finding;
    }
    finding.but(
        Verdict::Blocker,
        "remove spec.replica.minApplyDelay from the Cluster: the cut would wait for it while the \
         application is down",
    )
}

/// The login may do what a cut needs: a checkpoint, ending sessions, stopping the server.
pub fn superuser(superuser_of: &SuperuserLogins) -> Finding {
    let finding = Finding::ok(
        "login",
        "superuser on both sides",
        "superuser on both sides",
    );
    let lacking: Vec<&str> = [
        ("SOURCE_USER", superuser_of.source),
        ("TARGET_USER", superuser_of.target),
    ]
    .into_iter()
    .filter_map(|(name, superuser)| (!superuser).then_some(name))
    .collect();
    if lacking.is_empty() {
        return finding;
    }
    Finding {
        found: format!("{} is no superuser", lacking.join(" and ")),
        ..finding
    }
    .but(
        Verdict::Misconfigured,
        "name postgres there, with the password of the Secret \
         postgres.<cluster>.credentials.postgresql.acid.zalan.do",
    )
}

/// Bytes from what the source has inserted to what the target has replayed. `source` must have been
/// read before `replay`, so that a busy source never makes the lag look smaller than it was.
pub fn lag(source: Lsn, replay: &Replay, lag_bytes_max: u64) -> Finding {
    let wanted = format!("at most {lag_bytes_max} bytes");
    let hint = "the target needs time, a faster network or disk, or less load on the source; \
        LAG_BYTES_MAX is the limit";
    let Some(replayed) = replay.replay else {
        return Finding::ok(LAG, wanted, "nothing replayed yet").but(Verdict::NotYet, hint);
    };
    let bytes = source.bytes_since(replayed);
    let finding = Finding::ok(
        LAG,
        wanted,
        format!(
            "{bytes} bytes from {source} inserted at the source to {replayed} replayed at the \
             target"
        ),
    );
    if bytes <= lag_bytes_max {
        finding
    } else {
        finding.but(Verdict::NotYet, hint)
    }
}

/// The target's five settings are the source's: smaller ones stop the replay, larger ones the way
/// back.
pub fn hot_standby(source: &HotStandby, target: &HotStandby) -> Finding {
    let pairs = source.named().into_iter().zip(target.named());
    let differing: Vec<_> = pairs
        .filter(|((_, source), (_, target))| source != target)
        .collect();
    let wanted = "the source's max_connections, max_worker_processes, max_wal_senders, \
        max_prepared_transactions and max_locks_per_transaction";
    if differing.is_empty() {
        return Finding::ok("hot-standby settings", wanted, "equal on both sides");
    }
    let spelled: Vec<String> = differing
        .iter()
        .map(|((name, source), (_, target))| format!("{name} {target} instead of {source}"))
        .collect();
    let finding = Finding::ok("hot-standby settings", wanted, spelled.join(", "));
    if differing
        .iter()
        .any(|((_, source), (_, target))| target < source)
    {
        return finding.but(
            Verdict::Blocker,
            "raise them in the Cluster's spec.postgresql.parameters to the source's; the target \
             restarts once",
        );
    }
    finding.but(
        Verdict::Warning,
        "the cut works, but going back would restart every member of the source; set them equal in \
         the Cluster's spec.postgresql.parameters",
    )
}

/// Nothing waits for its second phase: a prepared transaction would cross the cut without anybody
/// who remembers it.
pub fn no_prepared_transactions(prepared: &[String]) -> Finding {
    if prepared.is_empty() {
        return Finding::ok("prepared transactions", "none", "none");
    }
    Finding::ok("prepared transactions", "none", super::listed(prepared)).but(
        Verdict::NotYet,
        "let their transaction manager finish them, or commit prepared / rollback prepared on the \
         source",
    )
}

/// CloudNativePG copies one data directory: what lies elsewhere is not on the target.
pub fn no_tablespaces(names: &[String]) -> Finding {
    if names.is_empty() {
        return Finding::ok("tablespaces", "none beside the default ones", "none");
    }
    Finding::ok(
        "tablespaces",
        "none beside the default ones",
        super::listed(names),
    )
    .but(
        Verdict::Blocker,
        "move their objects to pg_default and drop them on the source, then copy the target anew \
         if it has stopped",
    )
}

/// Nobody is copying the source now: the fence would break the copy.
pub fn no_base_backup(running: &[String]) -> Finding {
    if running.is_empty() {
        return Finding::ok("base backups", "none running", "none running");
    }
    Finding::ok("base backups", "none running", super::listed(running))
        .but(Verdict::NotYet, "wait until it is done, or end it")
}

/// New transactions may write: a source that is read-only already was blocked by somebody.
pub fn source_writable(read_only_by_default: &str) -> Finding {
    let finding = Finding::ok(
        "default_transaction_read_only of the source",
        "off",
        read_only_by_default,
    );
    if read_only_by_default == "off" {
        return finding;
    }
    finding.but(
        Verdict::Blocker,
        "a cut that was stopped, or somebody else, has blocked writes: run cutover again or lift \
         it in Patroni's configuration",
    )
}

/// Whether CNPG's restart after the promotion lies within the downtime: a target that follows runs
/// with archive_mode `always`, unless adopt-pgdata has given it the later value.
pub fn restart_after_promotion(archive_mode: &str) -> Finding {
    let found = match archive_mode {
        "always" => "archive_mode changes with the promotion: CNPG restarts the target once, 1 to \
            2 s of the downtime"
            .to_owned(),
        mode => format!("none: archive_mode is {mode} before and after it"),
    };
    Finding::ok("restart after the promotion", "known before the cut", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{SystemIdentifier, Timeline};

    fn identity(system: u64, timeline: u32, version: u32) -> Identity {
        Identity {
            system_identifier: SystemIdentifier(system),
            timeline: Timeline(timeline),
            version,
        }
    }

    fn replay(position: Option<&str>) -> Replay {
        Replay {
            receive: None,
            replay: position.map(|p| p.parse().unwrap()),
            streaming: true,
            paused: false,
        }
    }

    const SOURCE: HotStandby = HotStandby {
        max_connections: 136,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
    };

    #[test]
    fn another_servers_copy_is_a_blocker() {
        let (source, copy, other) = (
            identity(7, 3, 170_010),
            identity(7, 3, 170_011),
            identity(8, 3, 170_010),
        );
        assert_eq!(system_identifier(&source, &copy).verdict, Verdict::Ok);
        assert_eq!(system_identifier(&source, &other).verdict, Verdict::Blocker);
    }

    #[test]
    fn a_lower_timeline_may_catch_up_and_a_higher_one_never_comes_back() {
        let at = |timeline| identity(7, timeline, 170_010);
        assert_eq!(timeline(&at(3), &at(3)).verdict, Verdict::Ok);
        assert_eq!(timeline(&at(4), &at(3)).verdict, Verdict::NotYet);
        assert_eq!(timeline(&at(3), &at(4)).verdict, Verdict::Blocker);
    }

    #[test]
    fn only_seventeen_on_both_sides_passes() {
        let version = |version| identity(7, 1, version);
        assert_eq!(
            major_version(&version(170_010), &version(170_011)).verdict,
            Verdict::Ok
        );
        let finding = major_version(&version(160_009), &version(170_011));
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (Verdict::Blocker, "16.9 at the source, 17.11 at the target")
        );
        assert_eq!(
            major_version(&version(180_001), &version(180_001)).verdict,
            Verdict::Blocker
        );
    }

    #[test]
    fn who_must_be_a_standby_and_who_must_not() {
        let server = |in_recovery| ServerState {
            identity: identity(7, 2, 170_010),
            in_recovery,
        };
        assert_eq!(source_is_primary(&server(false)).verdict, Verdict::Ok);
        assert_eq!(source_is_primary(&server(true)).verdict, Verdict::NotYet);
        assert_eq!(target_in_recovery(&server(true)).verdict, Verdict::Ok);
        assert_eq!(target_in_recovery(&server(false)).verdict, Verdict::Blocker);
    }

    #[test]
    fn a_dead_receiver_may_come_back_and_a_paused_replay_does_not_by_itself() {
        assert_eq!(streaming(&replay(None)).verdict, Verdict::Ok);
        assert_eq!(
            streaming(&Replay {
                streaming: false,
                ..replay(None)
            })
            .verdict,
            Verdict::NotYet
        );
        assert_eq!(replay_not_paused(&replay(None)).verdict, Verdict::Ok);
        assert_eq!(
            replay_not_paused(&Replay {
                paused: true,
                ..replay(None)
            })
            .verdict,
            Verdict::Blocker
        );
    }

    #[test]
    fn a_delayed_replay_and_a_weak_login_stand_against_a_cut() {
        assert_eq!(no_apply_delay("0").verdict, Verdict::Ok);
        assert_eq!(no_apply_delay("1h").verdict, Verdict::Blocker);
        let of = |source, target| superuser(&SuperuserLogins { source, target });
        assert_eq!(of(true, true).verdict, Verdict::Ok);
        assert_eq!(
            (of(true, false).verdict, of(true, false).found.as_str()),
            (Verdict::Misconfigured, "TARGET_USER is no superuser")
        );
    }

    #[test]
    fn lag_counts_from_the_insert_position_to_the_replayed_one() {
        let source: Lsn = "0/5000100".parse().unwrap();
        assert_eq!(
            lag(source, &replay(Some("0/5000000")), 256).verdict,
            Verdict::Ok
        );
        assert_eq!(
            lag(source, &replay(Some("0/5000000")), 255).verdict,
            Verdict::NotYet
        );
        // Replay read later may be ahead of what the source had then.
        assert_eq!(
            lag(source, &replay(Some("0/5000200")), 0).verdict,
            Verdict::Ok
        );
        assert_eq!(
            lag(source, &replay(None), u64::MAX).verdict,
            Verdict::NotYet
        );
    }

    #[test]
    fn smaller_hot_standby_settings_block_and_larger_ones_warn() {
        assert_eq!(hot_standby(&SOURCE, &SOURCE).verdict, Verdict::Ok);
        let larger = HotStandby {
            max_worker_processes: 32,
            ..SOURCE
        };
        let finding = hot_standby(&SOURCE, &larger);
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (Verdict::Warning, "max_worker_processes 32 instead of 8")
        );
        assert_eq!(
            hot_standby(
                &SOURCE,
                &HotStandby {
                    max_connections: 100,
                    ..larger
                }
            )
            .verdict,
            Verdict::Blocker
        );
    }

    #[test]
    fn what_is_under_way_on_the_source_is_waited_for() {
        assert_eq!(no_prepared_transactions(&[]).verdict, Verdict::Ok);
        assert_eq!(
            no_prepared_transactions(&["gid-1".into()]).verdict,
            Verdict::NotYet
        );
        assert_eq!(no_base_backup(&[]).verdict, Verdict::Ok);
        assert_eq!(
            no_base_backup(&["of 127.0.0.1".into()]).verdict,
            Verdict::NotYet
        );
        assert_eq!(source_writable("off").verdict, Verdict::Ok);
        assert_eq!(source_writable("on").verdict, Verdict::Blocker);
    }
}
