//! The environment of this step; keys of `manifests/base/settings.env`.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use job::config::{App, CommaList, KeyValues, NonEmptyString, ObjectName, optional};
use platform::{
    collector::Subject,
    kubernetes::{poolers, services},
};
use protocol::{decision::Limits, finding::Acceptance, route::Route};
use serde::Deserialize;

/// The settings of this step. The connections `SOURCE_*` and `TARGET_*` are read beside it.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// The `postgresql` resource.
    pub source_cluster: ObjectName,
    /// The CNPG Cluster.
    pub target_cluster: ObjectName,
    /// The application's database.
    pub database: NonEmptyString,
    /// Tables whose rows are compared.
    pub key_tables: CommaList<TableName>,
    /// Most bytes that the target may lag behind.
    pub lag_bytes_max: u64,
    /// Longest wait for the clone to finish, in seconds.
    pub validate_max_seconds: u64,
    /// The application's workloads.
    pub apps: CommaList<App>,
    /// The application's ConfigMap.
    pub app_configmap: ObjectName,
    /// Its keys and values after the cutover.
    pub app_config_target: KeyValues,
    /// How the application will be brought to the target; None: by the Services where the source
    /// has poolers.
    #[serde(deserialize_with = "job::config::route")]
    pub route: Option<Route>,
    /// The user of the poolers' consoles.
    pub pooler_user: NonEmptyString,
    /// Its password.
    pub pooler_password_file: PathBuf,
    /// The hash that the Cluster gives its owner at the promotion.
    #[serde(default, deserialize_with = "optional")]
    pub owner_hash_file: Option<PathBuf>,
    /// The findings that the user accepts.
    #[serde(default = "none")]
    pub accept: CommaList<Acceptance>,
}

fn none() -> CommaList<Acceptance> {
    CommaList(Vec::new())
}

impl Settings {
    /// The longest that this step takes.
    pub fn validate_max(&self) -> Duration {
        Duration::from_secs(self.validate_max_seconds)
    }

    /// What the checks need of it; the times are cutover's.
    pub fn limits(&self) -> Limits {
        Limits {
            config: self.app_config_target.0.clone(),
            route: self.route,
            services: services::repointed(&self.source_cluster, &self.target_cluster),
            lag_bytes_max: self.lag_bytes_max,
            apps: self.apps.0.iter().map(ToString::to_string).collect(),
            app_configmap: self.app_configmap.to_string(),
            accepted: self.accept.0.clone(),
            ..Limits::default()
        }
    }

    /// What the collector needs of it.
    pub fn subject(&self) -> Subject {
        Subject {
            source_cluster: self.source_cluster.clone(),
            target_cluster: self.target_cluster.clone(),
            apps: self.apps.0.clone(),
            cron_jobs: Vec::new(),
            app_configmap: self.app_configmap.clone(),
            argocd_namespace: None,
            consoles: poolers::login(
                &self.source_cluster,
                &self.pooler_user,
                &self.pooler_password_file,
            ),
            owner_hash_file: self.owner_hash_file.clone(),
        }
    }
}

/// A table as it is spelled in the catalog, with or without its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// None: the only table of this name, or the one in `public`.
    pub schema: Option<String>,
    /// Name without schema.
    pub table: String,
}

impl FromStr for TableName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('.').collect();
        let (schema, table) = match parts.as_slice() {
            [table] => (None, *table),
            [schema, table] => (Some((*schema).to_owned()), *table),
            _ => return Err(format!("{text:?} is not table or schema.table")),
        };
        if table.is_empty() || schema.as_deref() == Some("") || text.contains('"') {
            return Err(format!(
                "{text:?} is not table or schema.table (spelled as in the catalog, without quotes)"
            ));
        }
        Ok(Self {
            schema,
            table: table.to_owned(),
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

#[cfg(test)]
mod tests {
    use job::config::Connection;
    use variables::Variables;

    use super::*;

    #[test]
    fn a_table_may_name_its_schema_and_nothing_more() {
        let table: TableName = "app.users".parse().unwrap();
        assert_eq!(
            (
                table.schema.as_deref(),
                table.table.as_str(),
                table.to_string().as_str()
            ),
            (Some("app"), "users", "app.users")
        );
        assert_eq!("users".parse::<TableName>().unwrap().schema, None);
        for wrong in ["", ".users", "app.", "db.app.users", "\"users\""] {
            assert!(wrong.parse::<TableName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Settings>("")
            .and(Variables::of::<Connection>("SOURCE_"))
            .and(Variables::of::<Connection>("TARGET_"));
        variables::check("validate-replication", &read);
    }
}
