//! What must hold in every state that the search reaches.

use std::fmt;

/// An invariant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// Two servers never both accept writes.
    S1,
    /// Every acknowledged write is on the surviving side.
    S2,
    /// Before the point of no return an end leaves the source serving and everything restored.
    S3,
    /// After it nothing reopens the source, and an end is a complete cutover.
    S4,
    /// Nothing is changed that was not recorded first.
    S5,
    /// Client traffic is resumed only to a primary whose restart is over.
    S7,
    /// No pooler stays paused at an end.
    S8,
    /// A pause is lifted only where the leader holds its lock.
    S9,
    /// The end of the downtime is recorded only after the poolers have reached the target, or the
    /// application's pods are ready.
    S10,
    /// Another database system, the target in place of the source, or what a lost record was about
    /// is never acted on.
    S11,
    /// The pause of the poolers interrupts no login that would have ended in time.
    S12,
    /// Without disturbances every state reaches an end.
    Progress,
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The invariant.
    pub invariant: Invariant,
    /// What breaks it; after a search with the trace that leads to it.
    pub how: String,
}

impl Broken {
    pub fn new(invariant: Invariant, how: impl Into<String>) -> Self {
        Self {
            invariant,
            how: how.into(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.how)
    }
}
