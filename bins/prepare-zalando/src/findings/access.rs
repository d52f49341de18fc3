//! Whether the target will be let in: TLS, the role, its password, pg_hba, and free places for its
//! connections.

use job::config::SslMode;

use super::{Finding, some};
use crate::{
    facts::{Facts, Login, Password, Tls},
    hba::{self, Verdict},
    roles,
    scram::Kind,
    settings::{REPLICATION_SECRET, Settings, SourceAuth},
};

/// pg_basebackup opens one walsender for the data and one for the WAL.
const SENDERS_NEEDED: u32 = 2;
const STANDBY_INSTEAD: &str = "use SOURCE_AUTH=standby, which needs no change at the source";

pub(super) fn findings(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    [
        tls(facts),
        role(facts, settings),
        cnpg_roles(facts, settings),
        password(facts),
        hba(facts, settings),
        room(facts),
        way_back(facts),
    ]
    .concat()
}

/// A certificate was given to be checked: an expired one, or one of a foreign CA, is not quietly
/// waved through. Known before the first connection, and so before a password is shown to anybody.
pub fn unverified(tls: &Tls) -> Option<Finding> {
    let broken = tls.given && tls.sslmode == SslMode::Require && tls.asked != SslMode::Require;
    let remedy = "mend the secrets of spec.tls; or set SOURCE_SSLMODE=require in the ConfigMap \
        replica-migration to go on without a check";
    broken.then(|| Finding::blocker("TlsUnverified", tls.reason.clone(), remedy))
}

fn tls(facts: &Facts) -> Vec<Finding> {
    let (tls, mode) = (&facts.tls, facts.tls.sslmode.as_str());
    if let Some(blocker) = unverified(tls) {
        return vec![blocker];
    }
    let told = format!("{}; the manifest gets sslmode {mode}", tls.reason);
    match tls.sslmode {
        SslMode::VerifyFull => vec![],
        _ if tls.asked != tls.sslmode => vec![Finding::warning(
            "TlsWeaker",
            told,
            format!(
                "set SOURCE_SSLMODE={mode} in the ConfigMap replica-migration for the other steps, \
                 or a SOURCE_HOST that is covered"
            ),
        )],
        _ => vec![Finding::warning(
            "TlsWeaker",
            told,
            "nothing, if the network between the two is trusted; else give the source a \
             certificate by spec.tls",
        )],
    }
}

fn role(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let name = &facts.login.role;
    let Some(role) = facts.role(name) else {
        return match settings.source_auth {
            SourceAuth::StreamingReplica => vec![],
            SourceAuth::Standby => {
                let what = format!("the source has no role {name}, which the operator makes");
                vec![Finding::blocker(
                    "RoleMissing",
                    what,
                    "let the operator finish a sync of the resource, or use \
                     SOURCE_AUTH=streaming_replica",
                )]
            }
        };
    };
    let mut lacks = vec![];
    lacks.extend((!role.login).then_some("login"));
    lacks.extend((!role.replication).then_some("replication"));
    if !lacks.is_empty() && (settings.source_auth == SourceAuth::Standby) {
        let what = format!("role {name} lacks {}", lacks.join(" and "));
        return vec![Finding::blocker(
            "RoleUnfit",
            what,
            format!("alter role {name} {}", lacks.join(" ")),
        )];
    }
    if role.expired {
        let what = format!("the password of role {name} has expired (valid until)");
        return vec![Finding::blocker(
            "RoleExpired",
            what,
            format!("alter role {name} valid until 'infinity'"),
        )];
    }
    vec![]
}

fn cnpg_roles(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let obstacles = roles::obstacles(&facts.cnpg_roles, settings.source_auth);
    obstacles
        .into_iter()
        .map(|(what, remedy)| Finding::blocker("RoleForeign", what, remedy))
        .collect()
}

fn password(facts: &Facts) -> Vec<Finding> {
    let Login { role, password } = &facts.login;
    match password {
        Password::Matches => vec![],
        Password::Differs => vec![Finding::blocker(
            "PasswordDiffers",
            format!("the secret at hand does not hold the password of role {role}"),
            "if its password was changed by hand, put it into the operator's secret of that role; \
             a secret that this step made may simply be deleted",
        )],
        Password::Unset if role == SourceAuth::Standby.role() => vec![Finding::blocker(
            "PasswordUnset",
            format!("role {role} has no password"),
            "let the operator finish a sync of the resource",
        )],
        Password::NoSecret if role == SourceAuth::Standby.role() => vec![Finding::blocker(
            "SecretMissing",
            format!("there is no secret of role {role}"),
            "let the operator finish a sync of the resource; it makes the secret",
        )],
        // streaming_replica gets both from this step.
        Password::Unset | Password::NoSecret => vec![],
    }
}

fn hba(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let role = &facts.login.role;
    let (blocked, standby) = (
        |reason, what: String, remedy: &str| vec![Finding::blocker(reason, what, remedy)],
        STANDBY_INSTEAD,
    );
    let broken: Vec<String> = facts
        .hba
        .iter()
        .filter_map(|rule| Some(format!("line {}: {}", rule.line, rule.error.as_ref()?)))
        .collect();
    if !broken.is_empty() {
        let what = format!("the server cannot use its pg_hba.conf ({})", some(&broken));
        return blocked(
            "HbaBroken",
            what,
            "mend spec.patroni.pg_hba of the postgresql resource",
        );
    }
    match (hba::replication(&facts.hba, role), settings.source_auth) {
        (Verdict::Admitted(rule) | Verdict::AdmittedFrom(rule), SourceAuth::Standby)
            if rule.method == "scram-sha-256"
                && facts
                    .role(role)
                    .is_some_and(|role| role.hash == Some(Kind::Md5)) =>
        {
            let what = format!(
                "pg_hba line {} asks {role} for scram-sha-256, and its password is stored as md5",
                rule.line
            );
            blocked(
                "HbaMethod",
                what,
                "let the operator store it anew, or use md5 in that line: it accepts both",
            )
        }
        (Verdict::Admitted(_), _) => vec![],
        (Verdict::AdmittedFrom(rule), _) => {
            let from = rule.address.as_deref().unwrap_or("");
            let what = format!("pg_hba line {} admits {role} from {from} only", rule.line);
            vec![Finding::warning(
                "HbaNarrow",
                what,
                "make sure that the target's pods get such addresses",
            )]
        }
        (Verdict::Rejected(rule), _) => {
            let what = format!("pg_hba line {} rejects replication by {role}", rule.line);
            blocked(
                "HbaRejects",
                what,
                "change spec.patroni.pg_hba of the postgresql resource; that rolls the source's \
                 pods",
            )
        }
        (Verdict::Unmentioned, SourceAuth::Standby) => {
            let what = format!("pg_hba has no line that admits {role} for replication over tls");
            blocked(
                "HbaMissing",
                what,
                "add \"hostssl replication standby all md5\" to spec.patroni.pg_hba; that rolls \
                 the source's pods",
            )
        }
        (Verdict::Unmentioned, SourceAuth::StreamingReplica) if facts.resource.frozen => {
            let what =
                format!("pg_hba must admit {role}, and the operator is frozen for this resource");
            blocked(
                "OperatorFrozen",
                what,
                "remove the annotation acid.zalan.do/controller",
            )
        }
        (Verdict::Unmentioned, SourceAuth::StreamingReplica)
            if !settings.allow_source_rolling_update =>
        {
            let what = format!(
                "pg_hba must admit {role}, and changing it restarts every pod of the source, one \
                 after the other, with a switchover"
            );
            blocked(
                "RollingUpdate",
                what,
                &format!("set ALLOW_SOURCE_ROLLING_UPDATE=true in a quiet hour, or {standby}"),
            )
        }
        (Verdict::Unmentioned, SourceAuth::StreamingReplica) => {
            let what = format!(
                "the source's pods will be restarted one after the other, because pg_hba must \
                 admit {role}"
            );
            vec![Finding::warning(
                "RollingUpdate",
                what,
                format!("nothing, it was allowed; or {standby}"),
            )]
        }
    }
}

fn room(facts: &Facts) -> Vec<Finding> {
    // Places that Patroni's own members need belong to them, also while one of them is down.
    let members = facts.members.saturating_sub(1);
    let senders = facts
        .number("max_wal_senders")
        .saturating_sub(u64::from(facts.server.senders.max(members)));
    let slots = facts
        .number("max_replication_slots")
        .saturating_sub(u64::from(facts.server.slots.max(members)));
    if facts.server.target_streams {
        return vec![];
    }
    let mut found = vec![];
    if senders < u64::from(SENDERS_NEEDED) {
        let what = format!(
            "{senders} of {} max_wal_senders are free, the copy needs {SENDERS_NEEDED}",
            facts.setting("max_wal_senders")
        );
        found.push(Finding::blocker(
            "WalSenders",
            what,
            "raise max_wal_senders in the postgresql resource; that restarts the source's servers",
        ));
    }
    if slots < 1 {
        let what = format!(
            "none of {} max_replication_slots is free, the copy needs one while it runs",
            facts.setting("max_replication_slots")
        );
        found.push(Finding::blocker(
            "Slots",
            what,
            "drop slots that nobody uses, or raise max_replication_slots in the postgresql \
             resource",
        ));
    }
    found
}

fn way_back(facts: &Facts) -> Vec<Finding> {
    let lists = facts.resource.pg_hba.is_some();
    let what =
        "the postgresql resource has a pg_hba list of its own, which the target does not inherit";
    let remedy =
        "compare it with spec.postgresql.pg_hba of the manifest and add what applications need";
    lists
        .then(|| Finding::warning("OwnHba", what, remedy))
        .into_iter()
        .collect()
}

/// The Secret that the target logs in with, for messages.
pub fn secret(settings: &Settings) -> String {
    match settings.source_auth {
        SourceAuth::Standby => platform::kubernetes::zalando::credentials_secret(
            &settings.source_cluster,
            SourceAuth::Standby.role(),
        ),
        SourceAuth::StreamingReplica => REPLICATION_SECRET.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        example,
        findings::{Weight, reasons},
    };

    fn expect(facts: &Facts, settings: &Settings, weight: Weight, reason: &'static str) {
        let found = reasons(facts, settings);
        assert!(
            found.contains(&(weight, reason)),
            "{reason} is not in {found:?}"
        );
    }

    #[test]
    fn streaming_replica_is_refused_until_the_rolling_update_is_allowed() {
        let (mut facts, mut settings) = (example::facts(), example::settings());
        settings.source_auth = SourceAuth::StreamingReplica;
        facts.login = Login {
            role: "streaming_replica".into(),
            password: Password::NoSecret,
        };
        expect(&facts, &settings, Weight::Blocker, "RollingUpdate");
        settings.allow_source_rolling_update = true;
        expect(&facts, &settings, Weight::Warning, "RollingUpdate");
        facts.resource.frozen = true;
        expect(&facts, &settings, Weight::Blocker, "OperatorFrozen");
    }

    #[test]
    fn a_role_that_would_not_be_let_in_blocks() {
        let (facts, settings) = (example::facts(), example::settings());
        let with = |change: fn(&mut Facts), reason| {
            let mut facts = facts.clone();
            change(&mut facts);
            expect(&facts, &settings, Weight::Blocker, reason);
        };
        with(
            |f| f.hba.retain(|rule| rule.databases != ["replication"]),
            "HbaMissing",
        );
        with(|f| f.hba[0].method = "reject".into(), "HbaRejects");
        with(|f| f.hba[0].method = "scram-sha-256".into(), "HbaMethod");
        with(|f| f.hba[2].error = Some("invalid".into()), "HbaBroken");
        with(
            |f| f.roles.retain(|role| role.name != "standby"),
            "RoleMissing",
        );
        with(|f| f.roles[1].replication = false, "RoleUnfit");
        with(|f| f.roles[1].expired = true, "RoleExpired");
        with(|f| f.login.password = Password::Differs, "PasswordDiffers");
        with(|f| f.login.password = Password::Unset, "PasswordUnset");
        with(|f| f.login.password = Password::NoSecret, "SecretMissing");
        with(|f| f.server.senders = 9, "WalSenders");
        with(|f| f.server.slots = 10, "Slots");
    }

    #[test]
    fn a_target_that_streams_already_needs_no_more_room() {
        let (mut facts, settings) = (example::facts(), example::settings());
        (
            facts.server.senders,
            facts.server.slots,
            facts.server.target_streams,
        ) = (10, 10, true);
        assert!(
            reasons(&facts, &settings)
                .iter()
                .all(|(weight, _)| *weight == Weight::Warning)
        );
    }

    #[test]
    fn a_certificate_that_fails_its_check_blocks_unless_the_check_was_given_up() {
        let (mut facts, settings) = (example::facts(), example::settings());
        facts.tls.sslmode = SslMode::Require;
        expect(&facts, &settings, Weight::Blocker, "TlsUnverified");
        facts.tls.asked = SslMode::Require;
        expect(&facts, &settings, Weight::Warning, "TlsWeaker");
        facts.tls = Tls {
            sslmode: SslMode::VerifyCa,
            asked: SslMode::VerifyFull,
            ..facts.tls
        };
        expect(&facts, &settings, Weight::Warning, "TlsWeaker");
    }
}
