//! sessile: keeps TLS sessions attached to a web farm. The library behind the `sessile` binary.

pub mod check;
pub mod cli;
pub mod config;
pub mod settings;
