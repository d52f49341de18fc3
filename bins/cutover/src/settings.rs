//! The environment of the cutover; keys of `manifests/base/settings.env`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use job::config::{App, CommaList, KeyValues, NonEmptyString, ObjectName, optional};
use platform::{
    collector::Subject,
    kubernetes::{poolers, services},
};
use protocol::{
    decision::Limits, finding::Acceptance, route::Route, snapshot::kubernetes::Selector,
};
use serde::Deserialize;

/// The settings of the cutover. `SOURCE_*` and `TARGET_*` connections are read beside it.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// The `postgresql` resource.
    pub source_cluster: ObjectName,
    /// The CNPG Cluster.
    pub target_cluster: ObjectName,
    /// The application's database.
    pub database: NonEmptyString,
    /// The application's Deployments and StatefulSets.
    pub apps: CommaList<App>,
    /// The application's CronJobs.
    pub app_cronjobs: CommaList<ObjectName>,
    /// The application's ConfigMap.
    pub app_configmap: ObjectName,
    /// Its keys and values after the cutover, as `KEY=value,KEY=value`.
    pub app_config_target: KeyValues,
    /// How the application reaches the target; None: by the Services where the source has poolers.
    #[serde(deserialize_with = "job::config::route")]
    pub route: Option<Route>,
    /// The user of the poolers' consoles.
    pub pooler_user: NonEmptyString,
    /// Its password.
    pub pooler_password_file: PathBuf,
    /// The hash that the Cluster gives its owner at the promotion, as prepare-zalando has written
    /// it.
    #[serde(default, deserialize_with = "optional")]
    pub owner_hash_file: Option<PathBuf>,
    /// Longest wait for transactions that run through the poolers, in seconds.
    pub pause_max_seconds: u64,
    /// Namespace of Argo CD's Applications.
    pub argocd_namespace: ObjectName,
    /// Print the plan and change nothing.
    pub dry_run: bool,
    /// Longest time from the block to the point of no return, in seconds.
    pub cutover_max_seconds: u64,
    /// Longest time from the request to stop the source until its clean stop is proved, in seconds.
    pub fence_max_seconds: u64,
    /// How long the source's Services are watched once clients are served, in seconds.
    pub services_watch_seconds: u64,
    /// Most bytes that the target may lag behind before the cutover begins.
    pub lag_bytes_max: u64,
    /// The findings that the user accepts.
    #[serde(default = "none")]
    pub accept: CommaList<Acceptance>,
}

fn none() -> CommaList<Acceptance> {
    CommaList(Vec::new())
}

impl Settings {
    /// What the decisions and the checks need of it.
    pub fn limits(&self) -> Limits {
        Limits {
            cutover_max: Duration::from_secs(self.cutover_max_seconds),
            fence_max: Duration::from_secs(self.fence_max_seconds),
            pause_max: Duration::from_secs(self.pause_max_seconds),
            config: self.app_config_target.0.clone(),
            route: self.route,
            services: self.services(),
            services_watch: Duration::from_secs(self.services_watch_seconds),
            lag_bytes_max: self.lag_bytes_max,
            apps: self.apps.0.iter().map(ToString::to_string).collect(),
            app_configmap: self.app_configmap.to_string(),
            accepted: self.accept.0.clone(),
        }
    }

    /// What the collector needs of it.
    pub fn subject(&self) -> Subject {
        Subject {
            source_cluster: self.source_cluster.clone(),
            target_cluster: self.target_cluster.clone(),
            apps: self.apps.0.clone(),
            cron_jobs: self.app_cronjobs.0.clone(),
            app_configmap: self.app_configmap.clone(),
            argocd_namespace: Some(self.argocd_namespace.clone()),
            consoles: poolers::login(
                &self.source_cluster,
                &self.pooler_user,
                &self.pooler_password_file,
            ),
            owner_hash_file: self.owner_hash_file.clone(),
        }
    }

    /// The source's Services and their selectors after the cutover.
    pub fn services(&self) -> BTreeMap<String, Selector> {
        services::repointed(&self.source_cluster, &self.target_cluster)
    }
}

#[cfg(test)]
mod tests {
    use job::config::Connection;
    use variables::Variables;

    use super::*;

    #[test]
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Settings>("")
            .and(Variables::of::<Connection>("SOURCE_"))
            .and(Variables::of::<Connection>("TARGET_"));
        for program in ["cutover", "rollback"] {
            variables::check(program, &read);
        }
    }
}
