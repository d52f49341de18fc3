//! The lines of pg_hba that decide on the source's clients, as lines of the target: who may log in
//! before the cutover may log in after it, and no other client. The first line that matches decides
//! (PostgreSQL documentation, *The pg_hba.conf File*), so the order stays.
//!
//! CloudNativePG writes its own lines before these, for its roles and the socket, and `host all all
//! all scram-sha-256` behind them (docs/operators/cloudnative-pg.md), so what no line of the source
//! admits is rejected explicitly.

use super::Rule;

/// Methods that need nothing but the roles' stored passwords.
const METHODS: [&str; 5] = ["md5", "scram-sha-256", "password", "trust", "reject"];

/// The lines of the target, and those of the source that have no counterpart there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Taken over, in the source's order.
    pub lines: Vec<String>,
    /// What rejects the logins that no line of the source admits, and CloudNativePG's last line
    /// would.
    pub closing: Option<&'static str>,
    /// Not taken over: clients that only these admit cannot log in at the target.
    pub left_out: Vec<String>,
}

/// The lines about clients of these rules. The method md5 admits both kinds of stored passwords; it
/// is kept where some role has an `md5_hash`.
pub fn clients(rules: &[Rule], md5_hash: bool) -> Clients {
    let mut found = Clients::default();
    let (mut tls, mut plain) = (false, false);
    for rule in rules.iter().filter(|rule| is_about_clients(rule)) {
        let line = line(rule, md5_hash);
        if !is_portable(rule) {
            if !is_of_spilo(rule) {
                found.left_out.push(line);
            }
            continue;
        }
        found.lines.push(line);
        if is_for_everybody(rule) {
            tls |= matches!(rule.kind.as_str(), "host" | "hostssl");
            plain |= matches!(rule.kind.as_str(), "host" | "hostnossl");
        }
    }
    found.closing = match (tls, plain) {
        // A client with another method is not locked out before a person has decided about it.
        _ if !found.left_out.is_empty() => None,
        (true, true) => None,
        (true, false) => Some("hostnossl all all all reject"),
        (false, _) => Some("host all all all reject"),
    };
    found
}

/// Over the network, from another pod, to a database.
fn is_about_clients(rule: &Rule) -> bool {
    let own_pod = match rule.address.as_deref() {
        None | Some("samehost" | "localhost" | "::1") => true,
        // A service mesh's sidecar connects from there, for clients elsewhere.
        Some("127.0.0.6") => false,
        Some(address) => address.starts_with("127."),
    };
    let only_replication = rule.databases.iter().all(|name| name == "replication");
    rule.kind.starts_with("host") && rule.error.is_none() && !own_pod && !only_replication
}

/// The target can decide as the source does. Its certificates and CAs are other ones, and its pods'
/// network is the same as long as the line does not depend on it.
fn is_portable(rule: &Rule) -> bool {
    METHODS.contains(&rule.method.as_str())
        && matches!(rule.kind.as_str(), "host" | "hostssl" | "hostnossl")
        && rule.options.is_empty()
        && rule.address.as_deref() != Some("samenet")
}

/// Spilo's line for people with a token of Zalando's own; without its PAM module no client gets in.
fn is_of_spilo(rule: &Rule) -> bool {
    rule.method == "pam" && rule.roles == ["+zalandos"]
}

fn is_for_everybody(rule: &Rule) -> bool {
    let all = |names: &[String]| names.iter().any(|name| name == "all");
    let everywhere = match rule.address.as_deref() {
        Some("all") => true,
        Some("0.0.0.0") => rule.prefix() == Some(0),
        _ => false,
    };
    all(&rule.databases) && all(&rule.roles) && everywhere
}

/// The rule as a line of the file.
fn line(rule: &Rule, md5_hash: bool) -> String {
    let names = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        names.join(",")
    };
    let databases: Vec<String> = rule
        .databases
        .iter()
        .filter(|name| *name != "replication")
        .cloned()
        .collect();
    let address = rule.address.as_deref().unwrap_or_default();
    let address = match rule.prefix() {
        Some(bits) => format!("{address}/{bits}"),
        None => address.to_owned(),
    };
    let method = match rule.method.as_str() {
        "md5" if !md5_hash => "scram-sha-256",
        method => method,
    };
    let words = [
        rule.kind.clone(),
        names(&databases),
        names(&rule.roles),
        address,
        method.to_owned(),
    ];
    let words = words.into_iter().chain(rule.options.iter().cloned());
    words.collect::<Vec<_>>().join(" ")
}

/// A name in quotes where the file needs them; the mark of a group or a regular expression stays
/// before them.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_.-+/$^".contains(c);
    if name.chars().all(plain) {
        return name.to_owned();
    }
    let (mark, rest) = match name.strip_prefix('+') {
        Some(rest) => ("+", rest),
        None => ("", name),
    };
    format!("{mark}\"{}\"", rest.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hba::tests::{SPILO, rules};

    fn lines(file: &str) -> Clients {
        clients(&rules(file), true)
    }

    #[test]
    fn the_lines_of_spilo_are_those_of_everybody_with_tls() {
        let found = lines(SPILO);
        assert_eq!(
            found.lines,
            ["hostnossl all all all reject", "hostssl all all all md5"]
        );
        let without_md5 = clients(&rules(SPILO), false).lines;
        assert_eq!(without_md5[1], "hostssl all all all scram-sha-256");
        // The reject is the source's own.
        assert_eq!((found.closing, found.left_out), (None, vec![]));
    }

    #[test]
    fn plain_text_that_a_line_admits_stays_admitted() {
        for (file, expected, closing) in [
            (
                "host all all 0.0.0.0/0 md5",
                vec!["host all all 0.0.0.0/0 md5"],
                None,
            ),
            (
                "host all all 10.0.0.0/8 md5\nhostssl all all all md5",
                vec!["host all all 10.0.0.0/8 md5", "hostssl all all all md5"],
                Some("hostnossl all all all reject"),
            ),
            (
                "host all all 10.0.0.0/8 md5\nhostnossl all all all reject\n\
                 hostssl all all all md5",
                vec![
                    "host all all 10.0.0.0/8 md5",
                    "hostnossl all all all reject",
                    "hostssl all all all md5",
                ],
                None,
            ),
            (
                "hostssl shop,my~db web,+readers 10.2.0.0/16 scram-sha-256",
                vec!["hostssl shop,\"my db\" web,+readers 10.2.0.0/16 scram-sha-256"],
                Some("host all all all reject"),
            ),
            ("", vec![], Some("host all all all reject")),
        ] {
            let found = lines(file);
            assert_eq!(found.lines, expected, "{file}");
            assert_eq!(found.closing, closing, "{file}");
        }
    }

    #[test]
    fn what_the_target_cannot_decide_is_named_and_closes_nothing() {
        let mut mutual = rules("hostssl all all all cert\nhostssl all all all md5");
        mutual[1].options = vec!["clientcert=verify-full".into()];
        let found = clients(&mutual, true);
        assert!(found.lines.is_empty(), "{found:?}");
        assert_eq!(
            found.left_out,
            [
                "hostssl all all all cert",
                "hostssl all all all md5 clientcert=verify-full"
            ]
        );
        assert_eq!(found.closing, None);
        for file in [
            "host all all samenet md5",
            "host all all all ldap",
            "hostssl all +people all pam",
            "hostgssenc all all all gss",
        ] {
            assert_eq!(lines(file).left_out.len(), 1, "{file}");
        }
    }
}
