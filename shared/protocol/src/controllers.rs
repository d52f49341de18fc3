//! Controllers that would revert a cutover: which of them manage what it changes, and the field of
//! each that suspends it.

pub mod detection;
pub mod owners;
pub mod suspension;
