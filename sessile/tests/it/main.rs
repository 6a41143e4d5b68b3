//! The program and its library against real peers. One binary: every further one would link the
//! whole program once more.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod client;
mod peers;
mod probe;
mod settings;
mod verdicts;
