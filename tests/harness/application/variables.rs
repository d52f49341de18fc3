//! A container's environment variables as the kubelet builds them at its start, from `envFrom` and
//! `env`. A running pod keeps its variables, whatever happens to the ConfigMap.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvFromSource, EnvVar, Secret};
use kube::{Api, Client};

use super::login::Login;

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// Reads the variables of a container; later sources override earlier ones, and `env` overrides
/// `envFrom`.
///
/// # Errors
/// A required object or key is missing; the kubelet would report CreateContainerConfigError.
pub async fn read(client: &Client, namespace: &str, container: &Container) -> Result<Variables> {
    let reader = Reader {
        config_maps: Api::namespaced(client.clone(), namespace),
        secrets: Api::namespaced(client.clone(), namespace),
    };
    let mut variables = Variables::new();
    for source in container.env_from.iter().flatten() {
        variables.extend(reader.all_of(source).await?);
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = reader.one(variable).await? {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

/// Mastodon's DB_* variables as a login.
///
/// # Errors
/// A variable is missing, or DB_PORT is not a number.
pub fn login(variables: &Variables) -> Result<Login> {
    let value = |name: &str| {
        variables
            .get(name)
            .cloned()
            .with_context(|| format!("the variable {name} is not set"))
    };
    Ok(Login {
        host: value("DB_HOST")?,
        port: value("DB_PORT")?.parse().context("DB_PORT")?,
        dbname: value("DB_NAME")?,
        user: value("DB_USER")?,
        password: value("DB_PASS")?,
    })
}

struct Reader {
    config_maps: Api<ConfigMap>,
    secrets: Api<Secret>,
}

impl Reader {
    async fn all_of(&self, source: &EnvFromSource) -> Result<Variables> {
        let prefix = source.prefix.clone().unwrap_or_default();
        let (found, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), _) => (
                self.config_map(&reference.name).await?,
                &reference.name,
                reference.optional,
            ),
            (None, Some(reference)) => (
                self.secret(&reference.name).await?,
                &reference.name,
                reference.optional,
            ),
            (None, None) => bail!("envFrom names neither a ConfigMap nor a Secret"),
        };
        match found {
            Some(data) => Ok(data
                .into_iter()
                .map(|(key, value)| (format!("{prefix}{key}"), value))
                .collect()),
            None if optional == Some(true) => Ok(Variables::new()),
            None => bail!("{name:?} not found"),
        }
    }

    async fn one(&self, variable: &EnvVar) -> Result<Option<String>> {
        let Some(from) = &variable.value_from else {
            return Ok(Some(variable.value.clone().unwrap_or_default()));
        };
        let (data, key, optional) = if let Some(reference) = &from.config_map_key_ref {
            (
                self.config_map(&reference.name).await?,
                &reference.key,
                reference.optional,
            )
        } else if let Some(reference) = &from.secret_key_ref {
            (
                self.secret(&reference.name).await?,
                &reference.key,
                reference.optional,
            )
        } else {
            bail!(
                "the source of the variable {} is not imitated",
                variable.name
            );
        };
        match data.and_then(|mut data| data.remove(key)) {
            None if optional != Some(true) => {
                bail!("couldn't find key {key} for the variable {}", variable.name)
            }
            value => Ok(value),
        }
    }

    async fn config_map(&self, name: &str) -> Result<Option<Variables>> {
        let object = self
            .config_maps
            .get_opt(name)
            .await
            .with_context(|| format!("reading the ConfigMap {name}"))?;
        Ok(object.map(|object| object.data.unwrap_or_default()))
    }

    async fn secret(&self, name: &str) -> Result<Option<Variables>> {
        let object = self
            .secrets
            .get_opt(name)
            .await
            .with_context(|| format!("reading the Secret {name}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(object.map(|object| {
            object
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, text(value.0)))
                .collect()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_needs_every_variable() {
        let mut variables: Variables = [
            ("DB_HOST", "pooler"),
            ("DB_PORT", "5432"),
            ("DB_NAME", "mastodon"),
            ("DB_USER", "mastodon"),
            ("DB_PASS", "secret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let found = login(&variables).unwrap();
        assert_eq!(
            format!("{found:?}"),
            "mastodon@pooler:5432/mastodon",
            "the password is not printed"
        );
        variables.remove("DB_HOST");
        assert_eq!(
            login(&variables).unwrap_err().to_string(),
            "the variable DB_HOST is not set"
        );
    }
}
