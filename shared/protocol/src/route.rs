//! How the application is brought to the target.

use serde::{Deserialize, Serialize};

/// How the application is brought to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// By the application's ConfigMap: scaled to 0, its ConfigMap changed, scaled up again.
    Config,
    /// The old poolers are paused, the Services behind them are turned to the target, and the
    /// poolers go on.
    Service,
}

impl Route {
    /// The way that was set, or by the Services where the source has poolers, because then no
    /// client need notice.
    pub fn of(set: Option<Self>, poolers: bool) -> Self {
        set.unwrap_or(if poolers { Self::Service } else { Self::Config })
    }
}
