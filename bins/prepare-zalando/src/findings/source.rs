//! Findings about how the source runs: its identity, settings that the copy inherits, retained WAL,
//! libraries and current activity.

use platform::kubernetes::zalando::Postgresql;
use protocol::{
    checks::prepare::Id,
    finding::{Finding, listed},
};

use super::{blocker, decide, handled};
use crate::{
    facts::Facts,
    image::{Image, SPILO_LIBRARIES},
    parameters::{FIXED, HOT_STANDBY},
    settings::Settings,
};

/// A target that is disconnected for less than this must still find its WAL at the source.
const OUTAGE_SECONDS: u64 = 2 * 3600;
/// Smallest recommendation for wal_keep_size.
const KEEP_MB_MIN: u64 = 1024;
const RESOURCE: &str = "the postgresql resource";

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        identity(facts, settings),
        auto_conf(facts),
        pending_restarts(facts),
        wal(facts, settings),
        spread_checkpoint(facts),
        patroni(facts),
        session_libraries(facts, image),
        preloaded_libraries(facts, image),
        activity(facts),
        passwords(facts),
        checksums(facts),
    ]
    .concat()
}

fn identity(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let mut found = vec![];
    let cluster = facts.setting("cluster_name");
    if cluster != settings.source_cluster.as_str() {
        found.push(blocker(
            Id::SourceHostOtherCluster,
            facts.host.as_str(),
            format!(
                "SOURCE_HOST {} leads to a server of cluster {cluster:?}, not of {}",
                facts.host, settings.source_cluster
            ),
            "correct SOURCE_HOST in the ConfigMap replica-migration",
        ));
    }
    let postgres = facts.role("postgres");
    if !postgres.is_some_and(|role| role.superuser && role.login) {
        found.push(blocker(
            Id::SuperuserMissing,
            "postgres",
            "the source has no superuser postgres that may log in, and CloudNativePG uses no other",
            "create role postgres superuser login",
        ));
    }
    if facts.user != "postgres" {
        found.push(blocker(
            Id::SourceUser,
            facts.user.as_str(),
            format!(
                "SOURCE_USER is {}, but CloudNativePG's superuser is always postgres",
                facts.user
            ),
            "set SOURCE_USER=postgres in the ConfigMap replica-migration, and mount its Secret",
        ));
    }
    if facts.setting("wal_level") == "minimal" {
        found.push(blocker(
            Id::WalLevel,
            "",
            "wal_level is minimal, which allows no replication",
            format!("set wal_level to replica in {RESOURCE}"),
        ));
    }
    found
}

/// postgresql.auto.conf is copied, and the server reads it last, so it overrides everything that
/// CloudNativePG writes.
fn auto_conf(facts: &Facts) -> Vec<Finding> {
    let names = facts.auto_conf.keys().map(String::as_str);
    names
        .map(|name| {
            if breaks_the_target(name) {
                blocker(
                    Id::AlterSystem,
                    name,
                    format!(
                        "postgresql.auto.conf sets {name}: at the target it would override what \
                         CloudNativePG sets"
                    ),
                    format!("alter system reset {name}; then reload"),
                )
            } else {
                decide(
                    Id::AlterSystem,
                    name,
                    format!(
                        "postgresql.auto.conf sets {name}: at the target it overrides the \
                         Cluster's parameters"
                    ),
                    format!("alter system reset {name}, and set it in the manifest"),
                )
            }
        })
        .collect()
}

fn breaks_the_target(name: &str) -> bool {
    FIXED.contains(&name)
        || HOT_STANDBY.contains(&name)
        || matches!(
            name,
            "default_transaction_read_only"
                | "wal_level"
                | "session_preload_libraries"
                | "local_preload_libraries"
        )
}

fn pending_restarts(facts: &Facts) -> Vec<Finding> {
    let pending = HOT_STANDBY.into_iter().filter(|name| {
        let setting = facts.settings.get(*name);
        setting.is_some_and(|setting| setting.pending_restart)
    });
    pending
        .map(|name| {
            blocker(
                Id::PendingRestart,
                name,
                format!(
                    "{name} changes at the next restart of the source, and the target would stop \
                     replaying until it has the same value"
                ),
                "let the operator restart the source first, then run this step again",
            )
        })
        .collect()
}

fn wal(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let kept_mb = facts
        .number("wal_keep_size")
        .max(u64::from(settings.wal_keep_mb.unwrap_or(0)));
    let rate = facts.server.wal_bytes_per_second.unwrap_or(0);
    // The WAL written during the copy is replayed before streaming begins, so a large database
    // needs more as well.
    let wanted_mb = ((rate * OUTAGE_SECONDS) >> 20)
        .max((facts.bytes() / 20) >> 20)
        .max(KEEP_MB_MIN);
    let mut found = vec![];
    if kept_mb < wanted_mb {
        let lasts = match (kept_mb << 20).checked_div(rate) {
            Some(seconds) => format!(", about {} min at the average rate", seconds / 60),
            None => String::new(),
        };
        found.push(decide(
            Id::WalKeepSize,
            "",
            format!(
                "wal_keep_size is {kept_mb} MB{lasts}: a target that is disconnected for longer \
                 must be cloned again, because CloudNativePG uses no replication slot here"
            ),
            format!(
                "set WAL_KEEP_MB={} in the ConfigMap replica-migration: it takes no restart",
                wanted_mb.next_power_of_two()
            ),
        ));
    }
    let raise = settings
        .wal_keep_mb
        .is_some_and(|wanted| u64::from(wanted) > facts.number("wal_keep_size"));
    if raise && facts.resource.suspended {
        found.push(blocker(
            Id::OperatorSuspended,
            "wal_keep_size",
            format!(
                "WAL_KEEP_MB raises wal_keep_size in {RESOURCE}, but the operator is suspended for \
                 it"
            ),
            "remove the annotation acid.zalan.do/controller",
        ));
    }
    found
}

fn spread_checkpoint(facts: &Facts) -> Vec<Finding> {
    if facts.server.target_streams || facts.target.is_some() {
        return vec![];
    }
    let completion_target = facts
        .settings
        .get("checkpoint_completion_target")
        .and_then(|setting| setting.raw.parse().ok())
        .unwrap_or(0.9);
    let seconds = facts.number("checkpoint_timeout") as f64 * completion_target;
    vec![handled(
        Id::SpreadCheckpoint,
        "",
        format!(
            "the copy begins with a checkpoint that takes up to {seconds:.0} s; to shorten it, run \
             checkpoint on the source"
        ),
        "the clone waits for it",
    )]
}

/// By the resource alone, before anything is asked.
pub fn follows_another(resource: &Postgresql) -> Option<Finding> {
    resource.spec.standby.as_ref().map(|_| standby_cluster())
}

fn standby_cluster() -> Finding {
    blocker(
        Id::StandbyCluster,
        "",
        "the source is itself a standby cluster",
        "promote it first: its leader must accept writes",
    )
}

fn patroni(facts: &Facts) -> Vec<Finding> {
    let enabled = |key: &str| {
        let value = facts.patroni.get(key);
        value.is_some_and(|value| !value.is_null() && *value != false)
    };
    let mut found = vec![];
    if enabled("standby_cluster") {
        found.push(standby_cluster());
    }
    if enabled("synchronous_mode") {
        found.push(decide(
            Id::SynchronousMode,
            "",
            "synchronous_mode is on: a commit at the source waits for a standby, and at the target \
             for none",
            "after the cutover, when the target has replicas, set spec.postgresql.synchronous",
        ));
    }
    if enabled("pause") {
        found.push(decide(
            Id::PatroniPaused,
            "",
            "Patroni is paused: if the leader fails, no other member is promoted",
            "resume it, unless it was paused on purpose",
        ));
    }
    found
}

fn session_libraries(facts: &Facts, image: &Image) -> Vec<Finding> {
    let mut found = vec![];
    for (scope, list) in &facts.server.session_libraries {
        let missing = missing_libraries(list, image);
        if !missing.is_empty() {
            found.push(blocker(
                Id::SessionLibraries,
                scope,
                format!(
                    "{scope} loads {} into every session, and the target has no such library, so \
                     no login would succeed",
                    listed(&missing)
                ),
                "reset session_preload_libraries and local_preload_libraries there",
            ));
        }
    }
    found
}

fn preloaded_libraries(facts: &Facts, image: &Image) -> Vec<Finding> {
    let missing = missing_libraries(facts.setting("shared_preload_libraries"), image);
    let (spilos, others): (Vec<String>, Vec<String>) = missing
        .into_iter()
        .partition(|name| SPILO_LIBRARIES.contains(&name.as_str()));
    let mut found = vec![];
    if !spilos.is_empty() {
        found.push(handled(
            Id::SpiloLibraries,
            "",
            format!(
                "the target does not preload the libraries of Spilo's own configuration: {}",
                listed(&spilos)
            ),
            "the manifest sets no shared_preload_libraries",
        ));
    }
    found.extend(others.into_iter().map(|name| {
        decide(
            Id::PreloadedLibrary,
            &name,
            format!("the source preloads {name}, the target does not"),
            "if the application needs it, choose a TARGET_IMAGE that has it and add it to \
             spec.postgresql.shared_preload_libraries",
        )
    }));
    found
}

/// Libraries of a comma-separated list that the image lacks.
fn missing_libraries(list: &str, image: &Image) -> Vec<String> {
    list.split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .filter(|name| !name.is_empty() && !image.has_library(name))
        .collect()
}

fn activity(facts: &Facts) -> Vec<Finding> {
    let server = &facts.server;
    let mut found = vec![];
    if server.prepared_transactions > 0 {
        found.push(decide(
            Id::PreparedTransactions,
            "",
            format!(
                "{} prepared transactions are open: they are copied, with their locks",
                server.prepared_transactions
            ),
            "commit or roll them back before the cutover",
        ));
    }
    if !server.long_transactions.is_empty() {
        let each: Vec<String> = server
            .long_transactions
            .iter()
            .map(|(role, database, minutes)| format!("{role} in {database} for {minutes} min"))
            .collect();
        found.push(decide(
            Id::LongTransactions,
            "",
            format!("transactions have been open for long: {}", listed(&each)),
            "the cutover ends open sessions: schedule such work outside of its window",
        ));
    }
    found.extend(server.logical_slots.iter().map(|slot| {
        decide(
            Id::LogicalSlot,
            slot,
            format!("logical slot {slot} is not copied"),
            "plan how its consumer starts again at the target",
        )
    }));
    found
}

fn passwords(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    let md5 = facts.md5_roles();
    if !md5.is_empty() {
        found.push(handled(
            Id::Md5Passwords,
            "",
            format!("passwords are stored as md5: {}", listed(&md5)),
            "the manifest's pg_hba accepts them where the source's does; after the cutover set \
             each password again",
        ));
    }
    if facts.setting("password_encryption") == "md5" {
        found.push(handled(
            Id::PasswordEncryption,
            "",
            "password_encryption is md5, and the copy inherits it",
            "the manifest sets scram-sha-256",
        ));
    }
    found
}

fn checksums(facts: &Facts) -> Vec<Finding> {
    if facts.setting("data_checksums") != "off" {
        return vec![];
    }
    vec![decide(
        Id::DataChecksums,
        "",
        "data checksums are off, and a physical copy cannot enable them",
        "nothing for the migration; pg_checksums --enable on a stopped server enables them, before \
         it at the source or after it at the target",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        findings::{Verdict, assert_found, labels},
        fixture,
    };
    use serde_json::json;

    #[track_caller]
    fn expect(change: impl FnOnce(&mut Facts), verdict: Verdict, label: &str) {
        let mut facts = fixture::facts();
        change(&mut facts);
        assert_found(&facts, &fixture::settings(), verdict, label);
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        fixture::set(facts, name, value, value, "", "configuration file");
    }

    #[test]
    fn whatever_would_break_the_copy_blocks() {
        for (change, label) in [
            (
                (|f| f.roles[0].superuser = false) as fn(&mut Facts),
                "superuser-missing:postgres",
            ),
            (|f| f.user = "admin".into(), "source-user:admin"),
            (|f| set(f, "wal_level", "minimal"), "wal-level"),
            (
                |f| set(f, "cluster_name", "other"),
                "source-host-other-cluster:mastodon-postgresql.mastodon.svc",
            ),
            (
                |f| {
                    let name = "default_transaction_read_only".into();
                    f.auto_conf.insert(name, "on".into());
                },
                "alter-system:default_transaction_read_only",
            ),
            (
                |f| drop(f.auto_conf.insert("hba_file".into(), "/x".into())),
                "alter-system:hba_file",
            ),
            (
                |f| {
                    let setting = f.settings.get_mut("max_connections").unwrap();
                    setting.pending_restart = true;
                },
                "pending-restart:max_connections",
            ),
            (
                |f| f.patroni = json!({"standby_cluster": {"host": "x"}}),
                "standby-cluster",
            ),
            (
                |f| f.server.session_libraries = vec![("role app".into(), "set_user".into())],
                "session-libraries:role app",
            ),
        ] {
            expect(change, Verdict::Blocker, label);
        }
    }

    #[test]
    fn whatever_behaves_differently_at_the_target_is_a_decision() {
        for (change, label) in [
            (
                (|f| drop(f.auto_conf.insert("work_mem".into(), "1GB".into()))) as fn(&mut Facts),
                "alter-system:work_mem",
            ),
            (
                |f| f.patroni = json!({"synchronous_mode": true}),
                "synchronous-mode",
            ),
            (|f| f.patroni = json!({"pause": true}), "patroni-paused"),
            (
                |f| f.server.prepared_transactions = 1,
                "prepared-transactions",
            ),
            (
                |f| f.server.long_transactions = vec![("a".into(), "b".into(), 61)],
                "long-transactions",
            ),
            (
                |f| f.server.logical_slots = vec!["s".into()],
                "logical-slot:s",
            ),
            (|f| set(f, "data_checksums", "off"), "data-checksums"),
            (
                |f| set(f, "shared_preload_libraries", "bg_mon,pg_squeeze"),
                "preloaded-library:pg_squeeze",
            ),
        ] {
            expect(change, Verdict::Decide, label);
        }
    }

    #[test]
    fn whatever_the_manifest_corrects_is_handled() {
        for label in [
            "md5-passwords",
            "password-encryption",
            "spilo-libraries",
            "spread-checkpoint",
        ] {
            expect(|_| {}, Verdict::Handled, label);
        }
    }

    #[test]
    fn the_retained_wal_must_cover_an_outage_at_the_average_rate() {
        let keep = |f: &mut Facts, mb: &str| set(f, "wal_keep_size", mb);
        expect(|f| keep(f, "128"), Verdict::Decide, "wal-keep-size");
        expect(
            |f| {
                keep(f, "2048");
                f.server.wal_bytes_per_second = Some(10 << 20);
            },
            Verdict::Decide,
            "wal-keep-size",
        );
        let mut facts = fixture::facts();
        keep(&mut facts, "2048");
        let found = labels(&facts, &fixture::settings());
        assert!(
            !found.iter().any(|(_, label)| label == "wal-keep-size"),
            "{found:?}"
        );
    }

    #[test]
    fn a_suspended_operator_cannot_raise_wal_keep_size() {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        (facts.resource.suspended, settings.wal_keep_mb) = (true, Some(8192));
        assert_found(
            &facts,
            &settings,
            Verdict::Blocker,
            "operator-suspended:wal_keep_size",
        );
    }
}
