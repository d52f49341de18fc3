//! How the application's traffic is routed to the target: the cutover's setting ROUTE.

/// A value of ROUTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// The source's poolers are paused and its Services repointed; no pod restarts.
    Service,
    /// The application is scaled to 0, its ConfigMap is changed, and it is scaled up again.
    Config,
}

impl Route {
    /// The value in settings.env.
    pub fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Config => "config",
        }
    }
}
