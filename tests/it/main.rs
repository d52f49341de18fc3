//! Black-box tests of the built programs.
mod manifests;
mod source;
