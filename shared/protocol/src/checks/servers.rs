//! What the two servers must be before a cutover: the target a streaming physical copy of a primary
//! source, close behind it.

#![deny(dead_code)]

use std::cmp::Ordering;

use super::Check;
use crate::{
    decision::Limits,
    finding::{Finding, Verdict, listed},
    postgres_version::{SUPPORTED, hint, supported},
    snapshot::{Snapshot, SourceState, TargetState},
    wal::Identity,
};
use questions::*;

pub(super) const CHECKS: &[Check] = &[
    Check::new("superuser", superuser).asking(&[SOURCE_SUPERUSER, TARGET_SUPERUSER]),
    Check::new("source-primary", source_primary),
    Check::new("target-standby", target_standby),
    Check::new("system-identifier", system_identifier),
    Check::new("major-version", major_version),
    Check::new("timeline", timeline),
    Check::new("hot-standby-settings", hot_standby_settings)
        .asking(&[SOURCE_HOT_STANDBY, TARGET_HOT_STANDBY]),
    Check::new("source-writable", source_writable),
    Check::new("prepared-transactions", prepared_transactions).asking(&[PREPARED_TRANSACTIONS]),
    Check::new("base-backups", base_backups).asking(&[BASE_BACKUPS]),
    Check::new("tablespaces", tablespaces).asking(&[TABLESPACES]),
    Check::new("logical-slots", logical_slots).asking(&[LOGICAL_SLOTS]),
    Check::new("logical-readers", logical_readers)
        .asking(&[LOGICAL_READERS])
        .acceptable(),
    Check::new("unlogged-tables", unlogged_tables).asking(&[UNLOGGED_TABLES]),
    Check::new("archiving", archiving).asking(&[ARCHIVING]),
    Check::new("archive-backlog", archive_backlog)
        .asking(&[ARCHIVE_BACKLOG])
        .acceptable(),
    Check::new("stalled-walsenders", stalled_walsenders).asking(&[STALLED_WALSENDERS]),
    Check::new("cnpg-roles", cnpg_roles).asking(&[MISSING_ROLES]),
    Check::new("wal-receiver", wal_receiver),
    Check::new("walsender", walsender).asking(&[WALSENDERS]),
    Check::new("replay-paused", replay_paused),
    Check::new("apply-delay", apply_delay).asking(&[APPLY_DELAY]),
    Check::new(REPLAY_LAG, replay_lag),
    Check::new("restart-after-promotion", restart_after_promotion),
];

/// The questions of these checks; `platform::collector` holds their SQL.
pub mod questions {
    use crate::snapshot::prechecks::Question;

    /// Whether the role of SOURCE_USER is a superuser: `true` or `false`.
    pub const SOURCE_SUPERUSER: Question = Question::source("superuser");
    /// Whether the role of TARGET_USER is a superuser: `true` or `false`.
    pub const TARGET_SUPERUSER: Question = Question::target("superuser");
    /// The source's settings that a standby needs as large, as `name value`.
    pub const SOURCE_HOT_STANDBY: Question = Question::source("hot-standby settings");
    /// The same of the target.
    pub const TARGET_HOT_STANDBY: Question = Question::target("hot-standby settings");
    /// Prepared transactions of the source, by name.
    pub const PREPARED_TRANSACTIONS: Question = Question::source("prepared transactions");
    /// Base backups that the source is sending.
    pub const BASE_BACKUPS: Question = Question::source("base backups");
    /// Tablespaces of the source beside the default ones.
    pub const TABLESPACES: Question = Question::source("tablespaces");
    /// Logical replication slots of the source, by name.
    pub const LOGICAL_SLOTS: Question = Question::source("logical slots");
    /// Logical replication slots of the source that are being read, by name.
    pub const LOGICAL_READERS: Question = Question::source("logical readers");
    /// Unlogged tables of the source with rows in DATABASE, as `schema.table`.
    pub const UNLOGGED_TABLES: Question = Question::source("unlogged tables");
    /// How many WAL files wait for the source's archiver, and for how many seconds the oldest has
    /// waited, as two rows.
    pub const ARCHIVE_BACKLOG: Question = Question::source("archive backlog");
    /// Standbys of the source that have not answered for long, by application_name.
    pub const STALLED_WALSENDERS: Question = Question::source("stalled walsenders");
    /// The WAL file that the source's archiver fails at; no row when it does not fail.
    pub const ARCHIVING: Question = Question::source("archiver");
    /// Those of [`CNPG_ROLES`](super::CNPG_ROLES) that the target does not have.
    pub const MISSING_ROLES: Question = Question::target("missing roles");
    /// The source's walsenders, as `application_name state`.
    pub const WALSENDERS: Question = Question::source("walsenders");
    /// recovery_min_apply_delay of the target.
    pub const APPLY_DELAY: Question = Question::target("recovery_min_apply_delay");
}

/// The id of the check whose number changes all the time.
pub const REPLAY_LAG: &str = "replay-lag";

/// Roles that CloudNativePG looks for on a primary and that must have come with the copy.
pub const CNPG_ROLES: [&str; 3] = [
    "streaming_replica",
    "cnpg_pooler_pgbouncer",
    "cnpg_metrics_exporter",
];

const CLONE_AGAIN: &str =
    "this target can never follow this source: delete the Cluster and its volume and clone again";

/// A target that was promoted once may be the database that the application writes to.
const PROMOTED_BEFORE: &str = "it may hold writes that the source does not have; the ConfigMap \
    cutover-<cluster>-receipt says whether a cutover has promoted it: then it is the primary and \
    stays one, with spec.replica.enabled: false; only without a receipt, and where no client \
    writes to it, delete the Cluster and its volume and clone again";

/// Both servers, where both answered.
fn servers(snapshot: &Snapshot) -> Option<(&SourceState, &TargetState)> {
    snapshot.source.answer().zip(snapshot.target.answer())
}

/// The target while it is a standby. Of a promoted one only that is said: what it no longer
/// replays would hide the one thing that matters.
fn standby(snapshot: &Snapshot) -> Option<&TargetState> {
    let target = snapshot.target.answer();
    target.filter(|target| target.in_recovery)
}

/// The logins may do what a cutover needs: a checkpoint, ending sessions, stopping the server.
fn superuser(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let logins = [
        ("SOURCE_USER", snapshot.answer(SOURCE_SUPERUSER)),
        ("TARGET_USER", snapshot.answer(TARGET_SUPERUSER)),
    ];
    let asked: Vec<_> = logins
        .into_iter()
        .filter_map(|(setting, answer)| Some((setting, answer?.first()? == "true")))
        .collect();
    let lacking: Vec<&'static str> = asked
        .iter()
        .filter(|(_, superuser)| !superuser)
        .map(|(setting, _)| *setting)
        .collect();
    let wanted = "superuser on both sides";
    match lacking.first() {
        _ if asked.is_empty() => Vec::new(),
        None => vec![Finding::ok("superuser", wanted, wanted)],
        Some(setting) => vec![
            Finding::ok(
                "superuser",
                wanted,
                format!("{} is no superuser", lacking.join(" and ")),
            )
            .wrong_setting(
                setting,
                "name postgres there, with the password of the Secret \
                 postgres.<cluster>.credentials.postgresql.acid.zalan.do",
            ),
        ],
    }
}

/// The source accepts writes: SOURCE_HOST leads to the leader, and no cutover has been done.
fn source_primary(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |source: &SourceState| {
        if source.primary {
            return Finding::ok("source-primary", "a primary", "a primary");
        }
        Finding::ok("source-primary", "a primary", "a standby").with(
            Verdict::NotYet,
            "SOURCE_HOST must lead to the leader; during a failover wait for its end",
        )
    };
    snapshot.source.answer().map(judge).into_iter().collect()
}

/// The target is still a standby.
fn target_standby(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |target: &TargetState| {
        if target.in_recovery {
            return Finding::ok("target-standby", "a standby", "a standby");
        }
        let found = format!("a primary on timeline {}", target.identity.timeline);
        Finding::ok("target-standby", "a standby", found).with(
            Verdict::Blocker,
            format!("the target has been promoted already: {PROMOTED_BEFORE}"),
        )
    };
    snapshot.target.answer().map(judge).into_iter().collect()
}

/// The target is a physical copy of this source and of no other.
fn system_identifier(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |(source, target): (&SourceState, &TargetState)| {
        let (source, target) = (
            source.identity.system_identifier,
            target.identity.system_identifier,
        );
        let finding =
            |found| Finding::ok("system-identifier", format!("the source's {source}"), found);
        if source == target {
            return finding(format!("{source} on both sides"));
        }
        finding(format!("{target} at the target")).with(
            Verdict::Blocker,
            format!(
                "the target was made from another server; check SOURCE_* and TARGET_*, or \
                 {CLONE_AGAIN}"
            ),
        )
    };
    servers(snapshot).map(judge).into_iter().collect()
}

/// Both are of one major version, and the migration supports it.
fn major_version(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let version =
        |identity: &Identity| format!("{}.{}", identity.major(), identity.version % 10_000);
    let judge = |(source, target): (&SourceState, &TargetState)| {
        let (source, target) = (&source.identity, &target.identity);
        let finding = Finding::ok(
            "major-version",
            format!("one of PostgreSQL {} on both sides", supported()),
            format!(
                "{} at the source, {} at the target",
                version(source),
                version(target)
            ),
        );
        if source.major() != target.major() {
            return finding.with(
                Verdict::Blocker,
                "physical replication works within one major version only; correct TARGET_IMAGE",
            );
        }
        if SUPPORTED.contains(&source.major()) {
            finding
        } else {
            finding.with(Verdict::Blocker, hint(source.major()))
        }
    };
    servers(snapshot).map(judge).into_iter().collect()
}

/// The target is on the source's timeline: neither behind a failover of the source, nor promoted on
/// its own.
fn timeline(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |(source, target): (&SourceState, &TargetState)| {
        let (source, target) = (source.identity.timeline, target.identity.timeline);
        let finding = |found| Finding::ok("timeline", format!("the source's {source}"), found);
        let at_target = format!("{target} at the target");
        match target.cmp(&source) {
            Ordering::Equal => finding(format!("{source} on both sides")),
            // A failover of the source begins a timeline; a target that was not ahead of the fork
            // follows within seconds.
            Ordering::Less => finding(at_target).with(
                Verdict::NotYet,
                "the source has failed over; if the target's log says that the new timeline forked \
                 off before its position, clone again",
            ),
            Ordering::Greater => finding(at_target).with(
                Verdict::Blocker,
                format!("the target has been promoted before: {PROMOTED_BEFORE}"),
            ),
        }
    };
    servers(snapshot).map(judge).into_iter().collect()
}

/// The target's five settings are the source's: smaller ones stop the replay, larger ones stop the
/// rollback.
fn hot_standby_settings(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let (Some(source), Some(target)) = (
        snapshot.answer(SOURCE_HOT_STANDBY),
        snapshot.answer(TARGET_HOT_STANDBY),
    ) else {
        return Vec::new();
    };
    let values = |rows: &[String]| -> Vec<(String, u64)> {
        let pair = |row: &String| {
            let (name, value) = row.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        rows.iter().filter_map(pair).collect()
    };
    let target = values(target);
    let differing: Vec<(String, u64, u64)> = values(source)
        .into_iter()
        .filter_map(|(name, source)| {
            let same = target.iter().find(|(other, _)| *other == name);
            let target = same.map_or(0, |(_, value)| *value);
            (target != source).then_some((name, source, target))
        })
        .collect();
    let wanted = "the source's max_connections, max_worker_processes, max_wal_senders, \
        max_prepared_transactions and max_locks_per_transaction";
    let finding = |found: String| Finding::ok("hot-standby-settings", wanted, found);
    if differing.is_empty() {
        return vec![finding("equal on both sides".into())];
    }
    let described: Vec<String> = differing
        .iter()
        .map(|(name, source, target)| format!("{name} {target} instead of {source}"))
        .collect();
    let finding = finding(described.join(", "));
    let smaller = differing.iter().any(|(_, source, target)| target < source);
    vec![if smaller {
        finding.with(
            Verdict::Blocker,
            "raise them in the Cluster's spec.postgresql.parameters to the source's; the target \
             restarts once",
        )
    } else {
        finding.with(
            Verdict::Decide,
            "the cutover works, but a rollback would restart every member of the source; set them \
             equal in the Cluster's spec.postgresql.parameters",
        )
    }]
}

/// New transactions may write: a source that is read-only already was blocked by another actor.
fn source_writable(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |source: &SourceState| {
        let finding = |found| {
            let wanted = "default_transaction_read_only off at the source";
            Finding::ok("source-writable", wanted, found)
        };
        if !source.read_only {
            return finding("off");
        }
        finding("on").with(
            Verdict::Blocker,
            "a cutover that was stopped, or another actor, has blocked writes: run cutover again \
             or lift it in Patroni's configuration",
        )
    };
    snapshot.source.answer().map(judge).into_iter().collect()
}

/// No transaction waits for its second phase: after the cutover no transaction manager would know
/// of it.
fn prepared_transactions(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |prepared: &[String]| {
        none(
            "prepared-transactions",
            "none",
            prepared,
            Verdict::NotYet,
            "let their transaction manager finish them, or commit prepared / rollback prepared on \
             the source",
        )
    };
    let prepared = snapshot.answer(PREPARED_TRANSACTIONS);
    prepared.map(judge).into_iter().collect()
}

/// No base backup of the source runs: the fence would break it.
fn base_backups(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |running: &[String]| {
        none(
            "base-backups",
            "none running",
            running,
            Verdict::NotYet,
            "wait until it is done, or end it",
        )
    };
    snapshot
        .answer(BASE_BACKUPS)
        .map(judge)
        .into_iter()
        .collect()
}

/// CloudNativePG copies one data directory: what lies elsewhere is not on the target.
fn tablespaces(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |names: &[String]| {
        none(
            "tablespaces",
            "none beside the default ones",
            names,
            Verdict::Blocker,
            "move their objects to pg_default and drop them on the source, then clone again if \
             the target has stopped",
        )
    };
    snapshot
        .answer(TABLESPACES)
        .map(judge)
        .into_iter()
        .collect()
}

/// No reader depends on a logical slot: a physical copy brings none along, so that its reader has
/// to start from a new slot on the target (PostgreSQL documentation, *Logical Decoding Concepts*).
fn logical_slots(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    each(
        "logical-slots",
        "none at the source",
        snapshot.answer(LOGICAL_SLOTS),
        "it does not move to the target",
        Verdict::Decide,
        |_| {
            "create it on the target after the cutover, and tell its reader how to resynchronize; \
             drop it here when no reader uses it"
                .to_owned()
        },
    )
}

/// No logical slot is being read: the cutover ends its reader before the source is stopped, because
/// the stop would wait until the reader has confirmed everything, without a limit.
fn logical_readers(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    const ID: &str = "logical-readers";
    each(
        ID,
        "no logical slot in use at the source",
        snapshot.answer(LOGICAL_READERS),
        "a reader is connected",
        Verdict::Blocker,
        |slot| {
            format!(
                "stop the reader before the cutover, or accept that the cutover ends its session, \
                 and that it must resynchronize: ACCEPT={ID}:{slot}"
            )
        },
    )
}

/// No table with rows is unlogged: such a table is empty on a physical copy (PostgreSQL
/// documentation, *CREATE TABLE*, UNLOGGED).
fn unlogged_tables(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    each(
        "unlogged-tables",
        "none with rows at the source",
        snapshot.answer(UNLOGGED_TABLES),
        "its rows do not move to the target",
        Verdict::Decide,
        |_| {
            "alter table … set logged on the source, or accept an empty table on the target"
                .to_owned()
        },
    )
}

/// How many WAL files may wait for the archiver.
const BACKLOG_FILES_MAX: u64 = 10;
/// How long a WAL file may wait, in seconds.
const BACKLOG_SECONDS_MAX: u64 = 60;

/// The source's archiver keeps up: a server that stops waits until it has archived everything.
fn archive_backlog(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |rows: &[String]| {
        let number = |row: usize| rows.get(row).and_then(|text| text.parse().ok());
        let (files, seconds): (u64, u64) =
            (number(0).unwrap_or_default(), number(1).unwrap_or_default());
        let wanted = format!(
            "at most {BACKLOG_FILES_MAX} files waiting, none for more than {BACKLOG_SECONDS_MAX} s"
        );
        let found = match files {
            0 => "none waiting".to_owned(),
            _ => format!("{files} waiting, the oldest for {seconds} s"),
        };
        let finding = Finding::ok("archive-backlog", wanted, found);
        if seconds > BACKLOG_SECONDS_MAX {
            return finding.with(
                Verdict::Blocker,
                "the archiver hangs or is far behind; a rollback after the source was stopped \
                 would wait for it: fix archive_command, or accept it: ACCEPT=archive-backlog",
            );
        }
        if files > BACKLOG_FILES_MAX {
            return finding.with(Verdict::NotYet, "wait until the archiver has caught up");
        }
        finding
    };
    snapshot
        .answer(ARCHIVE_BACKLOG)
        .map(judge)
        .into_iter()
        .collect()
}

/// No standby hangs: a server that stops waits for it until wal_sender_timeout.
fn stalled_walsenders(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |stalled: &[String]| {
        none(
            "stalled-walsenders",
            "none at the source",
            stalled,
            Verdict::NotYet,
            "repair or stop these standbys; wal_sender_timeout ends their sessions otherwise",
        )
    };
    snapshot
        .answer(STALLED_WALSENDERS)
        .map(judge)
        .into_iter()
        .collect()
}

/// The source's own WAL archive works.
fn archiving(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |failing: &[String]| {
        let finding = |found: String| Finding::ok("archiving", "no failing WAL archive", found);
        match failing {
            [] => finding("not failing".into()),
            [file, ..] => finding(format!("the source's archiver fails at {file}")).with(
                Verdict::Decide,
                "the source keeps all WAL since then, and its own backups cannot be restored to \
                 the present: fix the archive, or accept it",
            ),
        }
    };
    snapshot.answer(ARCHIVING).map(judge).into_iter().collect()
}

/// The roles that CloudNativePG looks for have come with the copy.
fn cnpg_roles(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |missing: &[String]| {
        let wanted = "created on the source beforehand";
        if missing.is_empty() {
            return Finding::ok("cnpg-roles", wanted, "present");
        }
        let found = format!("missing: {}", listed(missing));
        Finding::ok("cnpg-roles", wanted, found).with(
            Verdict::Decide,
            "run prepare-zalando again: without them the poolers refuse their first clients after \
             the cutover, and replicas cannot join before it",
        )
    };
    snapshot
        .answer(MISSING_ROLES)
        .map(judge)
        .into_iter()
        .collect()
}

/// WAL arrives as it is written.
fn wal_receiver(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |target: &TargetState| {
        if target.replay.streaming {
            return Finding::ok("wal-receiver", "streaming", "streaming");
        }
        Finding::ok("wal-receiver", "streaming", "not streaming").with(
            Verdict::NotYet,
            "read the log of the target's pod: a refused login is fixed by prepare-zalando or \
             extract-certs, a \"requested WAL segment … has already been removed\" only by cloning \
             again with a larger WAL_KEEP_MB",
        )
    };
    standby(snapshot).map(judge).into_iter().collect()
}

/// The target streams from the source's leader and not from one of its standbys: the fence is
/// proved by what the leader sent last.
fn walsender(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let (Some(walsenders), Some(_)) = (snapshot.answer(WALSENDERS), standby(snapshot)) else {
        return Vec::new();
    };
    let cluster = &snapshot.cluster.name;
    let states = walsenders.iter().filter_map(|row| {
        let (name, state) = row.rsplit_once(' ')?;
        (name == cluster).then_some(state)
    });
    // A walsender that has just ended may still be listed beside the one that streams.
    let state = states.max_by_key(|state| *state == "streaming");
    let finding = Finding::ok(
        "walsender",
        format!("one of the source that serves {cluster}, streaming"),
        state.unwrap_or("none"),
    );
    if state == Some("streaming") {
        return vec![finding];
    }
    vec![finding.with(
        Verdict::NotYet,
        "the target must follow the server that SOURCE_HOST leads to, the leader: compare \
         spec.externalClusters of the Cluster with SOURCE_HOST",
    )]
}

/// Replay has not been paused, by hand or because a hot-standby setting of the source was raised.
fn replay_paused(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |target: &TargetState| {
        if !target.replay.paused {
            return Finding::ok("replay-paused", "replay running", "running");
        }
        Finding::ok("replay-paused", "replay running", "paused").with(
            Verdict::Blocker,
            "if it was paused by hand: select pg_wal_replay_resume() on the target; if the \
             source's max_connections or a similar setting was raised, raise the Cluster's too",
        )
    };
    standby(snapshot).map(judge).into_iter().collect()
}

/// The target replays at once what it receives.
fn apply_delay(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let (Some([delay, ..]), Some(_)) = (snapshot.answer(APPLY_DELAY), standby(snapshot)) else {
        return Vec::new();
    };
    let wanted = "recovery_min_apply_delay 0 at the target";
    let finding = Finding::ok("apply-delay", wanted, delay.as_str());
    if delay == "0" {
        return vec![finding];
    }
    vec![finding.with(
        Verdict::Blocker,
        "remove spec.replica.minApplyDelay from the Cluster: the cutover would wait for it while \
         the application is down",
    )]
}

/// Bytes from what the source has inserted to what the target has replayed.
fn replay_lag(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let insert = snapshot.source.answer().and_then(|source| source.insert);
    let (Some(insert), Some(target)) = (insert, standby(snapshot)) else {
        return Vec::new();
    };
    let wanted = format!("at most {} bytes", limits.lag_bytes_max);
    let hint = "the target needs time, a faster network or disk, or less load on the source; \
        LAG_BYTES_MAX is the limit";
    let Some(replayed) = target.replay.replay else {
        let finding = Finding::ok(REPLAY_LAG, wanted, "nothing replayed yet");
        return vec![finding.with(Verdict::NotYet, hint)];
    };
    let bytes = insert.bytes_since(replayed);
    let found = format!(
        "{bytes} bytes from {insert} inserted at the source to {replayed} replayed at the target"
    );
    let finding = Finding::ok(REPLAY_LAG, wanted, found);
    vec![if bytes <= limits.lag_bytes_max {
        finding
    } else {
        finding.with(Verdict::NotYet, hint)
    }]
}

/// Whether CloudNativePG's restart after the promotion lies within the downtime: a target that
/// follows runs with archive_mode `always`, unless adopt-pgdata has given it the later value.
fn restart_after_promotion(snapshot: &Snapshot, _: &Limits) -> Vec<Finding> {
    let judge = |target: &TargetState| {
        let finding = |found| Finding::ok("restart-after-promotion", "known beforehand", found);
        if target.running.pending_restart_after_promotion() {
            return finding(
                "archive_mode changes with the promotion: CloudNativePG restarts the target once, \
                 1 to 2 s of the downtime"
                    .to_owned(),
            )
            .handled();
        }
        let mode = &target.running.archive_mode;
        finding(format!("none: archive_mode is {mode} before and after it"))
    };
    standby(snapshot).map(judge).into_iter().collect()
}

/// A list that must be empty.
fn none(id: &'static str, wanted: &str, found: &[String], verdict: Verdict, hint: &str) -> Finding {
    if found.is_empty() {
        return Finding::ok(id, wanted, wanted);
    }
    Finding::ok(id, wanted, listed(found)).with(verdict, hint)
}

/// A finding about each of the objects that an answer names, so that each can be accepted by
/// itself; none where it was not asked.
fn each(
    id: &'static str,
    wanted: &str,
    answer: Option<&[String]>,
    found: &str,
    verdict: Verdict,
    hint: impl Fn(&str) -> String,
) -> Vec<Finding> {
    let about = |object: &String| {
        Finding::ok(id, wanted, found)
            .about(object.as_str())
            .with(verdict, hint(object))
    };
    match answer {
        None => Vec::new(),
        Some([]) => vec![Finding::ok(id, wanted, "none")],
        Some(objects) => objects.iter().map(about).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::prechecks::Question;
    use crate::{
        simulation::{limits, look},
        snapshot::{Reachability, prechecks::Prechecks},
        wal::{SystemIdentifier, Timeline},
    };

    type Judge = fn(&Snapshot, &Limits) -> Vec<Finding>;

    /// A ready pair of servers, changed.
    fn observed(change: impl FnOnce(&mut SourceState, &mut TargetState)) -> Snapshot {
        let mut snapshot = look();
        let (Reachability::Up(source), Reachability::Up(target)) =
            (&mut snapshot.source, &mut snapshot.target)
        else {
            panic!("both answer in that world")
        };
        change(source, target);
        snapshot
    }

    fn verdict(judge: Judge, snapshot: &Snapshot) -> Option<Verdict> {
        judge(snapshot, &limits()).first().map(|one| one.verdict)
    }

    /// The finding about these answers.
    fn answered(judge: Judge, answers: &[(Question, &[&str])]) -> Finding {
        let mut snapshot = look();
        snapshot.cluster.name = "database".into();
        let rows = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect();
        snapshot.prechecks = Some(Prechecks {
            answers: answers
                .iter()
                .map(|(question, texts)| (*question, rows(texts)))
                .collect(),
            ..Prechecks::default()
        });
        judge(&snapshot, &limits()).remove(0)
    }

    #[test]
    fn another_servers_copy_is_a_blocker() {
        let same = observed(|_, target| target.identity.version = 170_011);
        assert_eq!(verdict(system_identifier, &same), Some(Verdict::Ok));
        let other = observed(|_, target| target.identity.system_identifier = SystemIdentifier(8));
        assert_eq!(verdict(system_identifier, &other), Some(Verdict::Blocker));
    }

    #[test]
    fn a_lower_timeline_may_catch_up_and_a_higher_one_never_comes_back() {
        let at = |one, other| {
            observed(|source, target| {
                source.identity.timeline = Timeline(one);
                target.identity.timeline = Timeline(other);
            })
        };
        assert_eq!(verdict(timeline, &at(3, 3)), Some(Verdict::Ok));
        assert_eq!(verdict(timeline, &at(4, 3)), Some(Verdict::NotYet));
        assert_eq!(verdict(timeline, &at(3, 4)), Some(Verdict::Blocker));
    }

    #[test]
    fn one_supported_major_version_on_both_sides_passes() {
        let versions = |one, other| {
            observed(|source, target| {
                (source.identity.version, target.identity.version) = (one, other)
            })
        };
        let judged = |one, other| major_version(&versions(one, other), &limits()).remove(0);
        for passing in [150_019, 160_013, 170_010, 180_001] {
            assert_eq!(judged(passing, passing + 1).verdict, Verdict::Ok);
        }
        let finding = judged(160_009, 170_011);
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (Verdict::Blocker, "16.9 at the source, 17.11 at the target")
        );
        for unsupported in [140_022, 190_000] {
            assert_eq!(judged(unsupported, unsupported).verdict, Verdict::Blocker);
        }
    }

    #[test]
    fn the_source_is_a_primary_and_the_target_a_standby() {
        let ready = look();
        assert_eq!(verdict(source_primary, &ready), Some(Verdict::Ok));
        assert_eq!(verdict(target_standby, &ready), Some(Verdict::Ok));
        let swapped = observed(|source, target| {
            (source.primary, target.in_recovery) = (false, false);
        });
        assert_eq!(verdict(source_primary, &swapped), Some(Verdict::NotYet));
        assert_eq!(verdict(target_standby, &swapped), Some(Verdict::Blocker));
        // Nothing else is said of a promoted target.
        assert_eq!(verdict(wal_receiver, &swapped), None);
    }

    #[test]
    fn a_dead_receiver_may_come_back_and_a_paused_replay_does_not_by_itself() {
        assert_eq!(verdict(wal_receiver, &look()), Some(Verdict::Ok));
        let dead = observed(|_, target| target.replay.streaming = false);
        assert_eq!(verdict(wal_receiver, &dead), Some(Verdict::NotYet));
        assert_eq!(verdict(replay_paused, &look()), Some(Verdict::Ok));
        let paused = observed(|_, target| target.replay.paused = true);
        assert_eq!(verdict(replay_paused, &paused), Some(Verdict::Blocker));
    }

    #[test]
    fn a_delayed_replay_and_a_login_without_rights_block() {
        let delay = |delay| answered(apply_delay, &[(APPLY_DELAY, &[delay])]).verdict;
        assert_eq!((delay("0"), delay("1h")), (Verdict::Ok, Verdict::Blocker));
        let logins = |source, target| {
            answered(
                superuser,
                &[(SOURCE_SUPERUSER, &[source]), (TARGET_SUPERUSER, &[target])],
            )
        };
        assert_eq!(logins("true", "true").verdict, Verdict::Ok);
        let finding = logins("true", "false");
        assert_eq!(
            (finding.verdict, finding.setting, finding.found.as_str()),
            (
                Verdict::Blocker,
                Some("TARGET_USER"),
                "TARGET_USER is no superuser"
            )
        );
    }

    #[test]
    fn a_target_that_follows_a_standby_is_waited_for() {
        let judged = |rows: &[&str]| answered(walsender, &[(WALSENDERS, rows)]);
        assert_eq!(judged(&["database streaming"]).verdict, Verdict::Ok);
        let two = ["database catchup", "database streaming"];
        assert_eq!(judged(&two).verdict, Verdict::Ok);
        assert_eq!(judged(&["database catchup"]).verdict, Verdict::NotYet);
        assert_eq!(
            judged(&["pg-1 streaming"]).to_string(),
            "walsender: wanted one of the source that serves database, streaming, found none"
        );
    }

    #[test]
    fn lag_counts_from_the_insert_position_to_the_replayed_one() {
        let judged = |replayed: Option<&str>, lag_bytes_max| {
            let snapshot = observed(|source, target| {
                source.insert = Some("0/5000100".parse().unwrap());
                target.replay.replay = replayed.map(|lsn| lsn.parse().unwrap());
            });
            let limits = Limits {
                lag_bytes_max,
                ..limits()
            };
            replay_lag(&snapshot, &limits).remove(0).verdict
        };
        assert_eq!(judged(Some("0/5000000"), 256), Verdict::Ok);
        assert_eq!(judged(Some("0/5000000"), 255), Verdict::NotYet);
        // Replay that was read later may be ahead of what the source had then.
        assert_eq!(judged(Some("0/5000200"), 0), Verdict::Ok);
        assert_eq!(judged(None, u64::MAX), Verdict::NotYet);
    }

    #[test]
    fn smaller_hot_standby_settings_block_and_larger_ones_are_for_a_person_to_decide() {
        let judged = |target: &[&str]| {
            let source = ["max_connections 136", "max_worker_processes 8"];
            answered(
                hot_standby_settings,
                &[(SOURCE_HOT_STANDBY, &source), (TARGET_HOT_STANDBY, target)],
            )
        };
        let equal = judged(&["max_connections 136", "max_worker_processes 8"]);
        assert_eq!(equal.verdict, Verdict::Ok);
        let larger = judged(&["max_connections 136", "max_worker_processes 32"]);
        assert_eq!(
            (larger.verdict, larger.found.as_str()),
            (Verdict::Decide, "max_worker_processes 32 instead of 8")
        );
        let smaller = judged(&["max_connections 100", "max_worker_processes 32"]);
        assert_eq!(smaller.verdict, Verdict::Blocker);
    }

    #[test]
    fn what_runs_on_the_source_is_waited_for_and_tablespaces_block() {
        for (judge, question, bad) in [
            (
                prepared_transactions as Judge,
                PREPARED_TRANSACTIONS,
                Verdict::NotYet,
            ),
            (base_backups, BASE_BACKUPS, Verdict::NotYet),
            (tablespaces, TABLESPACES, Verdict::Blocker),
            (logical_slots, LOGICAL_SLOTS, Verdict::Decide),
            (logical_readers, LOGICAL_READERS, Verdict::Blocker),
            (archiving, ARCHIVING, Verdict::Decide),
            (unlogged_tables, UNLOGGED_TABLES, Verdict::Decide),
            (stalled_walsenders, STALLED_WALSENDERS, Verdict::NotYet),
            (cnpg_roles, MISSING_ROLES, Verdict::Decide),
        ] {
            assert_eq!(answered(judge, &[(question, &[])]).verdict, Verdict::Ok);
            assert_eq!(answered(judge, &[(question, &["one"])]).verdict, bad);
            // Where it was not asked, nothing is found.
            assert_eq!(verdict(judge, &look()), None);
        }
        for (files, seconds, verdict) in [
            ("1", "3", Verdict::Ok),
            ("11", "3", Verdict::NotYet),
            ("1", "61", Verdict::Blocker),
        ] {
            let backlog = answered(archive_backlog, &[(ARCHIVE_BACKLOG, &[files, seconds])]);
            assert_eq!(backlog.verdict, verdict);
        }
        let blocked = observed(|source, _| source.read_only = true);
        assert_eq!(verdict(source_writable, &look()), Some(Verdict::Ok));
        assert_eq!(verdict(source_writable, &blocked), Some(Verdict::Blocker));
    }
}
