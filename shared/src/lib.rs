//! What the programs of the migration share, in reading order: how a Job runs and reports ([`job`], [`report`]), how it fails
//! ([`error`]), its settings ([`config`]), its one way to wait ([`wait`]), what it remembers ([`record`]), and the two worlds that
//! it acts on ([`postgres`], [`kubernetes`]).

pub mod config;
pub mod error;
pub mod job;
pub mod kubernetes;
pub mod postgres;
pub mod record;
pub mod report;
pub mod wait;
