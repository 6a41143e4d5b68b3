//! Kernel TLS. These tests need a kernel that has it: `just ktls` runs them in virtual machines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod costs;
mod ends;
mod files;
mod key_updates;
mod nonces;
#[path = "../it/peers/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the test binary `it` uses the rest"
)]
mod peers;
mod site;
mod without_module;
