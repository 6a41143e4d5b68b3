//! The shared session store, with a real Redis behind real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bodies;
mod cluster;
mod failures;
mod farm;
#[path = "../peers/mod.rs"]
mod peers;
mod proxy;
mod secured;
mod setup;
mod snapshot;
