//! Black-box tests of the built programs.
mod kubelet;
mod manifests;
mod source;
