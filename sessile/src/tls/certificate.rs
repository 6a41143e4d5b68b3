//! Server certificates: reads them from PEM files, and chooses one for a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sessile_proto::Time;

use super::{provider, x509};
use crate::clock;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate {file}: {source}", file = .path.display())]
    Chain { path: PathBuf, source: pem::Error },
    #[error("certificate {file}: the file contains no PEM certificate", file = .path.display())]
    Empty { path: PathBuf },
    #[error("private key {file}: {source}", file = .path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error(
        "private key {key} does not match certificate {chain}: {source}",
        key = .key.display(), chain = .chain.display()
    )]
    Mismatch {
        chain: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

/// Reads a certificate chain and its private key from PEM files.
///
/// # Errors
/// A file cannot be read or parsed, or the key does not match the first certificate.
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
    let certified = CertifiedKey::from_der(certificates, private, &provider::crypto());
    certified
        .map(Arc::new)
        .map_err(|source| CertificateError::Mismatch {
            chain: chain.into(),
            key: key.into(),
            source,
        })
}

/// A certificate chain with its key.
#[derive(Debug)]
pub(super) struct ServerCertificate {
    pub(super) certified: Arc<CertifiedKey>,
    /// The notAfter of each certificate in the chain, in ascending order.
    not_after: Vec<Time>,
}

impl ServerCertificate {
    fn new(certified: Arc<CertifiedKey>) -> Self {
        let mut not_after: Vec<_> = certified
            .cert
            .iter()
            .filter_map(|der| x509::validity(der))
            .map(|validity| clock::at(validity.until))
            .collect();
        not_after.sort_unstable();
        Self {
            certified,
            not_after,
        }
    }

    /// The next time at which a certificate of the chain expires.
    pub(super) fn next_expiry(&self, now: Time) -> Option<Time> {
        // A client that accepts the chain at `now` does not need the certificates that have
        // expired.
        self.not_after.iter().copied().find(|end| *end > now)
    }
}

/// The certificates of a site, one for each key type.
#[derive(Debug)]
pub(super) struct CertificateSet(Vec<ServerCertificate>);

impl CertificateSet {
    pub(super) fn new(certificates: &[Arc<CertifiedKey>]) -> Self {
        Self(
            certificates
                .iter()
                .map(Arc::clone)
                .map(ServerCertificate::new)
                .collect(),
        )
    }

    /// The first certificate with a signature scheme of the client, else the first certificate.
    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> Option<&ServerCertificate> {
        let schemes = hello.signature_schemes();
        self.0
            .iter()
            .find(|certificate| certificate.certified.key.choose_scheme(schemes).is_some())
            // rustls sends access_denied if it has no certificate. With a certificate that the
            // client cannot verify, rustls sends handshake_failure, which is the right alert.
            .or_else(|| self.0.first())
    }
}

impl ResolvesServerCert for CertificateSet {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(&hello)
            .map(|certificate| Arc::clone(&certificate.certified))
    }
}
