//! sessile: keeps TLS sessions attached to a web farm. The library behind the `sessile` binary.

pub mod cli;
pub mod client;
pub mod config;
pub mod probe;
