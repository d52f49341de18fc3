//! What the pods of the source's old poolers show on their consoles.

use crate::{failure::Failure, snapshot::Reachability};

/// A pod of an old pooler, by its console.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolerPodState {
    /// The pod.
    pub pod: String,
    /// What it does with clients.
    pub state: Reachability<PoolerState>,
    /// Server connections that are logging in.
    pub logins: u64,
    /// Process ids of the backends of its server connections.
    pub backends: Vec<i32>,
    /// query_wait_timeout in seconds, 0 for none; asked only before the block.
    pub query_wait_seconds: Option<f64>,
    /// Whether it reaches the server behind it; asked only once the poolers are resumed.
    pub traffic: Option<Traffic>,
}

impl PoolerPodState {
    /// A pod of which only the state is known.
    pub fn new(pod: impl Into<String>, state: Reachability<PoolerState>) -> Self {
        Self {
            pod: pod.into(),
            state,
            logins: 0,
            backends: Vec::new(),
            query_wait_seconds: None,
            traffic: None,
        }
    }
}

/// A pod of an old pooler, as its object shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolerPod {
    /// Its name.
    pub name: String,
    /// The pooler that it belongs to: one for the leader, one for the standbys.
    pub pooler: String,
    /// The hash of the template that it was made from.
    pub template: String,
    /// It accepts connections.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
}

/// What a pooler does with its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolerState {
    /// It serves them.
    Serving,
    /// New transactions wait; these many server connections are still busy.
    Pausing(u64),
    /// All of them wait.
    Paused,
}

/// What the clients of a pooler meet at the server behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// It has a server connection that has logged in since the pooler was resumed. PAUSE closes all
    /// server connections, so each one after it is a login at the server that the Service leads to
    /// now.
    pub connected: bool,
    /// Pools without a server connection whose clients wait for one.
    pub waiting: Vec<WaitingPool>,
    /// Why a login through this pooler failed, if one was tried.
    pub refusal: Option<Failure>,
}

/// A pool without a server connection whose clients wait for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingPool {
    /// The database of its clients.
    pub database: String,
    /// The role of its clients.
    pub user: String,
    /// How long the first of them has waited, in seconds; the time of the pause counts.
    pub seconds: u64,
}

impl Traffic {
    /// The longest time that a client of these pools has waited, in seconds.
    pub fn waited_seconds(&self) -> Option<u64> {
        self.waiting.iter().map(|pool| pool.seconds).max()
    }
}
