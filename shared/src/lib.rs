//! What the programs of the migration share, in reading order: how a Job runs and reports ([`job`],
//! [`report`], [`quantity`]), how it fails ([`error`]), its settings ([`config`]), its one way to
//! wait ([`wait`]), what it remembers ([`record`]), the two worlds that it acts on ([`postgres`];
//! [`kubernetes`], by way of [`http`]), and what must hold in them before a cut ([`readiness`]).

pub mod config;
pub mod error;
pub mod http;
pub mod job;
pub mod kubernetes;
pub mod pki;
pub mod postgres;
pub mod quantity;
pub mod readiness;
pub mod record;
pub mod report;
pub mod wait;
