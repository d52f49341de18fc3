//! cutover, black box: its promise under load, what it does when it is killed, raced, fought or
//! misled, and what a bare script does in its stead.

mod bad_input;
mod contenders;
mod cuts;
mod environment;
mod whole;
