//! The real parts that the tests and `make rehearse` stand on.
