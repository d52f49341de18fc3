//! Brings the application back to the source when a cutover was stopped before its point of no
//! return.
//!
//! A cutover goes back by itself where it must, also when it is asked to (`kubectl annotate
//! cronjob/replica-migration-cutover replica-migration/abort=true`). This is for when none runs any
//! more: its pod was evicted, its Job deleted.
//!
//! **Promise** when it exits 0: the application runs on the source as before, and everything that
//! the cutover had changed is as it was. Exit 3: that is no longer possible, and the last line says
//! what is; or a cutover still runs.
//!
//! **Steps** (`cut/src/back.rs`): read the record; start the source's server if it was stopped;
//! lift the block; lead Services, poolers and the application to the source as before; give back
//! what was kept still.
//!
//! **Variables**: as cutover's, `cut/src/settings.rs`. A second run changes nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    job::context::main("rollback", cutover::rollback)
}
