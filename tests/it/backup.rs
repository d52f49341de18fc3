//! `final-backup`: whole, disturbed, and with bad input.

mod after_cut;
mod bad_input;
mod bucket;
mod directory;
mod killed;
mod restored;
mod stage;
