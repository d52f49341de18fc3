//! The environment of the cutover; keys of `manifests/base/settings.env`.

use std::time::Duration;

use serde::Deserialize;
use shared::config::{List, Name, Pairs, Text};

use crate::decision::Limits;

/// What the cutover is told. `SOURCE_*` and `TARGET_*` connections are read beside it.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// The `postgresql` resource.
    pub source_cluster: Name,
    /// The CNPG Cluster.
    pub target_cluster: Name,
    /// The application's database.
    pub database: Text,
    /// The application's Deployments.
    pub apps: List<Name>,
    /// The application's ConfigMap.
    pub app_configmap: Name,
    /// Its keys and values after the cut, as `KEY=value,KEY=value`.
    pub app_config_target: Pairs,
    /// How traffic reaches the target.
    pub route: Route,
    /// Print the plan and change nothing.
    pub dry_run: bool,
    /// Longest time from the block to the point of no return, in seconds.
    pub cutover_max_seconds: u64,
    /// Most bytes that the target may lag behind before the cut begins.
    pub lag_bytes_max: u64,
}

/// ROUTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The guide's way: the application's ConfigMap is changed while it is scaled to 0.
    Config,
}

impl Settings {
    /// What `decide` needs of it.
    pub fn limits(&self) -> Limits {
        Limits {
            cutover_max: Duration::from_secs(self.cutover_max_seconds),
            config: self.app_config_target.0.clone(),
        }
    }
}
