//! Black-box tests of the built programs.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by a panic, in its helpers as well"
)]

mod adopt;
mod backup;
mod certs;
mod cutover;
mod documents;
mod kubelet;
mod manifests;
mod prepare;
mod released;
mod source;
mod target;
mod validate;
mod words;
