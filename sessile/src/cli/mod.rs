//! The command line. A stand-in: the real one replaces it.

pub mod probe;
