//! Verifies server certificates by the system's authorities, by given authorities, or not at all.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::SetupError;

/// The server certificates that a client accepts.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Certificates of the system's authorities.
    System,
    /// Certificates of these authorities only.
    Ca(Vec<CertificateDer<'static>>),
    /// All certificates. Signatures are still checked, so the server must hold the certificate's
    /// private key.
    Insecure,
}

impl Trust {
    /// The authorities in a PEM file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not PEM, or holds no certificate.
    pub fn ca_file(path: &Path) -> Result<Self, SetupError> {
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| SetupError::CaFile {
                path: path.to_owned(),
                source,
            })?;
        if certificates.is_empty() {
            return Err(SetupError::NoCa);
        }
        Ok(Self::Ca(certificates))
    }

    pub(super) fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, SetupError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Insecure => return Ok(Arc::new(AcceptAnyCertificate(provider))),
            Self::System => {
                // Skip certificates of the system's store that cannot be trust anchors.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Self::Ca(certificates) => {
                for certificate in certificates {
                    roots
                        .add(certificate.clone())
                        .map_err(SetupError::CaCertificate)?;
                }
            }
        }
        if roots.is_empty() {
            return Err(SetupError::NoCa);
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        // Without revocation lists, building the verifier fails only if there are no roots.
        Ok(builder.build().map_err(|_| SetupError::NoCa)?)
    }
}

/// Accepts every certificate, but refuses wrong signatures.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused_and_a_missing_one_is_named() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Trust::ca_file(empty.path()),
            Err(SetupError::NoCa)
        ));
        let error = Trust::ca_file(Path::new("no-such.pem")).unwrap_err();
        assert!(error.to_string().contains("no-such.pem"), "{error}");
    }
}
