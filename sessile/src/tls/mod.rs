//! TLS as a server speaks it. Takes a connection whose ClientHello was read, looks up the offered
//! sessions before the handshake runs, and returns a stream and a verdict. No other module knows which
//! library does the cryptography.
//!
//! Each module imports only modules that stand before it in this list.

pub(crate) mod x509;

mod provider;

mod rustls_session;

mod certificate;
mod client_auth;
mod closing;
mod io;
mod nonce;
mod record_size;
mod sessions;
mod status;

mod template;

mod early_data;
mod resumption;

mod handshake;

mod early_handshake;

mod stream;

mod accept;

pub use accept::{Accepted, Handshake, accept};
pub use certificate::{CertificateError, load as load_certificate};
pub use client_auth::{ClientAuthError, ClientAuthorities};
pub use handshake::{AcceptError, HANDSHAKE_DEADLINE};
pub use sessions::{Sessions, site_id};
pub use status::{Completion, Status};
pub use stream::Stream;
pub use template::Template;
