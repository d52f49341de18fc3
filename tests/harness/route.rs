//! How the application is brought to the target: ROUTE of the cutover.

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// The old poolers are paused and the Services behind them turned; no pod is restarted.
    Service,
    /// The guide's way: the application to 0, its ConfigMap, and up again.
    Config,
}

impl Route {
    /// As in settings.env.
    pub fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Config => "config",
        }
    }
}
