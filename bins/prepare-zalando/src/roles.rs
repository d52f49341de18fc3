//! What CloudNativePG's replicas, metrics and poolers log in as. It makes these roles itself, but
//! only on a primary, and for some of it only at that primary's next start: on the target they must
//! come from the source (facts/cnpg.md §2.6, §7, §9).
//!
//! [`plan`] compares what is there with what is needed. An empty plan is both "nothing to do" and
//! "it was done".

use crate::{hidden::Hidden, settings::SourceAuth};

/// Marks a role as made by this step: it may be changed later; others are left alone.
pub const MARK: &str = "made by replica-migration for CloudNativePG";
/// CloudNativePG's name for the role of its replicas.
pub const REPLICA: &str = "streaming_replica";
/// Its name for the role of its metrics exporter.
pub const EXPORTER: &str = "cnpg_metrics_exporter";
/// Its name for the role that its poolers look passwords up with.
pub const POOLER: &str = "cnpg_pooler_pgbouncer";
/// What pg_rewind calls when a replica that was ahead rejoins (PostgreSQL documentation, pg_rewind,
/// *Notes*).
pub const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];
/// Body of the lookup function. CloudNativePG compares the text with its own and replaces the
/// function when a letter differs.
pub const LOOKUP_BODY: &str = "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=$1;";

/// What is there, read from database postgres.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The role of the replicas.
    pub replica: Option<RoleSeen>,
    /// The role of the exporter.
    pub exporter: Option<RoleSeen>,
    /// The role of the poolers.
    pub pooler: Option<RoleSeen>,
    /// Those of [`REWIND_FUNCTIONS`] that the replicas' role may not call.
    pub rewind_missing: Vec<String>,
    /// The exporter's role is a member of pg_monitor.
    pub monitors: bool,
    /// The poolers' role may connect to database postgres and use schema public.
    pub pooler_enters: bool,
    /// public.user_search(text).
    pub lookup: Option<LookupSeen>,
}

/// A role that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleSeen {
    /// It carries [`MARK`].
    pub ours: bool,
    /// LOGIN.
    pub login: bool,
    /// REPLICATION.
    pub replication: bool,
    /// SUPERUSER.
    pub superuser: bool,
}

/// The lookup function that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookupSeen {
    /// Its owner is a superuser.
    pub owned_by_superuser: bool,
    /// Text, SECURITY DEFINER and a search_path of its own are as they should be.
    pub right: bool,
    /// Everybody may call it.
    pub open: bool,
    /// The poolers' role may call it.
    pub callable: bool,
}

/// A statement, and what it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// For the log.
    pub what: String,
    /// Contains a verifier at most; not for the log all the same.
    pub sql: Hidden,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

fn change(what: impl Into<String>, sql: impl Into<String>) -> Change {
    Change {
        what: what.into(),
        sql: Hidden::new(sql),
    }
}

/// Why the plan cannot be carried out: roles and functions that are somebody else's and not what is
/// needed.
pub fn obstacles(seen: &Seen, auth: SourceAuth) -> Vec<(String, String)> {
    let mut found = vec![];
    let foreign = |role: &Option<RoleSeen>| role.clone().filter(|role| !role.ours);
    if let Some(role) = foreign(&seen.replica).filter(|role| !role.login || !role.replication) {
        let lacks = if role.login { "replication" } else { "login" };
        found.push((
            format!("role {REPLICA} exists, is not of this step, and lacks {lacks}"),
            format!("alter role {REPLICA} login replication"),
        ));
    }
    for (name, role) in [(EXPORTER, &seen.exporter), (POOLER, &seen.pooler)] {
        if foreign(role).is_some_and(|role| !role.login) {
            found.push((
                format!("role {name} exists, is not of this step, and may not log in"),
                format!("alter role {name} login"),
            ));
        }
    }
    if seen
        .lookup
        .as_ref()
        .is_some_and(|lookup| !lookup.owned_by_superuser)
    {
        let what = "function public.user_search(text) exists and its owner is no superuser: \
            CloudNativePG's poolers would trust it";
        found.push((what.into(), "find out whose it is, then drop it".into()));
    }
    // Without a password of its own nobody can log in as it, so only the role that the target uses
    // must be fit for that.
    if auth == SourceAuth::StreamingReplica
        && seen.replica.as_ref().is_some_and(|role| role.superuser)
    {
        found.push((
            format!("role {REPLICA} is a superuser"),
            format!("alter role {REPLICA} nosuperuser"),
        ));
    }
    found
}

/// What is missing. `verifier` is set when the replicas' role needs a password that it does not
/// have yet.
pub fn plan(seen: &Seen, verifier: Option<&Hidden>) -> Vec<Change> {
    let mut plan = replica(seen);
    if let Some(verifier) = verifier {
        plan.push(change(
            format!("password of role {REPLICA} set, as a verifier"),
            format!("alter role {REPLICA} password '{}'", verifier.reveal()),
        ));
    }
    plan.extend(exporter(seen));
    plan.extend(pooler(seen));
    plan
}

fn replica(seen: &Seen) -> Vec<Change> {
    let mut plan = vec![];
    match &seen.replica {
        None => plan.extend(created(REPLICA, "login replication")),
        Some(role) if role.ours && !(role.login && role.replication) => {
            plan.push(change(
                format!("role {REPLICA} given login and replication"),
                format!("alter role {REPLICA} login replication"),
            ));
        }
        Some(_) => {}
    }
    let missing = match seen.replica {
        None => REWIND_FUNCTIONS.map(str::to_owned).to_vec(),
        Some(_) => seen.rewind_missing.clone(),
    };
    if !missing.is_empty() {
        let grants = missing
            .iter()
            .map(|function| format!("grant execute on function {function} to {REPLICA}"));
        plan.push(change(
            format!("role {REPLICA} may call what pg_rewind needs"),
            grants.collect::<Vec<_>>().join("; "),
        ));
    }
    plan
}

fn exporter(seen: &Seen) -> Vec<Change> {
    let mut plan = vec![];
    match &seen.exporter {
        None => plan.extend(created(EXPORTER, "login")),
        Some(role) if role.ours && !role.login => plan.push(change(
            format!("role {EXPORTER} given login"),
            format!("alter role {EXPORTER} login"),
        )),
        Some(_) => {}
    }
    if seen.exporter.is_none() || !seen.monitors {
        plan.push(change(
            format!("role {EXPORTER} made a member of pg_monitor"),
            format!("grant pg_monitor to {EXPORTER}"),
        ));
    }
    plan
}

fn pooler(seen: &Seen) -> Vec<Change> {
    let mut plan = vec![];
    match &seen.pooler {
        None => plan.extend(created(POOLER, "login")),
        Some(role) if role.ours && !role.login => plan.push(change(
            format!("role {POOLER} given login"),
            format!("alter role {POOLER} login"),
        )),
        Some(_) => {}
    }
    if seen.pooler.is_none() || !seen.pooler_enters {
        let sql = format!(
            "grant connect on database postgres to {POOLER}; grant usage on schema public to \
             {POOLER}"
        );
        plan.push(change(
            format!("role {POOLER} may connect to database postgres"),
            sql,
        ));
    }
    let lookup = seen.lookup.clone().unwrap_or(LookupSeen {
        owned_by_superuser: true,
        open: true,
        ..LookupSeen::default()
    });
    if !lookup.right {
        // Name and type of the parameter and the result are CloudNativePG's: it could not replace
        // the function otherwise.
        let sql = format!(
            "create or replace function public.user_search(uname text) returns table (usename \
             name, passwd text)
                 language sql security definer set search_path = pg_catalog, pg_temp as \
             '{LOOKUP_BODY}'"
        );
        plan.push(change("function public.user_search created", sql));
    }
    if lookup.open {
        plan.push(change(
            "function public.user_search closed to everybody",
            "revoke all on function public.user_search(text) from public",
        ));
    }
    if !lookup.callable || seen.pooler.is_none() {
        plan.push(change(
            format!("role {POOLER} may call public.user_search"),
            format!("grant execute on function public.user_search(text) to {POOLER}"),
        ));
    }
    plan
}

/// No password: such a role logs in with a certificate or by peer, or not at all.
fn created(name: &str, attributes: &str) -> Vec<Change> {
    vec![change(
        format!(
            "role {name} created with {}",
            attributes.replace(' ', " and ")
        ),
        format!(
            "create role {name} nosuperuser nocreatedb nocreaterole nobypassrls inherit \
             {attributes}; comment on role {name} is '{MARK}'"
        ),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Seen {
        let role = |replication| {
            Some(RoleSeen {
                ours: true,
                login: true,
                replication,
                superuser: false,
            })
        };
        Seen {
            replica: role(true),
            exporter: role(false),
            pooler: role(false),
            rewind_missing: vec![],
            monitors: true,
            pooler_enters: true,
            lookup: Some(LookupSeen {
                owned_by_superuser: true,
                right: true,
                open: false,
                callable: true,
            }),
        }
    }

    #[test]
    fn where_everything_is_right_nothing_is_done() {
        assert_eq!(plan(&complete(), None), []);
        assert!(obstacles(&complete(), SourceAuth::StreamingReplica).is_empty());
    }

    #[test]
    fn a_new_source_gets_three_roles_with_a_mark_each_and_a_closed_function() {
        let sql: Vec<String> = plan(&Seen::default(), None)
            .iter()
            .map(|change| change.sql.reveal().to_owned())
            .collect();
        assert_eq!(
            sql.iter()
                .filter(|sql| sql.starts_with("create role") && sql.contains(MARK))
                .count(),
            3
        );
        assert_eq!(
            sql.iter().filter(|sql| sql.contains(" password ")).count(),
            0
        );
        let place = |text: &str| {
            sql.iter()
                .position(|sql| sql.contains(text))
                .unwrap_or_else(|| panic!("{text} is not in {sql:?}"))
        };
        assert!(
            place("create or replace function") < place("revoke all")
                && place("revoke all") < place("grant execute on function public.user_search")
        );
    }

    #[test]
    fn a_verifier_is_set_and_never_shown() {
        let plan = plan(&complete(), Some(&Hidden::new("SCRAM-SHA-256$x")));
        assert_eq!(plan.len(), 1);
        assert!(plan[0].sql.reveal().ends_with("password 'SCRAM-SHA-256$x'"));
        assert!(!format!("{plan:?}").contains("SCRAM"));
    }

    #[test]
    fn a_role_of_ours_is_mended_and_a_foreign_one_is_an_obstacle() {
        let mut seen = complete();
        seen.replica.as_mut().unwrap().replication = false;
        assert_eq!(plan(&seen, None).len(), 1);
        seen.replica.as_mut().unwrap().ours = false;
        assert_eq!(plan(&seen, None), []);
        assert_eq!(obstacles(&seen, SourceAuth::Standby).len(), 1);
    }

    #[test]
    fn a_function_of_somebody_who_is_no_superuser_is_an_obstacle() {
        let mut seen = complete();
        seen.lookup.as_mut().unwrap().owned_by_superuser = false;
        assert_eq!(obstacles(&seen, SourceAuth::Standby).len(), 1);
    }

    #[test]
    fn an_open_function_is_closed() {
        let mut seen = complete();
        seen.lookup.as_mut().unwrap().open = true;
        assert_eq!(
            plan(&seen, None)[0].sql.reveal(),
            "revoke all on function public.user_search(text) from public"
        );
    }
}
