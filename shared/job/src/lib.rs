//! The life of a Job. It knows nothing of PostgreSQL's or an operator's state; `platform` is built
//! on it. In reading order:
//!
//! 1. [`context`]: what happens before and after a program's work: settings, client, SIGTERM,
//!    termination message and exit code.
//! 2. [`error`]: the error type of all programs and its kinds; [`sqlstate`] derives the kind of an
//!    error that a PostgreSQL server reported.
//! 3. [`config`]: the environment as typed settings.
//! 4. [`report`]: the log, the Events and the termination message; [`quantity`] formats sizes and
//!    times for it.
//! 5. [`wait`]: the polling loop.
//! 6. [`http`], [`client`], [`kubernetes`] and [`pods`]: the HTTP client, the Kubernetes API
//!    client, calls of the API, and the Pod type. `http` lives here and not in `platform`, because
//!    the API client is built on it; Patroni's client and the bucket's use the same one.
//! 7. [`record_store`] and [`lease`]: what a Job keeps in the Kubernetes API: its record, and the
//!    Lease that keeps a second run of the same step out.
//!
//! A function that calls the Kubernetes API returns the API's error, classified as described at
//! `impl From<kube::Error> for` [`error::Error`]. An `# Errors` section names only what goes beyond
//! that.

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
