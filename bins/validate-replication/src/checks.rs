//! The verdicts over one look: those that cutover asks, too (protocol::checks), and some that only
//! this step tells.

use job::error::Error;
use protocol::{
    checks::{Finding, Verdict, listed, objects as of_objects, servers as of_servers},
    controllers::suspension::SUSPENDED,
};

use crate::{
    look::{Objects, Servers},
    settings::Settings,
};

/// Over what the servers say.
pub fn servers(seen: &Servers, settings: &Settings) -> Vec<Finding> {
    let (source, target) = (&seen.source, &seen.target);
    let mut findings = vec![
        of_servers::superuser(&seen.superuser),
        of_servers::source_is_primary(source),
        of_servers::target_in_recovery(target),
        of_servers::system_identifier(&source.identity, &target.identity),
        of_servers::major_version(&source.identity, &target.identity),
        of_servers::timeline(&source.identity, &target.identity),
        of_servers::hot_standby(&seen.hot_standby.0, &seen.hot_standby.1),
        of_servers::source_writable(&seen.read_only),
        of_servers::no_prepared_transactions(&seen.prepared),
        of_servers::no_base_backup(&seen.base_backups),
        of_servers::no_tablespaces(&seen.tablespaces),
        archiving(seen.archiving_fails.as_deref()),
        roles(&seen.roles_missing),
    ];
    // What a promoted target does not replay is not said beside it: it would hide the one thing
    // that matters.
    if target.in_recovery {
        findings.push(of_servers::streaming(&seen.replay));
        findings.push(walsender(
            seen.walsender.as_deref(),
            &settings.target_cluster,
        ));
        findings.push(of_servers::replay_not_paused(&seen.replay));
        findings.push(of_servers::no_apply_delay(&seen.apply_delay));
        findings.extend(
            seen.source_lsn
                .map(|lsn| of_servers::lag(lsn, &seen.replay, settings.lag_bytes_max)),
        );
        findings.push(of_servers::restart_after_promotion(&seen.archive_mode));
    }
    findings
}

/// Over what the objects say, and over the way that leads the application to the target: `doors`
/// are the findings about poolers and Services, None where its ConfigMap is changed.
pub fn objects(seen: &Objects, doors: Option<Vec<Finding>>, settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![
        of_objects::replica_mode(&seen.cluster),
        of_objects::one_instance(&seen.cluster),
        of_objects::not_fenced(&seen.cluster),
        of_objects::superuser_kept(&seen.superuser),
        of_objects::wal_archive(&seen.cluster),
        of_objects::operator_not_frozen(seen.controller.as_deref(), SUSPENDED),
        of_objects::patroni(&seen.patroni),
    ];
    findings.extend(doors.unwrap_or_else(|| application(seen, settings)));
    findings
}

fn application(seen: &Objects, settings: &Settings) -> Vec<Finding> {
    let apps: Vec<String> = settings.apps.0.iter().map(ToString::to_string).collect();
    vec![
        of_objects::deployments(&apps, &seen.apps_missing),
        apps_up(&seen.apps_lacking),
        match &seen.config {
            Ok((name, data)) => of_objects::app_config(name, data, &settings.app_config_target.0),
            Err(finding) => finding.clone(),
        },
    ]
}

/// The application's ConfigMap cannot be read.
pub fn no_config(name: &str, error: &Error) -> Finding {
    let hint = error
        .next_step()
        .unwrap_or("correct APP_CONFIGMAP in the ConfigMap replica-migration");
    Finding::ok(
        "application's configuration",
        format!("the ConfigMap {name}"),
        error.to_string(),
    )
    .but(Verdict::Misconfigured, hint)
}

/// The target streams from this very source, and not from one of its standbys: the fence is proved
/// by what the leader sent last.
fn walsender(state: Option<&str>, cluster: &str) -> Finding {
    let finding = Finding::ok(
        "walsender of the source",
        format!("one that serves {cluster}, streaming"),
        state.unwrap_or("none"),
    );
    if state == Some("streaming") {
        return finding;
    }
    finding.but(
        Verdict::NotYet,
        "the target must follow the server that SOURCE_HOST leads to, the \
        leader: compare spec.externalClusters of the Cluster with SOURCE_HOST",
    )
}

fn archiving(fails: Option<&str>) -> Finding {
    let finding = Finding::ok(
        "archiver of the source",
        "no failing WAL archive",
        fails.map_or_else(
            || "not failing".to_owned(),
            |file| format!("fails at {file}"),
        ),
    );
    match fails {
        None => finding,
        Some(_) => finding.but(
            Verdict::Warning,
            "the source keeps all WAL since then, and its own backups cannot be restored to now: \
             mend the archive, or know it",
        ),
    }
}

fn roles(missing: &[String]) -> Finding {
    if missing.is_empty() {
        return Finding::ok(
            "roles for cnpg",
            "created on the source beforehand",
            "present",
        );
    }
    Finding::ok(
        "roles for cnpg",
        "created on the source beforehand",
        format!("missing: {}", listed(missing)),
    )
    .but(
        Verdict::Warning,
        "run prepare-zalando again: without them the poolers refuse their first clients after the \
         cut, and replicas cannot join before it",
    )
}

fn apps_up(lacking: &[String]) -> Finding {
    if lacking.is_empty() {
        return Finding::ok("application", "all Deployments up", "all Deployments up");
    }
    Finding::ok("application", "all Deployments up", listed(lacking)).but(
        Verdict::Warning,
        "these counts are what cutover records and restores: bring the application up first, or \
         know it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_follows_a_standby_is_waited_for() {
        assert_eq!(
            walsender(Some("streaming"), "database").verdict,
            Verdict::Ok
        );
        assert_eq!(
            walsender(Some("catchup"), "database").verdict,
            Verdict::NotYet
        );
        let finding = walsender(None, "database");
        assert_eq!(
            (finding.verdict, finding.to_string().as_str()),
            (
                Verdict::NotYet,
                "walsender of the source: wanted one that serves database, streaming, found none"
            )
        );
    }

    #[test]
    fn what_does_not_stop_a_cut_is_said() {
        assert_eq!(archiving(None).verdict, Verdict::Ok);
        assert_eq!(
            archiving(Some("000000010000000000000003")).verdict,
            Verdict::Warning
        );
        assert_eq!(roles(&[]).verdict, Verdict::Ok);
        assert_eq!(
            roles(&["cnpg_pooler_pgbouncer".into()]).verdict,
            Verdict::Warning
        );
        assert_eq!(apps_up(&[]).verdict, Verdict::Ok);
        assert_eq!(apps_up(&["web 0 of 2".into()]).verdict, Verdict::Warning);
    }

    #[test]
    fn an_error_about_the_configmap_keeps_its_words_and_its_cure() {
        let finding = no_config(
            "m",
            &Error::config("the ConfigMap m does not exist").hint("correct it"),
        );
        assert_eq!(
            (
                finding.verdict,
                finding.found.as_str(),
                finding.hint.as_deref()
            ),
            (
                Verdict::Misconfigured,
                "the ConfigMap m does not exist",
                Some("correct it")
            )
        );
    }
}
