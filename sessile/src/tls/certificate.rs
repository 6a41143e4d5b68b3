//! Certificates and private keys: reading them from PEM, choosing one for a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate {file}: {source}", file = .path.display())]
    Chain { path: PathBuf, source: pem::Error },
    #[error("certificate {file}: no certificate in it; it must be PEM", file = .path.display())]
    Empty { path: PathBuf },
    #[error("private key {file}: {source}", file = .path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error(
        "private key {key} does not go with certificate {chain}: {source}",
        key = .key.display(), chain = .chain.display()
    )]
    Mismatch {
        chain: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

/// Reads a chain and its key, both PEM, and makes sure that they belong together.
///
/// # Errors
/// With the file and what is wrong with it.
pub fn load(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, CertificateError> {
    let chain_error = |source| CertificateError::Chain {
        path: chain.into(),
        source,
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .map_err(chain_error)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(chain_error)?;
    if certificates.is_empty() {
        return Err(CertificateError::Empty { path: chain.into() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| CertificateError::Key {
        path: key.into(),
        source,
    })?;
    let certified = CertifiedKey::from_der(certificates, private, &super::crypto());
    certified
        .map(Arc::new)
        .map_err(|source| CertificateError::Mismatch {
            chain: chain.into(),
            key: key.into(),
            source,
        })
}

/// The first certificate whose key the client can verify, else the first certificate.
#[derive(Debug)]
pub(super) struct ByKeyType(pub(super) Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByKeyType {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.0
            .iter()
            .find(|certified| certified.key.choose_scheme(schemes).is_some())
            // With any certificate rustls goes on and sends handshake_failure. Without one it would
            // send access_denied.
            .or_else(|| self.0.first())
            .cloned()
    }
}
