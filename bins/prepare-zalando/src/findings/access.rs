//! Findings about access to the source: TLS, the replication role, its password, pg_hba, and free
//! WAL senders and replication slots.

use job::config::SslMode;
use platform::kubernetes::zalando;
use protocol::{
    checks::prepare::Id,
    finding::{Finding, listed},
};

use super::{blocker, decide, handled};
use crate::{
    cnpg_roles,
    facts::{Facts, Login, Password, Tls},
    hba::{self, Admission, Rule},
    settings::{REPLICATION_SECRET, Settings, SourceAuth},
    stored_password::Kind,
};

/// pg_basebackup opens one WAL sender for the data and one for the WAL.
const SENDERS_NEEDED: u64 = 2;
const STANDBY_INSTEAD: &str = "use SOURCE_AUTH=standby, which needs no change at the source";

pub(super) fn findings(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    [
        tls(facts),
        role(facts, settings),
        cnpg_roles(facts, settings),
        password(facts, settings),
        hba(facts, settings),
        capacity(facts),
        custom_hba(facts),
    ]
    .concat()
}

/// A blocker if `spec.tls` names a certificate that fails verification, and verification was not
/// given up by SOURCE_SSLMODE=require. It needs no connection, so it is asked before a password is
/// sent to the server.
pub fn unverified(tls: &Tls) -> Option<Finding> {
    let fails = tls.given && tls.sslmode == SslMode::Require && tls.asked != SslMode::Require;
    let hint = "fix the Secrets of spec.tls; or set SOURCE_SSLMODE=require in the ConfigMap \
        replica-migration to continue without verification";
    fails.then(|| blocker(Id::TlsUnverified, "", tls.reason.clone(), hint))
}

fn tls(facts: &Facts) -> Vec<Finding> {
    let (tls, mode) = (&facts.tls, facts.tls.sslmode.as_str());
    if let Some(blocker) = unverified(tls) {
        return vec![blocker];
    }
    let found = format!("{}; the manifest gets sslmode {mode}", tls.reason);
    if tls.sslmode == SslMode::VerifyFull {
        vec![]
    } else if tls.asked == tls.sslmode {
        vec![handled(
            Id::TlsWeaker,
            "",
            found,
            "as SOURCE_SSLMODE requests",
        )]
    } else {
        let hint = format!(
            "set SOURCE_SSLMODE={mode} in the ConfigMap replica-migration for the other steps, or \
             a SOURCE_HOST that the certificate covers"
        );
        vec![decide(Id::TlsWeaker, "", found, hint)]
    }
}

fn role(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let name = facts.login.role.as_str();
    let standby = settings.source_auth == SourceAuth::Standby;
    let Some(role) = facts.role(name) else {
        // This program creates streaming_replica.
        return standby
            .then(|| {
                blocker(
                    Id::ReplicationRoleMissing,
                    name,
                    format!("the source has no role {name}, which the operator creates"),
                    "let the operator finish a sync of the resource, or use \
                     SOURCE_AUTH=streaming_replica",
                )
            })
            .into_iter()
            .collect();
    };
    let mut missing = vec![];
    missing.extend((!role.login).then_some("login"));
    missing.extend((!role.replication).then_some("replication"));
    if !missing.is_empty() && standby {
        return vec![blocker(
            Id::ReplicationRoleAttributes,
            name,
            format!("role {name} lacks {}", missing.join(" and ")),
            format!("alter role {name} {}", missing.join(" ")),
        )];
    }
    if role.expired {
        return vec![blocker(
            Id::ReplicationRoleExpired,
            name,
            format!("the password of role {name} has expired (VALID UNTIL)"),
            format!("alter role {name} valid until 'infinity'"),
        )];
    }
    vec![]
}

fn cnpg_roles(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    cnpg_roles::conflicts(&facts.cnpg_roles, settings.source_auth)
        .into_iter()
        .map(|conflict| {
            blocker(
                Id::CnpgRoleConflict,
                conflict.object,
                conflict.found,
                conflict.hint,
            )
        })
        .collect()
}

fn password(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let Login { role, password } = &facts.login;
    let standby = settings.source_auth == SourceAuth::Standby;
    let secret = secret(settings);
    let unusable = |id, found, hint| vec![blocker(id, role, found, hint)];
    match password {
        Password::Matches => vec![],
        Password::Differs => unusable(
            Id::ReplicationPasswordDiffers,
            format!("secret {secret} does not hold the password of role {role}"),
            "if the password was changed by hand, put it into the operator's Secret of that role; \
             a Secret that this program wrote can be deleted",
        ),
        Password::Unset if standby => unusable(
            Id::ReplicationPasswordUnset,
            format!("role {role} has no password"),
            "let the operator finish a sync of the resource",
        ),
        Password::NoSecret if standby => unusable(
            Id::ReplicationSecretMissing,
            format!("secret {secret} of role {role} does not exist, or holds no password of it"),
            "let the operator finish a sync of the resource; it creates the Secret",
        ),
        // This program sets the password of streaming_replica and writes its Secret.
        Password::Unset | Password::NoSecret => vec![],
    }
}

fn hba(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let role = facts.login.role.as_str();
    let invalid: Vec<String> = facts
        .hba
        .iter()
        .filter_map(|rule| Some(format!("line {}: {}", rule.line, rule.error.as_ref()?)))
        .collect();
    if !invalid.is_empty() {
        return vec![blocker(
            Id::PgHbaInvalid,
            "",
            format!(
                "the server cannot use its pg_hba.conf ({})",
                listed(&invalid)
            ),
            "fix spec.patroni.pg_hba of the postgresql resource",
        )];
    }
    match hba::replication(&facts.hba, role) {
        Admission::Admitted(rule) if md5_against_scram(facts, settings, rule) => {
            vec![scram_required(role, rule)]
        }
        Admission::AdmittedFrom(rule) if md5_against_scram(facts, settings, rule) => {
            vec![scram_required(role, rule)]
        }
        Admission::Admitted(_) => vec![],
        Admission::AdmittedFrom(rule) => {
            let from = rule.address.as_deref().unwrap_or("");
            vec![decide(
                Id::PgHbaAddress,
                role,
                format!("pg_hba line {} admits {role} only from {from}", rule.line),
                "make sure that the target's pods get such addresses",
            )]
        }
        Admission::Rejected(rule) => vec![blocker(
            Id::PgHbaRejects,
            role,
            format!("pg_hba line {} rejects replication by {role}", rule.line),
            format!(
                "change spec.patroni.pg_hba of the postgresql resource; {}",
                restart(facts)
            ),
        )],
        Admission::NoMatch => match settings.source_auth {
            SourceAuth::Standby => vec![blocker(
                Id::PgHbaMissing,
                role,
                format!("pg_hba has no line that admits {role} for replication over TLS"),
                format!(
                    "add \"hostssl replication standby all md5\" to spec.patroni.pg_hba of the \
                     postgresql resource; {}",
                    restart(facts)
                ),
            )],
            SourceAuth::StreamingReplica => vec![rolling_update(facts, settings)],
        },
    }
}

/// The operator's role has an md5 hash, and the deciding line accepts SCRAM only.
fn md5_against_scram(facts: &Facts, settings: &Settings, rule: &Rule) -> bool {
    let role = facts.role(&facts.login.role);
    settings.source_auth == SourceAuth::Standby
        && rule.method == "scram-sha-256"
        && role.is_some_and(|role| role.hash == Some(Kind::Md5))
}

fn scram_required(role: &str, rule: &Rule) -> Finding {
    blocker(
        Id::PgHbaMethod,
        role,
        format!(
            "pg_hba line {} requires scram-sha-256 of {role}, whose password is stored as md5",
            rule.line
        ),
        "let the operator store the password again, or use md5 in that line: it accepts both",
    )
}

/// What a line for streaming_replica takes: the operator recreates the source's pods for it.
fn rolling_update(facts: &Facts, settings: &Settings) -> Finding {
    let role = facts.login.role.as_str();
    if facts.resource.suspended {
        blocker(
            Id::OperatorSuspended,
            "pg_hba",
            format!("pg_hba must admit {role}, but the operator is suspended for this resource"),
            "remove the annotation acid.zalan.do/controller",
        )
    } else if settings.allow_source_rolling_update {
        handled(
            Id::RollingUpdate,
            "",
            format!("pg_hba must admit {role}, and {}", restart(facts)),
            format!("ALLOW_SOURCE_ROLLING_UPDATE allows it; or {STANDBY_INSTEAD}"),
        )
    } else {
        blocker(
            Id::RollingUpdate,
            "",
            format!("pg_hba must admit {role}, and {}", restart(facts)),
            format!("set ALLOW_SOURCE_ROLLING_UPDATE=true at a quiet time, or {STANDBY_INSTEAD}"),
        )
    }
}

/// What a change of pg_hba in the resource costs.
fn restart(facts: &Facts) -> &'static str {
    match facts.members {
        1 => {
            "that change restarts the only pod of the source, an outage of the application until \
             it is back"
        }
        _ => "that change restarts every pod of the source, one after the other, with a switchover",
    }
}

fn capacity(facts: &Facts) -> Vec<Finding> {
    if facts.server.target_streams {
        return vec![];
    }
    // Patroni's other members keep what they need, even while one of them is down.
    let members = facts.members.saturating_sub(1);
    let free = |limit: &str, used: u32| {
        facts
            .number(limit)
            .saturating_sub(u64::from(used.max(members)))
    };
    let senders = free("max_wal_senders", facts.server.senders);
    let slots = free("max_replication_slots", facts.server.slots);
    let mut found = vec![];
    if senders < SENDERS_NEEDED {
        found.push(blocker(
            Id::FreeWalSenders,
            "",
            format!(
                "{senders} of {} max_wal_senders are free, the copy needs {SENDERS_NEEDED}",
                facts.setting("max_wal_senders")
            ),
            "raise max_wal_senders in the postgresql resource; that restarts the source's servers",
        ));
    }
    if slots < 1 {
        found.push(blocker(
            Id::FreeReplicationSlots,
            "",
            format!(
                "none of {} max_replication_slots is free, and the copy needs one while it runs",
                facts.setting("max_replication_slots")
            ),
            "drop unused slots, or raise max_replication_slots in the postgresql resource",
        ));
    }
    found
}

/// The lines about clients are taken over. What the target cannot decide as the source does is for
/// a person.
fn custom_hba(facts: &Facts) -> Vec<Finding> {
    let left_out = facts.clients().left_out;
    if left_out.is_empty() {
        return match &facts.resource.pg_hba {
            None => vec![],
            Some(_) => vec![handled(
                Id::CustomPgHba,
                "",
                "the postgresql resource has a pg_hba list of its own",
                "the manifest takes over the lines about clients, in their order",
            )],
        };
    }
    vec![decide(
        Id::CustomPgHba,
        "",
        format!(
            "the target does not get these lines of pg_hba, so clients that only they admit cannot \
             log in there: {}",
            listed(&left_out)
        ),
        "give their clients another method beforehand, or add lines that the target can use \
         (spec.postgresql.pg_hba in TARGET_PATCH)",
    )]
}

/// Name of the Secret whose password the target will log in with.
pub fn secret(settings: &Settings) -> String {
    match settings.source_auth {
        SourceAuth::Standby => {
            zalando::credentials_secret(&settings.source_cluster, SourceAuth::Standby.role())
        }
        SourceAuth::StreamingReplica => REPLICATION_SECRET.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        findings::{Verdict, assert_found, labels},
        fixture,
    };

    #[test]
    fn streaming_replica_is_refused_until_a_rolling_update_is_allowed() {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        settings.source_auth = SourceAuth::StreamingReplica;
        facts.login = Login {
            role: "streaming_replica".into(),
            password: Password::NoSecret,
        };
        assert_found(&facts, &settings, Verdict::Blocker, "rolling-update");
        settings.allow_source_rolling_update = true;
        assert_found(&facts, &settings, Verdict::Handled, "rolling-update");
        facts.resource.suspended = true;
        assert_found(
            &facts,
            &settings,
            Verdict::Blocker,
            "operator-suspended:pg_hba",
        );
    }

    #[test]
    fn a_replication_role_that_could_not_log_in_blocks() {
        let (facts, settings) = (fixture::facts(), fixture::settings());
        let with = |change: fn(&mut Facts), label| {
            let mut facts = facts.clone();
            change(&mut facts);
            assert_found(&facts, &settings, Verdict::Blocker, label);
        };
        with(
            |f| f.hba.retain(|rule| rule.databases != ["replication"]),
            "pg-hba-missing:standby",
        );
        with(
            |f| f.hba[0].method = "reject".into(),
            "pg-hba-rejects:standby",
        );
        with(
            |f| f.hba[0].method = "scram-sha-256".into(),
            "pg-hba-method:standby",
        );
        with(
            |f| f.hba[2].error = Some("invalid".into()),
            "pg-hba-invalid",
        );
        with(
            |f| f.roles.retain(|role| role.name != "standby"),
            "replication-role-missing:standby",
        );
        with(
            |f| f.roles[1].replication = false,
            "replication-role-attributes:standby",
        );
        with(
            |f| f.roles[1].expired = true,
            "replication-role-expired:standby",
        );
        with(
            |f| f.login.password = Password::Differs,
            "replication-password-differs:standby",
        );
        with(
            |f| f.login.password = Password::Unset,
            "replication-password-unset:standby",
        );
        with(
            |f| f.login.password = Password::NoSecret,
            "replication-secret-missing:standby",
        );
        with(|f| f.server.senders = 9, "free-wal-senders");
        with(|f| f.server.slots = 10, "free-replication-slots");
    }

    #[test]
    fn a_target_that_streams_already_needs_no_more_senders_and_slots() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        (facts.server.senders, facts.server.slots) = (10, 10);
        facts.server.target_streams = true;
        let found = labels(&facts, &settings);
        assert!(
            found
                .iter()
                .all(|(verdict, _)| *verdict != Verdict::Blocker),
            "{found:?}"
        );
    }

    #[test]
    fn a_certificate_that_fails_verification_blocks_unless_verification_was_given_up() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        facts.tls.sslmode = SslMode::Require;
        assert_found(&facts, &settings, Verdict::Blocker, "tls-unverified");
        facts.tls.asked = SslMode::Require;
        assert_found(&facts, &settings, Verdict::Handled, "tls-weaker");
        facts.tls = Tls {
            sslmode: SslMode::VerifyCa,
            asked: SslMode::VerifyFull,
            ..facts.tls
        };
        assert_found(&facts, &settings, Verdict::Decide, "tls-weaker");
    }

    #[test]
    fn lines_that_the_target_cannot_decide_are_named() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        facts.resource.pg_hba = Some(vec!["hostssl all all all md5".into()]);
        assert_found(&facts, &settings, Verdict::Handled, "custom-pg-hba");
        facts.hba[2].options = vec!["clientcert=verify-ca".into()];
        assert_found(&facts, &settings, Verdict::Decide, "custom-pg-hba");
        let found = custom_hba(&facts).remove(0).found;
        assert!(
            found.ends_with("hostssl all all all md5 clientcert=verify-ca"),
            "{found}"
        );
    }
}
