//! The whole migration on this machine.
fn main() {}
