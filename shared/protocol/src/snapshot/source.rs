//! What the source shows of itself by SQL.

use jiff::Timestamp;

use crate::wal::Timeline;

/// A client session that is not one of the migration's or Patroni's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSession {
    /// Process id of its backend.
    pub pid: i32,
    /// Role it is logged in as.
    pub role: String,
    /// What it calls itself.
    pub application_name: String,
    /// Address it comes from; None for a Unix socket.
    pub address: Option<String>,
    /// Seconds that its transaction has been open; None when it has none.
    pub transaction_seconds: Option<i64>,
}

/// One run of a server, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PostmasterStart(pub i64);

/// What a fence stops, and nothing else: one run of a server that writes one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRun {
    /// The timeline that it writes.
    pub timeline: Timeline,
    /// When its postmaster started.
    pub postmaster_start: PostmasterStart,
}

impl PostmasterStart {
    /// When it began, by the server's clock.
    pub fn began(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0).ok()
    }
}
