//! Errors of the shared store.

use std::io;
use std::path::PathBuf;

/// Why a store cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("session.store: {file}: {source}", file = .file.display())]
    File { file: PathBuf, source: io::Error },
    #[error(
        "session.store: the system has no certificate authorities; name one with ?ca=FILE, or install the package ca-certificates"
    )]
    NoAuthorities,
    #[error("session.store: {file} contains no certificate", file = .file.display())]
    NoCertificate { file: PathBuf },
    #[error("session.store: {file}: {source}", file = .file.display())]
    Pem {
        file: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error(
        "session.store: {certificate} and {key} do not belong together: {source}",
        certificate = .certificate.display(),
        key = .key.display()
    )]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("session.store: {0}")]
    Client(#[from] redis::RedisError),
    #[error("session.store: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum RequestError {
    Timeout,
    Store(redis::RedisError),
}
