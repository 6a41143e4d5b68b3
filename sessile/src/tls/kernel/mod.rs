//! TLS records in the kernel (`tls.kernel`). After the handshake, a socket gets the keys of its connection. Then
//! `sendfile` sends files without a copy through this process.
//!
//! `probe` tries which connections the kernel can encrypt. `socket` has the system calls, and all `unsafe` code.
//! This module makes no handshake, and takes over both directions of a connection or none.

mod keys;
mod socket;

mod probe;

mod records;

pub use probe::{KernelSupport, Unavailable};
pub(super) use records::{KernelRecords, OffloadError, poll_end};
pub use socket::{FileSender, Sent};
