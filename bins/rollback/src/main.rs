//! Rolls the application back to the source after a cutover has ended before its point of no
//! return.
//!
//! A running cutover rolls back by itself where it must, and also on request (`kubectl annotate
//! cronjob/replica-migration-cutover replica-migration/abort=true`). This program is for a cutover
//! that no longer runs: its pod was evicted, or its Job deleted.
//!
//! **Promise** when it exits 0: the application runs on the source as before, and everything that
//! the cutover had changed is restored. Exit 3: a rollback is no longer possible, or a cutover
//! still runs; the last line says which, and what is possible instead.
//!
//! **Steps** (`protocol::rollback`): read the record; start the source's server if it was stopped;
//! unblock writes; repoint Services, poolers and the application to the source; resume the
//! controllers that were suspended.
//!
//! **Variables**: those of cutover, `bins/cutover/src/settings.rs`. A second run changes nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    job::context::main("rollback", cutover::rollback)
}
