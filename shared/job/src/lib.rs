//! The life of a Job: its context and its end ([`context`], [`report`], [`quantity`]), how it fails
//! ([`error`]), its settings ([`config`]), how it waits ([`wait`]), the Kubernetes API ([`client`],
//! [`kubernetes`], by way of [`http`]), and what it keeps there ([`record_store`], [`lease`]).

pub mod client;
pub mod config;
pub mod context;
pub mod error;
pub mod http;
pub mod kubernetes;
pub mod lease;
pub mod pods;
pub use protocol::quantity;
pub mod record_store;
pub mod report;
pub mod sqlstate;
pub mod wait;
