//! Moves the application from the source to the target: the planned downtime of the migration.
//!
//! **Promise** when it exits 0: the application runs on the target, nothing acknowledged was lost,
//! the source cannot take a write, and the ConfigMap `cutover-<cluster>-receipt` proves it. Exit 3:
//! the application runs on the source as before.
//!
//! **Steps** (`cut/src/decide.rs` is the only place that knows their order; `back.rs` beside it is
//! the way back until the point of no return)
//! 1. check everything, record identities and replica counts
//! 2. freeze the Zalando operator for this cluster
//! 3. checkpoints, so that those in the downtime are short
//! 4. block writes: Patroni's pause and read-only; end the client sessions; the application to 0 —
//!    DOWNTIME BEGINS
//! 5. wait until the target has replayed the marker
//! 6. fence: stop the source's server, prove from the target that its last record has arrived
//!    (`cut/src/proof.rs`)
//! 7. record the promotion — POINT OF NO RETURN — and promote
//! 8. wait for primary and for CNPG's restart; prove a write
//! 9. route the application to the target — DOWNTIME ENDS
//! 10. write the receipt
//!
//! **Variables**: `cut/src/settings.rs`, and the connections `SOURCE_*` and `TARGET_*`. A second
//! run goes on where the first one ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    job::context::main("cutover", cutover::cutover)
}
