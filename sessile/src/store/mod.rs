//! Where sessions live.

pub mod memory;
