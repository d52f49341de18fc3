//! What must be changed in the `postgresql` resource, when it was asked for: wal_keep_size, and a
//! line in pg_hba.
//!
//! wal_keep_size goes through Patroni's configuration and is a reload. pg_hba is part of the pods'
//! environment: the operator recreates every pod and switches over, and the list in the resource
//! replaces Spilo's whole (facts/zalando.md §2).

use platform::kubernetes::zalando::PostgresqlSpec;
use serde_json::{Value, json};

use crate::{
    facts::Facts,
    hba::{self, Rule, Verdict},
    settings::{Settings, SourceAuth},
};

/// What the server does not have yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// wal_keep_size in MB.
    pub wal_keep_mb: Option<u32>,
    /// The role that pg_hba must admit.
    pub admitted: Option<&'static str>,
}

impl Needed {
    /// Nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is still missing, in words; None when the server has it all. `wal_keep_mb` and `rules`
    /// are the server's now.
    pub fn missing(&self, wal_keep_mb: u64, rules: &[Rule]) -> Option<String> {
        let unmentioned =
            |role: &&str| matches!(hba::replication(rules, role), Verdict::Unmentioned);
        let role = self
            .admitted
            .filter(unmentioned)
            .map(|role| format!("a leader whose pg_hba admits {role}"));
        let wal = self
            .wal_keep_mb
            .filter(|wanted| u64::from(*wanted) > wal_keep_mb)
            .map(|wanted| format!("wal_keep_size of {wanted} MB"));
        role.or(wal)
    }
}

/// What of the settings the server does not have yet.
pub fn needed(facts: &Facts, settings: &Settings) -> Needed {
    let role = settings.source_auth.role();
    let unmentioned = matches!(hba::replication(&facts.hba, role), Verdict::Unmentioned);
    Needed {
        wal_keep_mb: settings
            .wal_keep_mb
            .filter(|mb| u64::from(*mb) > facts.number("wal_keep_size")),
        admitted: (settings.source_auth == SourceAuth::StreamingReplica && unmentioned)
            .then_some(role),
    }
}

/// The merge patch of the resource's spec; None when it asks for all of it already. `running` is
/// the server's own pg_hba.conf.
pub fn patch(spec: &PostgresqlSpec, needed: &Needed, running: &str) -> Option<Value> {
    let mut change = json!({});
    if let Some(mb) = needed.wal_keep_mb {
        let value = format!("{mb}MB");
        if spec.postgresql.parameters.get("wal_keep_size") != Some(&value) {
            change["postgresql"] = json!({"parameters": {"wal_keep_size": value}});
        }
    }
    if let Some(role) = needed.admitted {
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
    use crate::example;

    const RUNNING: &str = "# Patroni's\nlocal all all trust\nhostssl replication standby all \
        md5\nhostssl all all all md5\n";

    fn both() -> Needed {
        Needed {
            wal_keep_mb: Some(4096),
            admitted: Some("streaming_replica"),
        }
    }

    #[test]
    fn nothing_is_needed_by_default() {
        assert!(needed(&example::facts(), &example::settings()).is_empty());
    }

    #[test]
    fn only_more_wal_is_needed_and_only_for_a_role_that_is_not_admitted() {
        let (facts, mut settings) = (example::facts(), example::settings());
        settings.wal_keep_mb = Some(1024);
        assert!(needed(&facts, &settings).is_empty(), "it has 2 GB already");
        settings.wal_keep_mb = Some(4096);
        settings.source_auth = SourceAuth::StreamingReplica;
        assert_eq!(needed(&facts, &settings), both());
    }

    #[test]
    fn it_is_over_when_the_server_has_both() {
        let rules = example::facts().hba;
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
    fn the_whole_list_is_spelled_out_when_the_resource_has_none() {
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
    fn a_resource_that_asks_for_it_already_is_not_patched_again() {
        let mut spec = PostgresqlSpec::default();
        let change = patch(&spec, &both(), RUNNING).unwrap();
        spec = serde_json::from_value(change["spec"].clone()).unwrap();
        assert_eq!(patch(&spec, &both(), RUNNING), None);
    }
}
