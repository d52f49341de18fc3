//! Compares what the Roles of the manifests grant with what the programs used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context, Result};
use k8s_openapi::api::rbac::v1::{PolicyRule, Subject};
use serde_json::Value;

use super::of_kind;
use crate::audit::Use;

/// One verb on one resource, for one object or for all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The ServiceAccount.
    pub account: String,
    /// The verb.
    pub verb: String,
    /// "" is the core group.
    pub api_group: String,
    /// The resource with its subresource, as in a Role: `deployments/scale`.
    pub resource: String,
    /// The object's name; None allows any name.
    pub name: Option<String>,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            verb,
            api_group,
            resource,
            name,
        } = self;
        let dot = if api_group.is_empty() { "" } else { "." };
        write!(
            f,
            "{account}: {verb} {resource}{dot}{api_group} {}",
            name.as_deref().unwrap_or("(any name)")
        )
    }
}

/// Checks that Roles and use agree. Each line of the error is one difference:
///
/// - a request that was refused for lack of a verb;
/// - a grant that was never used;
/// - a grant for any name of what was asked for by name only.
///
/// Requests that Kubernetes grants to all users do not count. Tests that remove a verb on purpose
/// must keep their requests out of `uses`.
///
/// # Errors
/// The objects hold invalid Roles, or there is a difference.
pub fn rbac_is_exact(uses: &BTreeSet<Use>, objects: &[Value]) -> Result<()> {
    let granted = grants(objects)?;
    let accounts: BTreeSet<&str> = granted.iter().map(|grant| grant.account.as_str()).collect();
    let program_uses: Vec<&Use> = uses
        .iter()
        .filter(|used| {
            used.service_account()
                .is_some_and(|account| accounts.contains(account))
        })
        .collect();
    let mut differences: Vec<String> = program_uses
        .iter()
        .filter(|used| used.is_forbidden())
        .map(|used| format!("missing: {}", asked(used)))
        .collect();
    let used: Vec<Grant> = program_uses
        .iter()
        .filter(|used| !used.is_forbidden())
        .flat_map(|used| needs(used))
        .collect();
    for grant in &granted {
        let covered: Vec<&Grant> = used.iter().filter(|used| covers(grant, used)).collect();
        if covered.is_empty() {
            differences.push(format!("never used: {grant}"));
        } else if grant.name.is_none() && covered.iter().all(|used| used.name.is_some()) {
            let names: BTreeSet<&str> = covered
                .iter()
                .filter_map(|used| used.name.as_deref())
                .collect();
            differences.push(format!(
                "too wide: {grant}; only these were requested: {names:?}"
            ));
        }
    }
    differences.dedup();
    anyhow::ensure!(
        differences.is_empty(),
        "Roles and use differ:\n{}",
        differences.join("\n")
    );
    Ok(())
}

/// All grants of the Roles to the ServiceAccounts that they are bound to.
///
/// # Errors
/// A Role or RoleBinding cannot be parsed, or a binding names a missing Role.
pub fn grants(objects: &[Value]) -> Result<BTreeSet<Grant>> {
    let mut grants = BTreeSet::new();
    // Cluster-scoped kinds have the same fields.
    for (role, binding) in [
        ("Role", "RoleBinding"),
        ("ClusterRole", "ClusterRoleBinding"),
    ] {
        let mut roles: BTreeMap<&str, Vec<PolicyRule>> = BTreeMap::new();
        for object in of_kind(objects, role) {
            let rules = serde_json::from_value(object["rules"].clone())
                .context("reading the rules of a Role")?;
            roles.insert(name_of(object)?, rules);
        }
        for object in of_kind(objects, binding) {
            let named = object["roleRef"]["name"]
                .as_str()
                .context("a binding without a Role")?;
            let rules = roles
                .get(named)
                .with_context(|| format!("no {role} {named}"))?;
            let subjects: Vec<Subject> =
                serde_json::from_value(object["subjects"].clone()).context("reading a binding")?;
            for account in subjects
                .iter()
                .filter(|subject| subject.kind == "ServiceAccount")
            {
                grants.extend(
                    rules
                        .iter()
                        .flat_map(|rule| rule_grants(&account.name, rule)),
                );
            }
        }
    }
    Ok(grants)
}

fn name_of(object: &Value) -> Result<&str> {
    object["metadata"]["name"]
        .as_str()
        .context("an object without a name")
}

fn rule_grants(account: &str, rule: &PolicyRule) -> Vec<Grant> {
    let names: Vec<Option<String>> = match rule.resource_names.as_deref() {
        None | Some([]) => vec![None],
        Some(names) => names.iter().cloned().map(Some).collect(),
    };
    let mut grants = Vec::new();
    for api_group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                grants.extend(names.iter().map(|name| Grant {
                    account: account.to_owned(),
                    verb: verb.clone(),
                    api_group: api_group.clone(),
                    resource: resource.clone(),
                    name: name.clone(),
                }));
            }
        }
    }
    grants
}

/// The grants that a request needs.
fn needs(used: &Use) -> Vec<Grant> {
    let asked = asked(used);
    let create = |name| Grant {
        verb: "create".into(),
        name,
        ..asked.clone()
    };
    match (used.verb.as_str(), used.resource.as_str(), used.code) {
        // A server-side apply of what did not exist yet is authorised a second time, as a create of
        // that name (k8s.io/apiserver pkg/endpoints/handlers/patch.go, createAuthorizerAttributes).
        ("patch", _, 201) => vec![create(asked.name.clone()), asked],
        // A create is authorised before its body is read, so no name counts.
        ("create", ..) => vec![create(None)],
        _ => vec![asked],
    }
}

fn asked(used: &Use) -> Grant {
    let subresource = if used.subresource.is_empty() {
        String::new()
    } else {
        format!("/{}", used.subresource)
    };
    Grant {
        account: used.service_account().unwrap_or(&used.user).to_owned(),
        verb: used.verb.clone(),
        api_group: used.api_group.clone(),
        resource: format!("{}{subresource}", used.resource),
        name: Some(used.name.clone()).filter(|name| !name.is_empty()),
    }
}

fn covers(grant: &Grant, used: &Grant) -> bool {
    let same = |granted: &str, wanted: &str| granted == wanted || granted == "*";
    let named = grant.name.is_none() || grant.name == used.name;
    named
        && grant.account == used.account
        && same(&grant.verb, &used.verb)
        && same(&grant.api_group, &used.api_group)
        && same(&grant.resource, &used.resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn objects(rules: Value) -> Vec<Value> {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
            "rules": rules
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "b"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "cutover", "namespace": "m"}]
        });
        vec![role, binding]
    }

    fn used(verb: &str, resource: &str, name: &str, code: u16) -> Use {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Use {
            user: "system:serviceaccount:m:cutover".into(),
            verb: verb.into(),
            api_group: String::new(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            namespace: "m".into(),
            dry_run: false,
            code,
        }
    }

    fn difference(rules: Value, uses: &[Use]) -> String {
        match rbac_is_exact(&uses.iter().cloned().collect(), &objects(rules)) {
            Ok(()) => String::new(),
            Err(error) => error.to_string().replace("Roles and use differ:\n", ""),
        }
    }

    #[test]
    fn granted_and_used_is_exact() {
        let rules = json!([
            {
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"],
                "verbs": ["get", "create", "patch"]
            },
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
            {
                "apiGroups": [""], "resources": ["deployments/scale"], "resourceNames": ["a", "a"],
                "verbs": ["patch"]
            },
        ]);
        let uses = [
            used("get", "secrets", "a", 404),
            used("patch", "secrets", "a", 201),
            used("list", "pods", "", 200),
            used("create", "configmaps", "x", 201),
            used("patch", "deployments/scale", "a", 200),
        ];
        assert_eq!(difference(rules, &uses), "");
    }

    #[test]
    fn each_kind_of_difference_is_reported() {
        let rules = json!([
            {
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"],
                "verbs": ["get"]
            },
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
        ]);
        let uses = [
            used("get", "secrets", "a", 200),
            used("get", "configmaps", "c", 200),
            used("delete", "pods", "p", 403),
        ];
        let wanted = "missing: cutover: delete pods p\n\
            too wide: cutover: get configmaps (any name); only these were requested: {\"c\"}\n\
            never used: cutover: get secrets b";
        assert_eq!(difference(rules, &uses), wanted);
    }

    #[test]
    fn a_patch_of_what_exists_uses_no_create() {
        let rules = json!([{
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"],
            "verbs": ["create", "patch"]
        }]);
        assert_eq!(
            difference(rules, &[used("patch", "secrets", "a", 200)]),
            "never used: cutover: create secrets a"
        );
    }
}
