//! How the source runs: settings that a copy inherits, WAL that must be kept, and what is going on
//! just now.

use super::{Finding, some};
use crate::{
    facts::Facts,
    image::Image,
    settings::Settings,
    tuning::{FIXED, HOT_STANDBY},
};

/// A target that is away for less than this must find its WAL.
const OUTAGE_SECONDS: u64 = 2 * 3600;
/// Never recommend less.
const KEEP_MB_MIN: u64 = 1024;
const RESOURCE: &str = "the postgresql resource";

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        identity(facts, settings),
        auto_conf(facts),
        pending(facts),
        wal(facts, settings),
        patroni(facts),
        libraries(facts, image),
        activity(facts),
        security(facts),
    ]
    .concat()
}

fn identity(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let mut found = vec![];
    let cluster = facts.setting("cluster_name");
    if cluster != settings.source_cluster.as_str() {
        let what = format!(
            "SOURCE_HOST {} leads to a server of cluster {cluster:?}, not of {}",
            facts.host, settings.source_cluster
        );
        found.push(Finding::blocker(
            "OtherCluster",
            what,
            "correct SOURCE_HOST in the ConfigMap replica-migration",
        ));
    }
    let postgres = facts.role("postgres");
    if !postgres.is_some_and(|role| role.superuser && role.login) {
        let what = "the source has no superuser postgres that may log in, and CloudNativePG knows \
            no other";
        found.push(Finding::blocker(
            "NoPostgres",
            what,
            "create role postgres superuser login",
        ));
    }
    if facts.user != "postgres" {
        let what = format!(
            "SOURCE_USER is {}, and CloudNativePG's superuser is always called postgres",
            facts.user
        );
        found.push(Finding::blocker(
            "OtherUser",
            what,
            "set SOURCE_USER=postgres in the ConfigMap replica-migration, and mount its secret",
        ));
    }
    if facts.setting("wal_level") == "minimal" {
        found.push(Finding::blocker(
            "WalLevel",
            "wal_level is minimal: nothing can be streamed",
            format!("set wal_level to replica in {RESOURCE}"),
        ));
    }
    found
}

/// postgresql.auto.conf is copied and read last: above everything that CloudNativePG writes.
fn auto_conf(facts: &Facts) -> Vec<Finding> {
    let dangerous = |name: &str| {
        FIXED.contains(&name)
            || HOT_STANDBY.contains(&name)
            || matches!(
                name,
                "default_transaction_read_only"
                    | "wal_level"
                    | "session_preload_libraries"
                    | "local_preload_libraries"
            )
    };
    let (bad, odd): (Vec<&str>, Vec<&str>) = facts
        .auto_conf
        .keys()
        .map(String::as_str)
        .partition(|name| dangerous(name));
    let mut found = vec![];
    if !bad.is_empty() {
        let reset: Vec<String> = bad
            .iter()
            .map(|name| format!("alter system reset {name}"))
            .collect();
        let what = format!(
            "postgresql.auto.conf sets {}: the copy would have it above everything that \
             CloudNativePG sets",
            some(&bad)
        );
        found.push(Finding::blocker(
            "AutoConf",
            what,
            format!("{}; then reload", some(&reset)),
        ));
    }
    if !odd.is_empty() {
        let what = format!(
            "postgresql.auto.conf sets {}: it stays in force at the target, above the Cluster's \
             parameters",
            some(&odd)
        );
        found.push(Finding::warning(
            "AutoConf",
            what,
            "alter system reset each, and set what is wanted in the manifest",
        ));
    }
    found
}

fn pending(facts: &Facts) -> Vec<Finding> {
    let pending: Vec<&str> = HOT_STANDBY
        .into_iter()
        .filter(|name| {
            facts
                .settings
                .get(*name)
                .is_some_and(|setting| setting.pending_restart)
        })
        .collect();
    if pending.is_empty() {
        return vec![];
    }
    let what = format!(
        "{} will change when the source is restarted, and the target would stop replaying until it \
         has the same",
        some(&pending)
    );
    vec![Finding::blocker(
        "PendingRestart",
        what,
        "let the operator restart the source first, then run this step again",
    )]
}

fn wal(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let kept_mb = facts
        .number("wal_keep_size")
        .max(u64::from(settings.wal_keep_mb.unwrap_or(0)));
    let rate = facts.server.wal_bytes_per_second.unwrap_or(0);
    // The copy's own WAL must be replayed before streaming begins, so a large database needs more,
    // too.
    let wanted_mb = ((rate * OUTAGE_SECONDS) >> 20)
        .max((facts.bytes() / 20) >> 20)
        .max(KEEP_MB_MIN);
    let mut found = vec![];
    if kept_mb < wanted_mb {
        let lasts = match (kept_mb << 20).checked_div(rate) {
            Some(seconds) => format!(", about {} min at the rate of the past", seconds / 60),
            None => String::new(),
        };
        let what = format!(
            "wal_keep_size is {kept_mb} MB{lasts}: a target that is away for longer has to be \
             copied again, because CloudNativePG uses no slot here"
        );
        found.push(Finding::warning(
            "WalKeep",
            what,
            format!(
                "set WAL_KEEP_MB={} in the ConfigMap replica-migration: it needs no restart",
                wanted_mb.next_power_of_two()
            ),
        ));
    }
    let raise = settings
        .wal_keep_mb
        .is_some_and(|wanted| u64::from(wanted) > facts.number("wal_keep_size"));
    if raise && facts.resource.frozen {
        let what =
            format!("WAL_KEEP_MB is to be raised in {RESOURCE}, and the operator is frozen for it");
        found.push(Finding::blocker(
            "OperatorFrozen",
            what,
            "remove the annotation acid.zalan.do/controller",
        ));
    }
    let spread = facts.number("checkpoint_timeout") as f64
        * facts
            .settings
            .get("checkpoint_completion_target")
            .and_then(|s| s.raw.parse().ok())
            .unwrap_or(0.9);
    if !facts.server.target_streams && facts.target.is_none() {
        let what = format!(
            "the copy begins with a checkpoint that the source spreads over up to {:.0} s",
            spread
        );
        found.push(Finding::warning(
            "SpreadCheckpoint",
            what,
            "run checkpoint on the source when the copy waits",
        ));
    }
    found
}

fn patroni(facts: &Facts) -> Vec<Finding> {
    let on = |key: &str| {
        facts
            .patroni
            .get(key)
            .is_some_and(|value| !value.is_null() && *value != false)
    };
    let mut found = vec![];
    if on("standby_cluster") {
        found.push(Finding::blocker(
            "StandbyCluster",
            "the source is itself a standby cluster",
            "promote it first: its leader must accept writes",
        ));
    }
    if on("synchronous_mode") {
        let what = "synchronous_mode is on: a commit at the source waits for its own standby, and \
            at the target for none";
        found.push(Finding::warning(
            "Synchronous",
            what,
            "set spec.postgresql.synchronous when the target has replicas, after the cutover",
        ));
    }
    if on("pause") {
        found.push(Finding::warning(
            "Paused",
            "patroni is paused: nobody is promoted when the leader is lost",
            "resume it unless somebody means it",
        ));
    }
    found
}

fn libraries(facts: &Facts, image: &Image) -> Vec<Finding> {
    let lacking = |list: &str| -> Vec<String> {
        list.split(',')
            .map(|name| name.trim().trim_matches('"').to_owned())
            .filter(|name| !name.is_empty() && !image.has_library(name))
            .collect()
    };
    let mut found = vec![];
    for (whose, list) in &facts.server.session_libraries {
        let missing = lacking(list);
        if !missing.is_empty() {
            let what = format!(
                "{whose} loads {} into every session, and the target has no such library: no login \
                 would succeed",
                some(&missing)
            );
            found.push(Finding::blocker(
                "SessionLibraries",
                what,
                "reset session_preload_libraries and local_preload_libraries there",
            ));
        }
    }
    let left = lacking(facts.setting("shared_preload_libraries"));
    if !left.is_empty() {
        let what = format!("the source preloads {}, the target does not", some(&left));
        found.push(Finding::warning(
            "Preload",
            what,
            "nothing for Spilo's own; what the application needs must be in TARGET_IMAGE and in \
             spec.postgresql.shared_preload_libraries",
        ));
    }
    found
}

fn activity(facts: &Facts) -> Vec<Finding> {
    let server = &facts.server;
    let mut found = vec![];
    if server.prepared_transactions > 0 {
        let what = format!(
            "{} prepared transactions wait to be finished: they are copied, with their locks",
            server.prepared_transactions
        );
        found.push(Finding::warning(
            "PreparedTransactions",
            what,
            "commit or roll them back before the cutover",
        ));
    }
    if !server.long_transactions.is_empty() {
        let each: Vec<String> = server
            .long_transactions
            .iter()
            .map(|(role, database, minutes)| format!("{role} in {database} for {minutes} min"))
            .collect();
        found.push(Finding::warning(
            "LongTransactions",
            format!("transactions are open: {}", some(&each)),
            "the cutover ends what is open then: move such work out of the window",
        ));
    }
    if !server.logical_slots.is_empty() {
        let what = format!(
            "logical slots are not copied: {}",
            some(&server.logical_slots)
        );
        found.push(Finding::warning(
            "LogicalSlots",
            what,
            "plan how their readers start anew at the target",
        ));
    }
    found
}

fn security(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    let md5 = facts.md5_roles();
    if !md5.is_empty() {
        let what = format!("passwords are stored as md5: {}", some(&md5));
        let remedy = "the manifest's pg_hba accepts them; set each password anew after the \
            cutover, then remove that line";
        found.push(Finding::warning("Md5", what, remedy));
    }
    if facts.setting("password_encryption") == "md5" {
        let what = "password_encryption is md5, and the copy inherits it";
        found.push(Finding::warning(
            "PasswordEncryption",
            what,
            "the manifest sets scram-sha-256",
        ));
    }
    if facts.setting("data_checksums") == "off" {
        let what = "data checksums are off, and a copy cannot switch them on";
        found.push(Finding::warning(
            "Checksums",
            what,
            "run pg_checksums --enable on the stopped target some day",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        example,
        findings::{Weight, reasons},
    };
    use serde_json::json;

    fn expect(change: impl FnOnce(&mut Facts), weight: Weight, reason: &'static str) {
        let mut facts = example::facts();
        change(&mut facts);
        let found = reasons(&facts, &example::settings());
        assert!(
            found.contains(&(weight, reason)),
            "{reason} is not in {found:?}"
        );
    }

    #[test]
    fn what_would_break_the_copy_blocks() {
        expect(
            |f| f.roles[0].superuser = false,
            Weight::Blocker,
            "NoPostgres",
        );
        expect(|f| f.user = "admin".into(), Weight::Blocker, "OtherUser");
        expect(
            |f| {
                example::set(
                    f,
                    "wal_level",
                    "minimal",
                    "minimal",
                    "replica",
                    "configuration file",
                )
            },
            Weight::Blocker,
            "WalLevel",
        );
        expect(
            |f| {
                example::set(
                    f,
                    "cluster_name",
                    "other",
                    "other",
                    "",
                    "configuration file",
                )
            },
            Weight::Blocker,
            "OtherCluster",
        );
        expect(
            |f| {
                drop(
                    f.auto_conf
                        .insert("default_transaction_read_only".into(), "on".into()),
                )
            },
            Weight::Blocker,
            "AutoConf",
        );
        expect(
            |f| drop(f.auto_conf.insert("hba_file".into(), "/x".into())),
            Weight::Blocker,
            "AutoConf",
        );
        expect(
            |f| {
                f.settings
                    .get_mut("max_connections")
                    .unwrap()
                    .pending_restart = true
            },
            Weight::Blocker,
            "PendingRestart",
        );
        expect(
            |f| f.patroni = json!({"standby_cluster": {"host": "x"}}),
            Weight::Blocker,
            "StandbyCluster",
        );
        expect(
            |f| f.server.session_libraries = vec![("role app".into(), "set_user".into())],
            Weight::Blocker,
            "SessionLibraries",
        );
    }

    #[test]
    fn what_somebody_should_know_warns() {
        expect(
            |f| drop(f.auto_conf.insert("work_mem".into(), "1GB".into())),
            Weight::Warning,
            "AutoConf",
        );
        expect(
            |f| f.patroni = json!({"synchronous_mode": true}),
            Weight::Warning,
            "Synchronous",
        );
        expect(
            |f| f.patroni = json!({"pause": true}),
            Weight::Warning,
            "Paused",
        );
        expect(
            |f| f.server.prepared_transactions = 1,
            Weight::Warning,
            "PreparedTransactions",
        );
        expect(
            |f| f.server.long_transactions = vec![("a".into(), "b".into(), 61)],
            Weight::Warning,
            "LongTransactions",
        );
        expect(
            |f| f.server.logical_slots = vec!["s".into()],
            Weight::Warning,
            "LogicalSlots",
        );
        expect(
            |f| example::set(f, "data_checksums", "off", "off", "off", "override"),
            Weight::Warning,
            "Checksums",
        );
        expect(|_| {}, Weight::Warning, "Md5");
        expect(|_| {}, Weight::Warning, "PasswordEncryption");
        expect(|_| {}, Weight::Warning, "Preload");
        expect(|_| {}, Weight::Warning, "SpreadCheckpoint");
    }

    #[test]
    fn wal_must_last_for_an_outage_at_the_rate_of_the_past() {
        let keep = |f: &mut Facts, mb: &str| {
            example::set(f, "wal_keep_size", "x", mb, "0", "configuration file")
        };
        expect(|f| keep(f, "128"), Weight::Warning, "WalKeep");
        expect(
            |f| {
                keep(f, "2048");
                f.server.wal_bytes_per_second = Some(10 << 20);
            },
            Weight::Warning,
            "WalKeep",
        );
        let mut facts = example::facts();
        keep(&mut facts, "2048");
        assert!(
            !reasons(&facts, &example::settings())
                .iter()
                .any(|(_, reason)| *reason == "WalKeep")
        );
    }

    #[test]
    fn a_frozen_operator_cannot_raise_wal_keep_size() {
        let (mut facts, mut settings) = (example::facts(), example::settings());
        (facts.resource.frozen, settings.wal_keep_mb) = (true, Some(8192));
        assert!(reasons(&facts, &settings).contains(&(Weight::Blocker, "OperatorFrozen")));
    }
}
