//! The test harness: real servers and imitated operators for the tests, `make rehearse` and `make
//! soak`; see README.md in this directory. In reading order: [`setup`] finds or builds the
//! programs, [`instance`] gives each run its own addresses and directory, [`authority`] signs
//! certificates, [`process`] runs child processes and cleans them up, [`cost`] measures them,
//! [`control_plane`] is a real Kubernetes API server, [`audit`] reads who used which verb on it,
//! [`source`] is a Patroni cluster as the Zalando operator and Spilo leave it, [`manifests`]
//! renders and applies what users apply, [`kubelet`] runs its Jobs as processes,
//! [`conflicting_controllers`] revert what a cutover changes, [`target`] imitates CloudNativePG,
//! [`unrelated_server`] is a server that is not a copy of the source, [`s3`] is an object store for
//! backups, [`service`] imitates kube-proxy and DNS, [`application`] runs the clients that write,
//! and [`ledger`] judges what became of their writes. [`migration`] combines these parts, and
//! [`disturbed_cutovers`] runs many cutovers with faults.

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
