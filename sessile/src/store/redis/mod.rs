//! The shared store: Redis or Valkey. If the store does not answer in time, the handshake is full, but it does
//! not fail.
//!
//! Each module imports only modules that stand before it in this list: `error`, `entry`, `metrics`,
//! `circuit_breaker`, `tls_files`, `reply_limits`, `bounded_stream`, `transport`, `sentinel`, `connect`,
//! `single_use`, `server_number`, `store_clock`, `shared_forget_rules`, `remote`, `worker_connection`, `sessions`.

mod bounded_stream;
mod circuit_breaker;
mod connect;
mod entry;
mod error;
mod metrics;
mod remote;
mod reply_limits;
mod sentinel;
mod server_number;
mod sessions;
mod shared_forget_rules;
mod single_use;
mod store_clock;
mod tls_files;
mod transport;
mod worker_connection;

pub use error::StoreError;
pub use shared_forget_rules::{ForgetError, forget};

pub(super) use connect::HEARTBEAT;
pub(super) use entry::StoreLookup;
pub(super) use remote::RemoteStore;
pub(super) use worker_connection::WorkerConnection;
