//! sessile keeps TLS sessions attached to a web farm.
//!
//! This is the library of the `sessile` binary.

pub mod admin;
pub mod balance;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod farm;
pub mod key;
pub mod lab;
pub mod lifecycle;
pub mod listener;
pub mod live_gauge;
mod locks;
mod log_interval;
mod page;
pub mod probe;
pub mod serve;
pub mod server_names;
pub mod settings;
pub mod state_file;
pub mod store;
pub mod tls;
