//! The certificate with which a client authenticates, and whether a server requested one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A client's certificate chain and private key.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Arc<CertifiedKey>);

/// A client's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    #[error("cannot read a certificate from {path}: {source}", path = .path.display())]
    Chain {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{}: contains no PEM certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("cannot read a private key from {path}: {source}", path = .path.display())]
    Key {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{path}: the TLS library cannot use this private key: {source}", path = .path.display())]
    UnusableKey {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("the private key in {key} does not match the certificate in {chain}", key = .key.display(), chain = .chain.display())]
    Mismatch { chain: PathBuf, key: PathBuf },
}

impl ClientCertificate {
    /// Reads the chain and the private key from PEM files. One file can have both.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used, or the key does not match the certificate.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, ClientCertificateError> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect)
            .map_err(|source| ClientCertificateError::Chain {
                path: chain.to_owned(),
                source,
            })?;
        if certificates.is_empty() {
            return Err(ClientCertificateError::NoCertificate(chain.to_owned()));
        }
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|source| ClientCertificateError::Key {
                path: key.to_owned(),
                source,
            })?;
        let signer =
            any_supported_type(&private).map_err(|source| ClientCertificateError::UnusableKey {
                path: key.to_owned(),
                source,
            })?;
        let certified = CertifiedKey::new(certificates, signer);
        if certified.keys_match().is_err() {
            return Err(ClientCertificateError::Mismatch {
                chain: chain.to_owned(),
                key: key.to_owned(),
            });
        }
        Ok(Self(Arc::new(certified)))
    }
}

/// Gives rustls the client's certificate, and notes the request of the server.
#[derive(Debug)]
pub(super) struct CertificateSource {
    certificate: Option<ClientCertificate>,
    requested: AtomicBool,
}

impl CertificateSource {
    pub(super) fn new(certificate: Option<&ClientCertificate>) -> Self {
        Self {
            certificate: certificate.cloned(),
            requested: AtomicBool::new(false),
        }
    }

    pub(super) fn forget_request(&self) {
        self.requested.store(false, Ordering::Relaxed);
    }

    /// True if a server requested a certificate since [`CertificateSource::forget_request`].
    pub(super) fn was_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for CertificateSource {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _signature_schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.requested.store(true, Ordering::Relaxed);
        self.certificate.as_ref().map(|own| Arc::clone(&own.0))
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}
