//! Settings and rights in force at both servers.

use serde::{Deserialize, Serialize};

/// The five settings that a standby needs as large as its primary has them (PostgreSQL
/// documentation, *Hot Standby, Administrator's Overview*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are PostgreSQL's own settings")]
pub struct HotStandby {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

impl HotStandby {
    /// Name and value of each.
    pub fn named(&self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// On which side our role is a superuser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperuserLogins {
    /// SOURCE_USER at the source.
    pub source: bool,
    /// TARGET_USER at the target.
    pub target: bool,
}
