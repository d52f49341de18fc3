//! The whole migration on this machine.

mod chart;
mod report;

fn main() {}
