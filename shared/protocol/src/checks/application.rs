//! What the application's objects must show before a cutover by its ConfigMap. Nothing of it
//! matters to a cutover that repoints the Services.

#![deny(dead_code)]

use super::Check;
use crate::{
    decision::Limits,
    failure::Failure,
    finding::{Finding, Verdict, listed},
    route::Route,
    snapshot::{Snapshot, prechecks::Prechecks},
};

pub(super) const CHECKS: &[Check] = &[
    Check::new("apps", apps),
    Check::new("apps-up", apps_up),
    Check::new("app-config", app_config),
];

/// The prechecks of a cutover that would change the application's ConfigMap.
fn by_config<'a>(snapshot: &'a Snapshot, limits: &Limits) -> Option<&'a Prechecks> {
    let route = Route::of(limits.route, !snapshot.poolers.is_empty());
    let prechecks = snapshot.prechecks.as_ref();
    prechecks.filter(|_| route == Route::Config)
}

/// Every workload of APPS exists.
fn apps(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let Some(prechecks) = by_config(snapshot, limits) else {
        return Vec::new();
    };
    let finding = |found: String| Finding::ok("apps", "all of APPS", found);
    let missing = &prechecks.apps_missing;
    vec![if limits.apps.is_empty() {
        finding("APPS is empty".into())
            .wrong_setting("APPS", "name the Deployments that use the database in APPS")
    } else if missing.is_empty() {
        finding(format!("all {} of APPS", limits.apps.len()))
    } else {
        finding(format!("no {}", listed(missing))).wrong_setting(
            "APPS",
            "correct APPS in the ConfigMap replica-migration; StatefulSets take \
             manifests/components/statefulsets",
        )
    }]
}

/// The application is fully up: the counts are what cutover records and restores.
fn apps_up(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    if by_config(snapshot, limits).is_none() {
        return Vec::new();
    }
    let down = snapshot
        .apps
        .iter()
        .filter(|(_, app)| app.wanted == 0 || app.ready < app.wanted);
    let mut findings: Vec<Finding> = down
        .map(|(name, app)| {
            let found = format!("{} of {} ready", app.ready, app.wanted);
            Finding::ok("apps-up", "all pods ready", found)
                .about(name)
                .with(
                    Verdict::Decide,
                    "this count is what cutover records and restores: bring the application up \
                     first, or accept it",
                )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("apps-up", "all pods ready", "all pods ready"));
    }
    findings
}

/// The application's ConfigMap can be changed and has every key of APP_CONFIG_TARGET.
fn app_config(snapshot: &Snapshot, limits: &Limits) -> Vec<Finding> {
    let Some(prechecks) = by_config(snapshot, limits) else {
        return Vec::new();
    };
    if let Some(failure) = &prechecks.config_failure {
        return vec![unusable(&limits.app_configmap, failure)];
    }
    let (config, target) = (&snapshot.config, &limits.config);
    let now = |key: &String| config.values.get(key).cloned().flatten();
    let described: Vec<String> = target
        .keys()
        .map(|key| format!("{key}={}", now(key).unwrap_or_else(|| "(absent)".into())))
        .collect();
    let finding = Finding::ok(
        "app-config",
        format!("the keys of APP_CONFIG_TARGET in {}", config.name),
        described.join(", "),
    );
    vec![if target.is_empty() {
        finding.wrong_setting(
            "APP_CONFIG_TARGET",
            "name the keys and the target's values in APP_CONFIG_TARGET",
        )
    } else if target.keys().any(|key| now(key).is_none()) {
        finding.wrong_setting(
            "APP_CONFIG_TARGET",
            "correct APP_CONFIG_TARGET or APP_CONFIGMAP in the ConfigMap replica-migration",
        )
    } else if target
        .iter()
        .all(|(key, value)| now(key).as_ref() == Some(value))
    {
        finding.with(
            Verdict::Decide,
            "the application is configured for the target already: pods that restart now find a \
             read-only server",
        )
    } else {
        finding
    }]
}

/// The ConfigMap cannot be read or changed.
fn unusable(name: &str, failure: &Failure) -> Finding {
    let hint = failure.hint.as_deref();
    Finding::ok(
        "app-config",
        format!("the ConfigMap {name}"),
        failure.to_string(),
    )
    .wrong_setting(
        "APP_CONFIGMAP",
        hint.unwrap_or("correct APP_CONFIGMAP in the ConfigMap replica-migration"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::{limits, look};

    fn by_config_limits() -> Limits {
        Limits {
            route: Some(Route::Config),
            apps: vec!["web".into()],
            ..limits()
        }
    }

    fn observed(prechecks: Prechecks) -> Snapshot {
        let mut snapshot = look();
        snapshot.prechecks = Some(prechecks);
        snapshot
    }

    #[test]
    fn a_forgotten_deployment_is_a_wrong_setting() {
        let complete = observed(Prechecks::default());
        let finding = apps(&complete, &by_config_limits()).remove(0);
        assert_eq!(finding.verdict, Verdict::Ok);
        let none = Limits {
            apps: Vec::new(),
            ..by_config_limits()
        };
        let finding = apps(&complete, &none).remove(0);
        assert_eq!(finding.setting, Some("APPS"));
        let missing = observed(Prechecks {
            apps_missing: vec!["sidekiq".into()],
            ..Prechecks::default()
        });
        let finding = apps(&missing, &by_config_limits()).remove(0);
        assert_eq!(
            (finding.setting, finding.found.as_str()),
            (Some("APPS"), "no sidekiq")
        );
    }

    #[test]
    fn an_application_that_is_not_up_is_for_a_person_to_decide() {
        let mut snapshot = observed(Prechecks::default());
        let finding = apps_up(&snapshot, &by_config_limits()).remove(0);
        assert_eq!(finding.verdict, Verdict::Ok);
        snapshot.apps.values_mut().for_each(|app| app.ready = 0);
        let finding = apps_up(&snapshot, &by_config_limits()).remove(0);
        assert_eq!(
            (finding.verdict, finding.to_string().as_str()),
            (Verdict::Decide, "apps-up:web: 0 of 1 ready")
        );
    }

    #[test]
    fn the_applications_configuration_must_have_every_key_and_not_yet_the_targets_values() {
        let judged = |host: Option<&str>, limits: Limits| {
            let mut snapshot = observed(Prechecks::default());
            snapshot.config.values = [("DB_HOST".to_owned(), host.map(str::to_owned))].into();
            app_config(&snapshot, &limits).remove(0)
        };
        let ready = judged(Some("source"), by_config_limits());
        assert_eq!(ready.verdict, Verdict::Ok);
        let absent = judged(None, by_config_limits());
        assert_eq!(absent.setting, Some("APP_CONFIG_TARGET"));
        let already = judged(Some("target"), by_config_limits());
        assert_eq!(already.verdict, Verdict::Decide);
        let empty = Limits {
            config: [].into(),
            ..by_config_limits()
        };
        assert_eq!(judged(Some("source"), empty).verdict, Verdict::Blocker);
    }

    #[test]
    fn an_error_about_the_configmap_keeps_its_text_and_its_hint() {
        let failure = Failure::config("the ConfigMap m does not exist").hint("correct it");
        let snapshot = observed(Prechecks {
            config_failure: Some(failure),
            ..Prechecks::default()
        });
        let finding = app_config(&snapshot, &by_config_limits()).remove(0);
        assert_eq!(
            (
                finding.setting,
                finding.found.as_str(),
                finding.hint.as_deref()
            ),
            (
                Some("APP_CONFIGMAP"),
                "the ConfigMap m does not exist",
                Some("correct it")
            )
        );
    }
}
