//! The protocol of a cutover, without a server, a clock or an input or output of its own.
//!
//! In reading order: positions and identities ([`wal`]), what is observed ([`snapshot`]), what is
//! found in it ([`checks`], each a [`finding`]), what is remembered ([`record`]), what follows from both ([`decide`], with its parts
//! [`cutover`], [`completion`], [`rollback`] and [`proof`]), the controllers that would revert a
//! cutover ([`controllers`]), and the loop that observes, decides and acts ([`driver`]). The tests
//! search the interleavings that the protocol can meet (`simulation`).

pub mod checks;
pub mod completion;
pub mod controllers;
pub mod cutover;
pub mod decide;
pub mod decision;
pub mod driver;
pub mod failure;
pub mod finding;
pub mod proof;
pub mod quantity;
pub mod reason;
pub mod record;
pub mod rollback;
pub mod route;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod stops;
pub mod wal;
