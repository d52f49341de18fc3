//! The cut: how the service moves from the source to the target, and back. `cutover` and `rollback`
//! are two ways into it.
//!
//! In reading order: the ways in ([`run`]), what is told ([`settings`]), what is remembered
//! (`journal`), what is seen (`observation`, `contenders`), what follows from both (`decide`,
//! `forward`, `after`, `back`, `proof`: pure, no clock and no I/O), the loop that looks, decides
//! and acts (`drive`), and the real world (`live`). `model` searches the interleavings that the
//! protocol can meet.

mod after;
mod back;
mod contenders;
mod decide;
mod decision;
mod drive;
mod failpoint;
mod forward;
mod freeze;
mod journal;
mod live;
#[cfg(test)]
mod model;
mod observation;
mod plan;
mod preflight;
mod proof;
mod receipt;
pub mod run;
pub mod settings;
mod stops;
