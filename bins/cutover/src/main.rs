//! Moves the application from the source to the target: the planned downtime of the migration.
//!
//! **Promise** when it exits 0: the application runs on the target, nothing acknowledged was lost,
//! the source cannot take a write, and the ConfigMap `cutover-<cluster>-receipt` proves it. Exit 3:
//! the application runs on the source as before.
//!
//! **Steps**, once all checks pass (`shared/protocol/src/steps.rs` is their table, `decide.rs`
//! beside it the only place that decides which one is next)
//! 1. record the identities, the settings and the replica counts
//! 2. suspend the controllers that would revert the cutover
//! 3. keep the source's server stopped if it crashes
//! 4. checkpoint both sides, so that those in the downtime are short
//! 5. DOWNTIME BEGINS: block writes at the source
//! 6. end the client sessions of the source and record its position
//! 7. wait until the target has replayed the marker
//! 8. stop the source's server cleanly; prove that the target has its last record
//! 9. POINT OF NO RETURN: record the promotion
//! 10. promote the target and verify a write
//! 11. repoint the application to the target
//! 12. DOWNTIME ENDS: resume client traffic
//! 13. set replica.enabled: false in the stored manifest of the target
//! 14. look for sessions at the source's standbys
//! 15. resume the suspended controllers and write the receipt
//!
//! Until 9 it rolls back where it must. A second run continues where the first one ended.
//!
//! **Variables**: `settings.rs`, and the connections `SOURCE_*` and `TARGET_*`.

use std::process::ExitCode;

fn main() -> ExitCode {
    job::context::main("cutover", cutover::cutover)
}
