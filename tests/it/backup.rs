//! `final-backup`: whole, disturbed, and with bad input.

mod after_cut;
mod bad_input;
mod bucket;
mod directory;
mod environment;
mod killed;
mod restored;
