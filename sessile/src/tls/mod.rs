//! The server side of TLS. A caller reads the ClientHello and hands over the connection.
//!
//! This module looks up the offered sessions, runs the handshake, and returns a stream and a verdict.
//! Only this module and `client` use rustls connections.
//!
//! Each module imports only modules that stand before it in this list.

pub(crate) mod x509;

mod buffers;
pub(crate) mod io;

mod unbuffered;

mod connection;

mod provider;

mod rustls_session;

mod certificate;
mod client_auth;
mod closing;
mod nonce;
mod sessions;
mod status;

mod template;

mod early_data;
mod resumption;

mod handshake;

mod early_handshake;

mod kernel;

mod record_layer;

mod stream;

mod accept;

pub use accept::{Accepted, Handshake, accept};
pub use certificate::{CertificateError, load as load_certificate};
pub use client_auth::{ClientAuthError, ClientAuthorities};
pub use handshake::{AcceptError, HANDSHAKE_DEADLINE};
pub use kernel::{FileSender, KernelSupport, Sent, Unavailable};
pub use sessions::{Sessions, site_id};
pub use status::{Completion, Status};
pub use stream::Stream;
pub use template::Template;
