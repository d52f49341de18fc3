//! `spec.postgresql`: parameters and pg_hba.

use crate::{facts::Facts, image::Image, settings::Settings, tuning, yaml::Yaml};

/// CloudNativePG's own default of wal_keep_size.
const WAL_KEEP_MB_DEFAULT: u64 = 512;

pub(super) fn postgresql(yaml: &mut Yaml, facts: &Facts, settings: &Settings, image: &Image) {
    yaml.line(1, "postgresql:");
    yaml.line(2, "parameters:");
    hot_standby(yaml, facts);
    corrected(yaml, facts, settings);
    inherited(yaml, facts, image);
    super::pg_hba(yaml, facts);
    let left = facts.setting("shared_preload_libraries");
    if !left.is_empty() {
        let left = left.replace(',', ", ");
        yaml.comment(
            2,
            &format!(
                "No shared_preload_libraries: the source has {left}. CloudNativePG adds what \
                it manages itself; a library that the image lacks would keep the server from \
                starting."
            ),
        );
    }
}

fn hot_standby(yaml: &mut Yaml, facts: &Facts) {
    yaml.comment(
        3,
        "Exactly the source's: a standby with less does not start, and with more the source could \
         not follow on the way back.",
    );
    for (name, value) in tuning::hot_standby(facts) {
        yaml.text(3, name, &value);
    }
}

/// What is meant to differ from the source, or from CloudNativePG's default.
fn corrected(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    if facts.setting("password_encryption") != "scram-sha-256" {
        yaml.comment(
            3,
            "The source says md5, and the copied configuration would, too; CloudNativePG's last \
             pg_hba line wants scram-sha-256.",
        );
    }
    yaml.text(3, "password_encryption", "scram-sha-256");
    if matches!(facts.setting("log_statement"), "ddl" | "mod" | "all") {
        yaml.comment(
            3,
            &format!(
                "The source's {} writes the passwords of create role into the log.",
                facts.setting("log_statement")
            ),
        );
        yaml.text(3, "log_statement", "none");
    }
    let tls = facts.setting("ssl_min_protocol_version");
    if !tls.is_empty() && tls != "TLSv1.3" {
        yaml.comment(
            3,
            "As at the source; CloudNativePG's default, TLSv1.3, would send older clients away.",
        );
        yaml.text(3, "ssl_min_protocol_version", tls);
    }
    let kept_mb = facts
        .number("wal_keep_size")
        .max(u64::from(settings.wal_keep_mb.unwrap_or(0)));
    if kept_mb > WAL_KEEP_MB_DEFAULT {
        yaml.comment(
            3,
            "As at the source: on the way back the old cluster finds as much here.",
        );
        yaml.text(3, "wal_keep_size", &format!("{kept_mb}MB"));
    }
}

fn inherited(yaml: &mut Yaml, facts: &Facts, image: &Image) {
    let managed = tuning::managed(facts, image);
    if !managed.is_empty() {
        yaml.comment(
            3,
            "Keeps the extension: without a parameter of it CloudNativePG drops it after the \
             promotion, or is stuck where something depends on it.",
        );
    }
    for (name, value) in managed {
        yaml.text(3, &name, &value);
    }
    let kept = tuning::worth_keeping(facts);
    if !kept.is_empty() {
        yaml.comment(
            3,
            "Tuning of the source. It would also come along in Patroni's postgresql.conf, unseen; \
             here it can be read and changed.",
        );
    }
    for (name, value) in kept {
        yaml.text(3, name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    fn parameters(facts: &Facts, settings: &Settings) -> serde_yaml_ng::Value {
        let mut yaml = Yaml::default();
        yaml.line(0, "spec:");
        postgresql(
            &mut yaml,
            facts,
            settings,
            &Image::parse(&settings.target_image).unwrap(),
        );
        let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&yaml.into_text()).unwrap();
        value["spec"]["postgresql"]["parameters"].clone()
    }

    #[test]
    fn the_five_are_equal_to_the_sources_and_everything_is_a_text() {
        let all = parameters(&example::facts(), &example::settings());
        assert_eq!(all["max_connections"], "136");
        assert_eq!(all["max_prepared_transactions"], "0");
        assert!(
            all.as_mapping()
                .unwrap()
                .values()
                .all(|value| value.is_string())
        );
    }

    #[test]
    fn what_the_source_does_wrong_is_not_carried_on() {
        let all = parameters(&example::facts(), &example::settings());
        assert_eq!(all["password_encryption"], "scram-sha-256");
        assert_eq!(all["log_statement"], "none");
        assert_eq!(all["ssl_min_protocol_version"], "TLSv1.2");
        assert_eq!(all["pg_stat_statements.track"], "top");
    }

    #[test]
    fn nothing_is_set_that_cloudnativepg_refuses() {
        let all = parameters(&example::facts(), &example::settings());
        for name in all.as_mapping().unwrap().keys() {
            assert!(!tuning::FIXED.contains(&name.as_str().unwrap()), "{name:?}");
        }
    }

    #[test]
    fn wal_is_kept_as_long_as_at_the_source_or_as_long_as_was_asked() {
        let (facts, mut settings) = (example::facts(), example::settings());
        assert_eq!(parameters(&facts, &settings)["wal_keep_size"], "2048MB");
        settings.wal_keep_mb = Some(4096);
        assert_eq!(parameters(&facts, &settings)["wal_keep_size"], "4096MB");
    }
}
