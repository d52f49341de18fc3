//! Changes of the `postgresql` resource that the settings request: wal_keep_size, and a line in
//! pg_hba.
//!
//! The operator passes wal_keep_size on to Patroni, and a reload applies it. pg_hba is part of the
//! pods' environment: the operator recreates every pod, with a switchover. The list in the resource
//! replaces Spilo's list (docs/operators/zalando.md).

pub mod apply;

use platform::kubernetes::zalando::PostgresqlSpec;
use serde_json::{Value, json};

use crate::{
    facts::Facts,
    hba::{self, Admission, Rule},
    settings::{Settings, SourceAuth},
};

/// What the settings request and the server does not have yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Required {
    /// A larger wal_keep_size, in MB.
    pub wal_keep_mb: Option<u32>,
    /// A role that pg_hba must admit.
    pub admitted_role: Option<&'static str>,
}

impl Required {
    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Describes what the server lacks; None when it has everything. `wal_keep_mb` and `rules` are
    /// the server's current ones.
    pub fn missing(&self, wal_keep_mb: u64, rules: &[Rule]) -> Option<String> {
        let not_admitted =
            |role: &&str| matches!(hba::replication(rules, role), Admission::NoMatch);
        let role = self
            .admitted_role
            .filter(not_admitted)
            .map(|role| format!("a leader whose pg_hba admits {role}"));
        let wal = self
            .wal_keep_mb
            .filter(|wanted| u64::from(*wanted) > wal_keep_mb)
            .map(|wanted| format!("wal_keep_size of {wanted} MB"));
        role.or(wal)
    }
}

/// Compares the settings with the server's state.
pub fn required(facts: &Facts, settings: &Settings) -> Required {
    let role = settings.source_auth.role();
    let not_admitted = matches!(hba::replication(&facts.hba, role), Admission::NoMatch);
    Required {
        wal_keep_mb: settings
            .wal_keep_mb
            .filter(|mb| u64::from(*mb) > facts.number("wal_keep_size")),
        admitted_role: (settings.source_auth == SourceAuth::StreamingReplica && not_admitted)
            .then_some(role),
    }
}

/// The merge patch of the resource; None when the resource requests everything already. `running`
/// is the text of the server's pg_hba.conf.
pub fn patch(spec: &PostgresqlSpec, required: &Required, running: &str) -> Option<Value> {
    let mut change = json!({});
    if let Some(mb) = required.wal_keep_mb {
        let value = format!("{mb}MB");
        if spec.postgresql.parameters.get("wal_keep_size") != Some(&value) {
            change["postgresql"] = json!({"parameters": {"wal_keep_size": value}});
        }
    }
    if let Some(role) = required.admitted_role {
        let own = spec
            .patroni
            .as_ref()
            .and_then(|patroni| patroni.pg_hba.clone())
            .filter(|list| !list.is_empty());
        let list = own.unwrap_or_else(|| hba::lines(running));
        let wanted = hba::with_replication(&list, role);
        if wanted != list {
            change["patroni"] = json!({"pg_hba": wanted});
        }
    }
    (change != json!({})).then(|| json!({"spec": change}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    const RUNNING: &str = "# Patroni's\n\
        local all all trust\n\
        hostssl replication standby all md5\n\
        hostssl all all all md5\n";

    fn both() -> Required {
        Required {
            wal_keep_mb: Some(4096),
            admitted_role: Some("streaming_replica"),
        }
    }

    #[test]
    fn the_default_settings_require_no_change() {
        assert!(required(&fixture::facts(), &fixture::settings()).is_empty());
    }

    #[test]
    fn a_change_is_required_for_more_wal_and_for_a_role_that_is_not_admitted() {
        let (facts, mut settings) = (fixture::facts(), fixture::settings());
        settings.wal_keep_mb = Some(1024);
        assert!(
            required(&facts, &settings).is_empty(),
            "it has 2 GB already"
        );
        settings.wal_keep_mb = Some(4096);
        settings.source_auth = SourceAuth::StreamingReplica;
        assert_eq!(required(&facts, &settings), both());
    }

    #[test]
    fn nothing_is_missing_once_the_server_has_both() {
        let rules = fixture::facts().hba;
        assert_eq!(
            both().missing(4096, &rules).as_deref(),
            Some("a leader whose pg_hba admits streaming_replica")
        );
        let admitted = Rule {
            roles: vec!["streaming_replica".into()],
            ..rules[0].clone()
        };
        assert_eq!(
            both()
                .missing(2048, std::slice::from_ref(&admitted))
                .as_deref(),
            Some("wal_keep_size of 4096 MB")
        );
        assert_eq!(both().missing(4096, &[admitted]), None);
    }

    #[test]
    fn a_resource_without_pg_hba_gets_the_complete_list() {
        let patch = patch(&PostgresqlSpec::default(), &both(), RUNNING).unwrap();
        let list = patch["spec"]["patroni"]["pg_hba"].as_array().unwrap();
        assert_eq!(list.len(), 4);
        assert_eq!(
            list[2],
            "hostssl replication streaming_replica all scram-sha-256"
        );
        assert_eq!(
            patch["spec"]["postgresql"]["parameters"]["wal_keep_size"],
            "4096MB"
        );
    }

    #[test]
    fn a_resource_that_requests_everything_already_is_not_patched() {
        let mut spec = PostgresqlSpec::default();
        let change = patch(&spec, &both(), RUNNING).unwrap();
        spec = serde_json::from_value(change["spec"].clone()).unwrap();
        assert_eq!(patch(&spec, &both(), RUNNING), None);
    }
}
