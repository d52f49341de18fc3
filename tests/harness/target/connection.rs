//! How the target connects to an external cluster: files from the Secrets that the manifest names,
//! and a conninfo that refers to them (pkg/management/external,
//! pkg/configfile/connection_string.go).

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::{
    cluster::{ExternalCluster, SecretKey},
    volume::Volume,
};
use crate::service::Services;

/// Writes the files below `external/` and returns the conninfo. `hostaddr` replaces DNS; everything
/// else is from the manifest: no sslmode, timeouts or application_name are added.
///
/// # Errors
/// A Secret or its key is missing.
pub async fn conninfo(
    client: &Client,
    namespace: &str,
    server: &ExternalCluster,
    volume: &Volume,
    services: &Services,
) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut parameters = server.connection_parameters.clone();
    let directory = format!("external/{}", server.name);
    for (parameter, selector) in [
        ("sslcert", &server.ssl_cert),
        ("sslkey", &server.ssl_key),
        ("sslrootcert", &server.ssl_root_cert),
    ] {
        let Some(selector) = selector else { continue };
        let file = format!("{directory}/{}_{}", selector.name, selector.key);
        let written = volume.write(&file, &value(&secrets, selector).await?)?;
        parameters.insert(parameter.into(), written.display().to_string());
    }
    if let Some(selector) = &server.password {
        let password = value(&secrets, selector).await?;
        let file = passfile(
            volume,
            &directory,
            &parameters,
            &String::from_utf8_lossy(&password),
        )?;
        parameters.insert("passfile".into(), file.display().to_string());
    }
    if let Some(host) = parameters.get("host") {
        let address = services
            .resolve(host)
            .unwrap_or_else(|| services.refusing_address());
        parameters.insert("hostaddr".into(), address.to_string());
    }
    Ok(render(&parameters))
}

async fn value(secrets: &Api<Secret>, selector: &SecretKey) -> Result<Vec<u8>> {
    let secret = secrets
        .get(&selector.name)
        .await
        .with_context(|| format!("reading the Secret {}", selector.name))?;
    let found = secret.data.and_then(|mut data| data.remove(&selector.key));
    Ok(found
        .with_context(|| format!("missing key {} in secret {}", selector.key, selector.name))?
        .0)
}

fn passfile(
    volume: &Volume,
    directory: &str,
    parameters: &BTreeMap<String, String>,
    password: &str,
) -> Result<PathBuf> {
    let field = |name: &str| escaped(parameters.get(name).map_or("*", String::as_str));
    let line = format!(
        "{}:{}:*:{}:{}\n",
        field("host"),
        field("port"),
        field("user"),
        escaped(password)
    );
    volume.write(&format!("{directory}/pgpass"), line.as_bytes())
}

fn escaped(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

fn render(parameters: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}='{}'", quoted(value)))
        .collect();
    pairs.join(" ")
}

fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "\\'")
}

/// Parameters that CNPG's driver (pgx 5) uses itself. It sends all others to the server as GUCs, so
/// that libpq's keepalives fail with `unrecognized configuration parameter` at every attempt.
const PROBED: [&str; 17] = [
    "host",
    "hostaddr",
    "port",
    "database",
    "dbname",
    "user",
    "password",
    "passfile",
    "connect_timeout",
    "sslmode",
    "sslkey",
    "sslcert",
    "sslrootcert",
    "sslpassword",
    "sslsni",
    "target_session_attrs",
    "service",
];

/// The conninfo of the probe before pg_basebackup: parameters unknown to pgx become GUCs.
pub fn probe(conninfo: &str) -> String {
    let (known, foreign): (Vec<_>, Vec<_>) = pairs(conninfo)
        .into_iter()
        .partition(|(name, _)| PROBED.contains(&name.as_str()));
    let mut parameters: BTreeMap<String, String> = known.into_iter().collect();
    parameters
        .entry("dbname".into())
        .or_insert_with(|| "postgres".into());
    parameters.insert("replication".into(), "true".into());
    let gucs: Vec<String> = foreign
        .into_iter()
        .filter(|(name, _)| name != "options")
        .map(|(name, value)| {
            format!(
                "-c {name}={}",
                value.replace('\\', "\\\\").replace(' ', "\\ ")
            )
        })
        .collect();
    parameters.insert("options".into(), gucs.join(" "));
    render(&parameters)
}

/// The pairs of a conninfo as [`conninfo`] writes it.
fn pairs(conninfo: &str) -> Vec<(String, String)> {
    let (mut pairs, mut rest) = (Vec::new(), conninfo);
    while let Some((name, tail)) = rest.split_once("='") {
        let mut value = String::new();
        let mut characters = tail.char_indices();
        let mut end = tail.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                '\'' => {
                    end = at + 1;
                    break;
                }
                other => value.push(other),
            }
        }
        pairs.push((name.trim().to_owned(), value));
        rest = &tail[end.min(tail.len())..];
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_conninfo_is_sorted_and_quoted_and_can_be_read_back() {
        let given = parameters(&[
            ("user", "standby"),
            ("host", "a'b"),
            ("sslmode", "verify-full"),
        ]);
        let text = render(&given);
        assert_eq!(text, r"host='a\'b' sslmode='verify-full' user='standby'");
        assert_eq!(pairs(&text).into_iter().collect::<BTreeMap<_, _>>(), given);
    }

    #[test]
    fn what_pgx_does_not_know_is_sent_as_a_guc() {
        let text = probe(&render(&parameters(&[
            ("host", "h"),
            ("user", "u"),
            ("keepalives_idle", "30"),
            ("application_name", "x"),
        ])));
        assert!(
            text.contains("options='-c application_name=x -c keepalives_idle=30'"),
            "{text}"
        );
        assert!(
            text.contains("replication='true'") && text.contains("host='h'"),
            "{text}"
        );
    }

    #[test]
    fn pgpass_fields_are_escaped() {
        assert_eq!(escaped(r"a:b\c"), r"a\:b\\c");
    }
}
