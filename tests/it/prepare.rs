//! `prepare-zalando` against a real Patroni cluster and a real API server, as the Job of the
//! manifests runs it.

mod bad_input;
mod effects;
mod environment;
mod field;
mod rolling;
mod variants;
