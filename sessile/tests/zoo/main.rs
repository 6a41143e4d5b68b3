//! Suites that take minutes and need many foreign programs. `just zoo` runs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod clients;
mod farms;
#[path = "../it/peers/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the test binary `it` uses the rest"
)]
mod peers;
mod postgres;
mod probe;
