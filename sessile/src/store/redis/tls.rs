//! Whom a TLS connection to the store trusts, and as whom it presents itself.
//!
//! Authorities are always handed to the client crate. Left to itself it reads the system's store at
//! every connection, on the thread that makes it, which takes tens of milliseconds that a worker's clients
//! would wait, and fails as a whole where one of the system's files cannot be read. It does so even where it
//! is given others; so `Cargo.toml` has it built with authorities of its own, which then nobody uses.

use std::path::Path;

use pem::{EncodeConfig, LineEnding, Pem};
use redis::{ClientTlsConfig, TlsCertificates};

use super::StoreError;
use crate::config::store::RedisTls;

/// Reads the files that are named, or the system's authorities where no others are.
pub(super) fn certificates(tls: &RedisTls) -> Result<TlsCertificates, StoreError> {
    Ok(TlsCertificates {
        client_tls: match &tls.client {
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: read(certificate)?,
                client_key: read(key)?,
            }),
            None => None,
        },
        root_cert: Some(match &tls.ca {
            Some(file) => read(file)?,
            None => system()?,
        }),
    })
}

fn read(file: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(file).map_err(|source| StoreError::File {
        file: file.to_owned(),
        source,
    })
}

/// The system's authorities. It may hold certificates that are no anchors and files that cannot be read; the
/// others count.
fn system() -> Result<Vec<u8>, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    let is_anchor = |certificate: &rustls_pki_types::CertificateDer<'static>| {
        roots.add(certificate.clone()).is_ok()
    };
    let found = rustls_native_certs::load_native_certs().certs.into_iter();
    let anchors: Vec<Pem> = found
        .filter(is_anchor)
        .map(|certificate| Pem::new("CERTIFICATE", certificate.as_ref()))
        .collect();
    if anchors.is_empty() {
        return Err(StoreError::NoAuthorities);
    }
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(pem::encode_many_config(&anchors, lines).into_bytes())
}
