//! Settings that must agree on both servers.

use super::Session;
use job::error::{Context as _, Result};
use protocol::snapshot::settings::HotStandby;

/// The five settings in force that must be at least as large on a standby as on its primary
/// (PostgreSQL documentation, *Hot Standby*, *Administrator's Overview*).
pub async fn hot_standby(session: &Session) -> Result<HotStandby> {
    let row = session
        .query_one(
            "select current_setting('max_connections')::int,
                    current_setting('max_worker_processes')::int,
                    current_setting('max_wal_senders')::int,
                    current_setting('max_prepared_transactions')::int,
                    current_setting('max_locks_per_transaction')::int",
            &[],
        )
        .await
        .context("reading the hot-standby settings")?;
    let value = |column: usize| row.get::<_, i32>(column).unsigned_abs();
    Ok(HotStandby {
        max_connections: value(0),
        max_worker_processes: value(1),
        max_wal_senders: value(2),
        max_prepared_transactions: value(3),
        max_locks_per_transaction: value(4),
    })
}
