//! The protocol of a cutover, without a server, a clock or an input or output of its own.
//!
//! In reading order: positions and identities ([`wal`]), what is observed ([`snapshot`]) and judged
//! ([`checks`], each with its [`finding`]s), what is recorded ([`record`], [`receipt`]), what
//! follows from both ([`decide`], with its parts [`cutover`], [`completion`], [`rollback`],
//! [`proof`], [`instances`], [`calm`] and [`served`]), how each step is reported and where it leads
//! ([`steps`]), the controllers that would revert the cutover ([`controllers`]), and the loop that
//! observes, decides and acts ([`driver`]). The tests search the interleavings that the protocol
//! can meet ([`simulation`]).

pub mod calm;
pub mod checks;
pub mod completion;
pub mod controllers;
pub mod cutover;
pub mod decide;
pub mod decision;
pub mod driver;
pub mod failure;
pub mod finding;
pub mod instances;
pub mod manifest;
pub mod network;
pub mod postgres_version;
pub mod proof;
pub mod quantity;
pub mod reason;
pub mod receipt;
pub mod record;
pub mod rollback;
pub mod route;
pub mod served;
pub mod simulation;
pub mod snapshot;
pub mod steps;
pub mod wal;
