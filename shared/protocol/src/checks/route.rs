//! What must hold for a cut by the Services: the source's poolers can be paused, its Services can
//! be turned, and everybody can still log in afterwards.

use std::collections::BTreeMap;

use super::{Finding, Verdict, listed};
use crate::snapshot::kubernetes::ServiceState;

/// PostgreSQL's port, on which the target's pods listen.
const PORT: i32 = 5432;

/// A pod of a pooler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// Its name.
    pub pod: String,
    /// Whether its clients are held back already, or why its console does not answer.
    pub paused: Result<bool, String>,
}

/// Every pod of the poolers answers on its console and lets its clients through.
pub fn poolers(seen: &[Pooler]) -> Finding {
    let finding = Finding::ok(
        "poolers",
        "every console answers, none is paused",
        match seen.len() {
            0 => "none: sessions at the source's Services end once".to_owned(),
            pods => format!("{pods} pods, none paused: their clients wait and notice nothing else"),
        },
    );
    let paused: Vec<String> = seen
        .iter()
        .filter(|one| one.paused == Ok(true))
        .map(|one| one.pod.clone())
        .collect();
    if !paused.is_empty() {
        let found = format!("paused: {}", listed(&paused));
        return Finding { found, ..finding }.but(
            Verdict::Blocker,
            "somebody has paused them, or a cutover that was stopped: run cutover again, or RESUME \
             on their consoles",
        );
    }
    let silent: Vec<String> = seen
        .iter()
        .filter_map(|one| Some(format!("{}: {}", one.pod, one.paused.as_ref().err()?)))
        .collect();
    if silent.is_empty() {
        return finding;
    }
    let found = format!("no answer from {}", listed(&silent));
    Finding { found, ..finding }.but(
        Verdict::NotYet,
        "wait for the pods; if they stay silent, look at their log and at NetworkPolicies, or set \
         ROUTE=config",
    )
}

/// How the poolers hand out their connections; None when the operator's default, transaction,
/// holds.
pub fn pool_mode(mode: Option<&str>) -> Finding {
    let mode = mode.unwrap_or("transaction");
    let finding = Finding::ok("pool mode", "transaction", mode);
    if mode == "transaction" {
        return finding;
    }
    finding.but(
        Verdict::Warning,
        "a session pooler is paused only when its clients have left: after PAUSE_MAX_SECONDS their \
         sessions are ended and they see one error",
    )
}

/// The Services exist, and their port leads to the target's.
pub fn services(wanted: &[String], seen: &BTreeMap<String, ServiceState>) -> Finding {
    let spelled = |name: &String| match seen.get(name) {
        None => format!("no {name}"),
        Some(service) if service.port == Some(PORT) => format!("{name} can be turned"),
        Some(_) => format!("{name} does not lead to port {PORT} alone"),
    };
    let found: Vec<String> = wanted.iter().map(spelled).collect();
    let finding = Finding::ok(
        "services",
        format!("each with one port that leads to {PORT}"),
        found.join(", "),
    );
    let leads =
        |service: Option<&ServiceState>| service.is_none_or(|service| service.port == Some(PORT));
    let first = wanted.first().and_then(|name| seen.get(name));
    match first.is_some() && wanted.iter().all(|name| leads(seen.get(name))) {
        true => finding,
        false => finding.but(
            Verdict::Blocker,
            "the Service behind the poolers cannot be turned as it is: set ROUTE=config",
        ),
    }
}

/// The owner's stored hash is the one that CloudNativePG sets at the promotion; otherwise poolers
/// that know the old one drop every client
/// (docs/operators/cloudnative-pg.md#passwords-at-promotion). `kept` is the Secret's, None when it
/// cannot be read.
pub fn owner_hash(owner: &str, stored: Option<&str>, kept: Option<&str>) -> Finding {
    let wanted = "the same in the database and in the Secret of the Cluster's bootstrap";
    let found = match (stored, kept) {
        (Some(stored), Some(kept)) if stored == kept => {
            return Finding::ok(
                "owner's password",
                wanted,
                format!("{owner}: kept as it is"),
            );
        }
        (Some(_), Some(_)) => format!("{owner}: it has been set anew since prepare-zalando"),
        (None, _) => format!("{owner}: the role has none, or does not exist"),
        (_, None) => format!("{owner}: the Secret is not there"),
    };
    Finding::ok("owner's password", wanted, found).but(
        Verdict::Blocker,
        "run prepare-zalando again: it writes the hash as it is now; the Zalando operator 2.x \
         salts it anew at each sync",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooler(paused: Result<bool, String>) -> Pooler {
        Pooler {
            pod: "pg-pooler-1".into(),
            paused,
        }
    }

    #[test]
    fn poolers_answer_and_are_not_paused_by_anybody() {
        assert_eq!(poolers(&[]).verdict, Verdict::Ok);
        assert_eq!(poolers(&[pooler(Ok(false))]).verdict, Verdict::Ok);
        assert_eq!(
            poolers(&[pooler(Ok(false)), pooler(Ok(true))]).verdict,
            Verdict::Blocker
        );
        assert_eq!(
            poolers(&[pooler(Err("refused".into()))]).verdict,
            Verdict::NotYet
        );
        assert_eq!(pool_mode(None).verdict, Verdict::Ok);
        assert_eq!(pool_mode(Some("session")).verdict, Verdict::Warning);
    }

    #[test]
    fn services_lead_to_the_targets_port() {
        let leading = |port| ServiceState {
            port,
            ..ServiceState::default()
        };
        let names = ["pg".to_owned(), "pg-repl".to_owned()];
        let both = |repl| {
            BTreeMap::from([
                ("pg".to_owned(), leading(Some(5432))),
                ("pg-repl".to_owned(), leading(repl)),
            ])
        };
        assert_eq!(services(&names, &both(Some(5432))).verdict, Verdict::Ok);
        assert_eq!(
            services(&names, &both(Some(6432))).verdict,
            Verdict::Blocker
        );
        let without_replicas = BTreeMap::from([("pg".to_owned(), leading(Some(5432)))]);
        assert_eq!(services(&names, &without_replicas).verdict, Verdict::Ok);
        assert_eq!(services(&names, &BTreeMap::new()).verdict, Verdict::Blocker);
    }

    #[test]
    fn a_hash_that_has_changed_is_a_blocker_and_is_never_said() {
        assert_eq!(
            owner_hash("app", Some("md5a"), Some("md5a")).verdict,
            Verdict::Ok
        );
        for (stored, kept) in [
            (Some("md5a"), Some("md5b")),
            (None, Some("md5a")),
            (Some("md5a"), None),
        ] {
            let finding = owner_hash("app", stored, kept);
            assert_eq!(finding.verdict, Verdict::Blocker);
            assert!(!finding.to_string().contains("md5"), "{finding}");
        }
    }
}
