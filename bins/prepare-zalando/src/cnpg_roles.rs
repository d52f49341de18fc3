//! The roles that CloudNativePG's replicas, metrics exporter and poolers log in as. CloudNativePG
//! creates them itself, but only on a primary, and some of them only at its next start. On the
//! target they must come from the source (docs/operators/cloudnative-pg.md).
//!
//! [`plan`] compares the existing roles with the required ones. An empty plan means that they are
//! complete, whether or not this program created them.

pub mod database;

use secrecy::{ExposeSecret as _, SecretString};

use crate::settings::SourceAuth;

/// Comment on the roles that this program created. Only these are changed later.
pub const MARK: &str = "made by replica-migration for CloudNativePG";
/// CloudNativePG's role for its replicas.
pub const REPLICA: &str = "streaming_replica";
/// CloudNativePG's role for its metrics exporter.
pub const EXPORTER: &str = "cnpg_metrics_exporter";
/// CloudNativePG's role with which its poolers look up passwords.
pub const POOLER: &str = "cnpg_pooler_pgbouncer";
/// Functions that pg_rewind calls on the primary when a diverged replica rejoins (PostgreSQL
/// documentation, *pg_rewind*).
pub const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];
/// Body of the lookup function. CloudNativePG compares it with its own text and replaces the
/// function if they differ.
pub const LOOKUP_BODY: &str = "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename=$1;";

/// The existing roles and grants, read in the database postgres.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingRoles {
    /// [`REPLICA`].
    pub replica: Option<ExistingRole>,
    /// [`EXPORTER`].
    pub exporter: Option<ExistingRole>,
    /// [`POOLER`].
    pub pooler: Option<ExistingRole>,
    /// Those of [`REWIND_FUNCTIONS`] that [`REPLICA`] may not execute.
    pub rewind_missing: Vec<String>,
    /// [`EXPORTER`] is a member of pg_monitor.
    pub exporter_monitors: bool,
    /// [`POOLER`] may connect to the database postgres and use its schema public.
    pub pooler_connects: bool,
    /// The function public.user_search(text).
    pub lookup: Option<ExistingLookup>,
}

/// An existing role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingRole {
    /// Its comment is [`MARK`].
    pub marked: bool,
    /// LOGIN.
    pub login: bool,
    /// REPLICATION.
    pub replication: bool,
    /// SUPERUSER.
    pub superuser: bool,
}

/// The existing lookup function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingLookup {
    /// Its owner is a superuser.
    pub owned_by_superuser: bool,
    /// Its text, SECURITY DEFINER and search_path are as required.
    pub up_to_date: bool,
    /// PUBLIC may execute it.
    pub public_executes: bool,
    /// [`POOLER`] may execute it.
    pub pooler_executes: bool,
}

/// A change of the roles. Its Debug output shows the description only.
#[derive(Clone)]
pub struct Change {
    /// What the statement does, for the log.
    pub description: String,
    /// The SQL. It contains no password, but may contain a verifier.
    pub statement: SecretString,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.description)
    }
}

fn change(description: impl Into<String>, statement: impl Into<String>) -> Change {
    Change {
        description: description.into(),
        statement: SecretString::from(statement.into()),
    }
}

/// A role or function that another owner created and that does not meet the requirements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Name of the role or function.
    pub object: String,
    /// What is wrong with it.
    pub found: String,
    /// What to do about it.
    pub hint: String,
}

/// Roles and functions that this program did not create and must not change, but that do not meet
/// the requirements.
pub fn conflicts(existing: &ExistingRoles, auth: SourceAuth) -> Vec<Conflict> {
    let mut conflicts = vec![];
    let mut add = |object: &str, found: String, hint: String| {
        conflicts.push(Conflict {
            object: object.into(),
            found,
            hint,
        });
    };
    let unmarked = |role: &Option<ExistingRole>| role.clone().filter(|role| !role.marked);
    if let Some(role) = unmarked(&existing.replica).filter(|role| !role.login || !role.replication)
    {
        let missing = if role.login { "replication" } else { "login" };
        add(
            REPLICA,
            format!("role {REPLICA} exists, was not created by this program, and lacks {missing}"),
            format!("alter role {REPLICA} login replication"),
        );
    }
    for (name, role) in [(EXPORTER, &existing.exporter), (POOLER, &existing.pooler)] {
        if unmarked(role).is_some_and(|role| !role.login) {
            add(
                name,
                format!("role {name} exists, was not created by this program, and may not log in"),
                format!("alter role {name} login"),
            );
        }
    }
    let lookup = existing.lookup.as_ref();
    if lookup.is_some_and(|lookup| !lookup.owned_by_superuser) {
        add(
            "user_search",
            "function public.user_search(text) exists and its owner is not a superuser: \
             CloudNativePG's poolers would trust it"
                .into(),
            "find out which application uses it, then drop it".into(),
        );
    }
    // The role matters as a login only if the target uses it: otherwise it has no password.
    let replica = existing.replica.as_ref();
    if auth == SourceAuth::StreamingReplica && replica.is_some_and(|role| role.superuser) {
        add(
            REPLICA,
            format!("role {REPLICA} is a superuser"),
            format!("alter role {REPLICA} nosuperuser"),
        );
    }
    conflicts
}

/// The changes that complete the roles. `verifier` is given if [`REPLICA`] needs a password that it
/// does not have yet.
pub fn plan(existing: &ExistingRoles, verifier: Option<&SecretString>) -> Vec<Change> {
    let mut plan = replica(existing);
    if let Some(verifier) = verifier {
        plan.push(change(
            format!("password of role {REPLICA} set, as a verifier"),
            format!(
                "alter role {REPLICA} password '{}'",
                verifier.expose_secret()
            ),
        ));
    }
    plan.extend(exporter(existing));
    plan.extend(pooler(existing));
    plan
}

fn replica(existing: &ExistingRoles) -> Vec<Change> {
    let mut plan = vec![];
    match &existing.replica {
        None => plan.extend(created(REPLICA, "login replication")),
        Some(role) if role.marked && !(role.login && role.replication) => {
            plan.push(change(
                format!("role {REPLICA} granted login and replication"),
                format!("alter role {REPLICA} login replication"),
            ));
        }
        Some(_) => {}
    }
    let missing = match existing.replica {
        None => REWIND_FUNCTIONS.map(str::to_owned).to_vec(),
        Some(_) => existing.rewind_missing.clone(),
    };
    if !missing.is_empty() {
        let grants = missing
            .iter()
            .map(|function| format!("grant execute on function {function} to {REPLICA}"));
        plan.push(change(
            format!("role {REPLICA} may execute the functions of pg_rewind"),
            grants.collect::<Vec<_>>().join("; "),
        ));
    }
    plan
}

fn exporter(existing: &ExistingRoles) -> Vec<Change> {
    let mut plan = vec![];
    match &existing.exporter {
        None => plan.extend(created(EXPORTER, "login")),
        Some(role) if role.marked && !role.login => plan.push(change(
            format!("role {EXPORTER} granted login"),
            format!("alter role {EXPORTER} login"),
        )),
        Some(_) => {}
    }
    if existing.exporter.is_none() || !existing.exporter_monitors {
        plan.push(change(
            format!("role {EXPORTER} made a member of pg_monitor"),
            format!("grant pg_monitor to {EXPORTER}"),
        ));
    }
    plan
}

fn pooler(existing: &ExistingRoles) -> Vec<Change> {
    let mut plan = vec![];
    match &existing.pooler {
        None => plan.extend(created(POOLER, "login")),
        Some(role) if role.marked && !role.login => plan.push(change(
            format!("role {POOLER} granted login"),
            format!("alter role {POOLER} login"),
        )),
        Some(_) => {}
    }
    if existing.pooler.is_none() || !existing.pooler_connects {
        let sql = format!(
            "grant connect on database postgres to {POOLER}; grant usage on schema public to \
             {POOLER}"
        );
        plan.push(change(
            format!("role {POOLER} may connect to database postgres"),
            sql,
        ));
    }
    let lookup = existing.lookup.clone().unwrap_or(ExistingLookup {
        owned_by_superuser: true,
        public_executes: true,
        ..ExistingLookup::default()
    });
    if !lookup.up_to_date {
        // Names and types of the parameter and the result are CloudNativePG's: with others it could
        // not replace the function.
        let sql = format!(
            "create or replace function public.user_search(uname text) returns table (usename \
             name, passwd text)
                 language sql security definer set search_path = pg_catalog, pg_temp as \
             '{LOOKUP_BODY}'"
        );
        plan.push(change("function public.user_search created", sql));
    }
    if lookup.public_executes {
        plan.push(change(
            "function public.user_search closed to PUBLIC",
            "revoke all on function public.user_search(text) from public",
        ));
    }
    if !lookup.pooler_executes || existing.pooler.is_none() {
        plan.push(change(
            format!("role {POOLER} may execute public.user_search"),
            format!("grant execute on function public.user_search(text) to {POOLER}"),
        ));
    }
    plan
}

/// Creates a role without a password: it logs in with a certificate or by peer authentication.
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

    fn complete() -> ExistingRoles {
        let role = |replication| {
            Some(ExistingRole {
                marked: true,
                login: true,
                replication,
                superuser: false,
            })
        };
        ExistingRoles {
            replica: role(true),
            exporter: role(false),
            pooler: role(false),
            rewind_missing: vec![],
            exporter_monitors: true,
            pooler_connects: true,
            lookup: Some(ExistingLookup {
                owned_by_superuser: true,
                up_to_date: true,
                public_executes: false,
                pooler_executes: true,
            }),
        }
    }

    #[test]
    fn complete_roles_need_no_change() {
        assert!(plan(&complete(), None).is_empty());
        assert!(conflicts(&complete(), SourceAuth::StreamingReplica).is_empty());
    }

    #[test]
    fn a_new_source_gets_three_marked_roles_and_a_function_closed_to_public() {
        let sql: Vec<String> = plan(&ExistingRoles::default(), None)
            .iter()
            .map(|change| change.statement.expose_secret().to_owned())
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
        let position = |text: &str| {
            sql.iter()
                .position(|sql| sql.contains(text))
                .unwrap_or_else(|| panic!("{text} is not in {sql:?}"))
        };
        assert!(
            position("create or replace function") < position("revoke all")
                && position("revoke all")
                    < position("grant execute on function public.user_search")
        );
    }

    #[test]
    fn a_verifier_is_set_and_debug_output_does_not_show_it() {
        let plan = plan(&complete(), Some(&SecretString::from("SCRAM-SHA-256$x")));
        assert_eq!(plan.len(), 1);
        assert!(
            plan[0]
                .statement
                .expose_secret()
                .ends_with("password 'SCRAM-SHA-256$x'")
        );
        assert!(!format!("{plan:?}").contains("SCRAM"));
    }

    #[test]
    fn a_marked_role_is_completed_and_an_unmarked_one_is_a_conflict() {
        let mut existing = complete();
        existing.replica.as_mut().unwrap().replication = false;
        assert_eq!(plan(&existing, None).len(), 1);
        existing.replica.as_mut().unwrap().marked = false;
        assert!(plan(&existing, None).is_empty());
        assert_eq!(conflicts(&existing, SourceAuth::Standby).len(), 1);
    }

    #[test]
    fn a_lookup_function_not_owned_by_a_superuser_is_a_conflict() {
        let mut existing = complete();
        existing.lookup.as_mut().unwrap().owned_by_superuser = false;
        assert_eq!(conflicts(&existing, SourceAuth::Standby).len(), 1);
    }

    #[test]
    fn a_function_that_public_may_execute_is_closed() {
        let mut existing = complete();
        existing.lookup.as_mut().unwrap().public_executes = true;
        assert_eq!(
            plan(&existing, None)[0].statement.expose_secret(),
            "revoke all on function public.user_search(text) from public"
        );
    }
}
