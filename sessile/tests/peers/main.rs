//! Tests with peers that Debian stable does not have. `just peers` runs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod envoy;
#[path = "../it/peers/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the test binary `it` uses the rest"
)]
mod peers;
