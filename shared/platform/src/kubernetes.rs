//! The few fields of each resource that are read or written.

pub mod cnpg;
pub mod poolers;
pub mod services;
pub mod source_tls;
pub mod workloads;
pub mod zalando;
