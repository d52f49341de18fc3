//! `final-backup`: complete runs, interrupted runs, and bad input.

mod after_cutover;
mod bad_input;
mod bucket;
mod directory;
mod environment;
mod killed;
mod major_versions;
mod restored;
