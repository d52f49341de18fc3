//! The resources of both operators and of Kubernetes, each with the fields that are read or
//! written. The types of k8s-openapi with all fields would make the programs larger.

pub mod cnpg;
pub mod manifest;
pub mod network_policies;
pub mod poolers;
pub mod services;
pub mod source_tls;
pub mod workloads;
pub mod zalando;
