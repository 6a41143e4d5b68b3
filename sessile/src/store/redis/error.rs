//! Errors of the shared store.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Why a store cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("session.store: {file}: {source}", file = .file.display())]
    File {
        file: PathBuf,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error(
        "session.store: the system has no certificate authorities; name one with ?ca=FILE, or install the package ca-certificates"
    )]
    NoAuthorities,
    #[error("session.store: {file} contains no certificate", file = .file.display())]
    NoCertificate { file: PathBuf },
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
    #[error("session.store: TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("session.store: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StoreError {
    /// A problem with this file.
    pub(super) fn file(file: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::File {
            file: file.to_owned(),
            source: source.into(),
        }
    }
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum RequestError {
    Timeout,
    Store(redis::RedisError),
}
