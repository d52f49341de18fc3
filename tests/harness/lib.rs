//! The real parts that the tests and `make rehearse` stand on. In reading order: [`setup`] finds or
//! makes the programs, [`instance`] gives each run its own addresses and directory, [`authority`]
//! signs certificates, [`process`] runs them and leaves nothing behind, [`cost`] sees what they
//! cost, [`control_plane`] is a real Kubernetes API server, [`audit`] reads who used which verb on
//! it, [`source`] is a Patroni cluster as the Zalando operator and Spilo leave it, [`manifests`]
//! renders and applies what users apply, [`kubelet`] runs its Jobs as processes, [`conflicting_controllers`]
//! puts back what a cut changes, [`target`] does to a copy of it what CloudNativePG does,
//! [`unrelated_server`] is a server that is no copy of it, [`s3`] a bucket to keep backups in, [`service`]
//! is kube-proxy and DNS, [`application`] the clients that write, [`ledger`] the verdict on what
//! they were told.

pub mod application;
pub mod audit;
pub mod authority;
pub mod conflicting_controllers;
pub mod control_plane;
pub mod cost;
pub mod disturbed_cutovers;
pub mod instance;
mod interruptible;
pub mod kubelet;
pub mod ledger;
pub mod manifests;
pub mod migration;
pub mod objects;
pub mod process;
mod retry;
pub mod route;
pub mod s3;
pub mod service;
pub mod session;
pub mod setup;
pub mod snapshot;
pub mod source;
pub mod start_probe;
pub mod target;
mod tls;
pub mod unrelated_server;

pub use interruptible::interruptible;
