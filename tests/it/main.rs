//! Black-box tests of the built programs.
mod source;
