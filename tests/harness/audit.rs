//! Reads the API server's audit log: which verbs each ServiceAccount used on which resources.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

/// One kind of request by one user. Ordered, so that a set is readable in a failing test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// For example `system:serviceaccount:mastodon:replica-migration-cutover`.
    pub user: String,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: String,
    /// API group; "" is the core group.
    pub api_group: String,
    /// Plural, for example `secrets`.
    pub resource: String,
    /// For example `status` or `scale`; "" if there is none.
    pub subresource: String,
    /// The object's name; "" when the request names none (list, watch; create before Kubernetes has
    /// read the body).
    pub name: String,
    /// Namespace; "" for cluster-scoped resources.
    pub namespace: String,
    /// Whether the request was a server-side dry run.
    pub dry_run: bool,
    /// HTTP status of the response; 0 if there is none yet.
    pub code: u16,
}

impl Use {
    /// The ServiceAccount's name, if the user is one.
    pub fn service_account(&self) -> Option<&str> {
        self.user
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
            .map(|(_, name)| name)
    }

    /// True if the request was refused for lack of a permission.
    pub fn is_forbidden(&self) -> bool {
        self.code == 403
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    user: User,
    #[serde(rename = "requestURI", default)]
    request_uri: String,
    object_ref: Option<Reference>,
    #[serde(default)]
    response_status: Status,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Source: the type `ObjectReference` of audit.k8s.io/v1.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Reference {
    resource: String,
    subresource: String,
    name: String,
    namespace: String,
    api_group: String,
}

/// Reads the log. Non-resource requests (`/version`, `/apis`) need no Role and are left out.
///
/// # Errors
/// The file exists but cannot be read, or a line is not an audit event.
pub fn read(log: &Path) -> Result<BTreeSet<Use>> {
    let text = match fs::read_to_string(log) {
        // No request has been logged yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.with_context(|| format!("reading {}", log.display()))?,
    };
    parse(&text)
}

fn parse(text: &str) -> Result<BTreeSet<Use>> {
    // The last line may be incomplete.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = complete.lines().filter(|line| !line.is_empty());
    let uses = lines.map(|line| {
        serde_json::from_str::<Line>(line)
            .context("a line of the audit log")
            .map(used)
    });
    uses.filter_map(Result::transpose).collect()
}

fn used(line: Line) -> Option<Use> {
    let object = line.object_ref?;
    let (user, verb, code) = (line.user.username, line.verb, line.response_status.code);
    let dry_run = line.request_uri.contains("dryRun=All");
    let Reference {
        resource,
        subresource,
        name,
        namespace,
        api_group,
    } = object;
    Some(Use {
        user,
        verb,
        api_group,
        resource,
        subresource,
        name,
        namespace,
        dry_run,
        code,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = concat!(
        r#"{"kind":"Event","stage":"ResponseComplete","verb":"get","#,
        r#""user":{"username":"system:serviceaccount:m:cutover"},"#,
        r#""objectRef":{"resource":"secrets","namespace":"m","name":"s","apiVersion":"v1"},"#,
        r#""responseStatus":{"code":200}}"#,
        "\n",
        r#"{"verb":"get","user":{"username":"system:serviceaccount:m:cutover"},"#,
        r#""requestURI":"/version","responseStatus":{"code":200}}"#,
        "\n",
        r#"{"verb":"patch","user":{"username":"system:serviceaccount:m:cutover"},"#,
        r#""objectRef":{"resource":"clusters","subresource":"status","#,
        r#""apiGroup":"postgresql.cnpg.io"},"responseStatus":{"code":403}}"#,
        "\n",
        r#"{"verb":"unfin"#
    );

    #[test]
    fn complete_lines_about_resources_are_read() {
        let uses: Vec<Use> = parse(LINES).unwrap().into_iter().collect();
        let [get, patch] = &uses[..] else {
            panic!("{uses:?}")
        };
        assert_eq!(
            (get.service_account(), get.resource.as_str(), get.code),
            (Some("cutover"), "secrets", 200)
        );
        assert_eq!(
            (
                patch.api_group.as_str(),
                patch.subresource.as_str(),
                patch.is_forbidden()
            ),
            ("postgresql.cnpg.io", "status", true)
        );
    }

    #[test]
    fn a_line_that_is_not_an_event_is_an_error() {
        assert!(parse("nonsense\n").is_err());
    }
}
