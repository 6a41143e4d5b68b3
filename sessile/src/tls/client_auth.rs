//! Client certificates: loads the authorities of a site, and verifies resumed clients again.
//!
//! rustls verifies a client's chain in full handshakes only. Before a session resumes, this module
//! verifies the chain that the session stores.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use sessile_proto::Time;
use sessile_proto::ticket::ClientAuth as Mode;
use sessile_proto::verdict::Reason;

use super::{provider, rustls_session, x509};
use crate::locks::locked;
use crate::{clock, config};

/// Most bytes of a file with authorities or revocation lists.
///
/// Every full handshake with a client certificate hashes a revocation list. For a longer list, the hash
/// would take too long.
const MAX_BYTES: u64 = (1 << 24) - 1;

/// How long a successful verification of a chain is cached.
const VERIFIED_TTL: Duration = Duration::from_secs(60);

/// Most verified chains in the cache of one site and worker thread.
const MAX_VERIFIED: usize = 4096;

/// Why the files of `client-auth` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientAuthError {
    #[error("client-auth: {}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("client-auth: {}: longer than {MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("client-auth: {}: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error(
        "client-auth: {}: contains no PEM certificate; `ca` names the authorities that issue the clients' \
         certificates", .0.display()
    )]
    NoAuthority(PathBuf),
    #[error("client-auth: {}: certificate {number} cannot be used as an authority: {source}", path.display())]
    Authority {
        path: PathBuf,
        number: usize,
        source: rustls::Error,
    },
    #[error(
        "client-auth: {}: contains no revocation list; `crl` is a file of BEGIN X509 CRL blocks, or one list in \
         DER", .0.display()
    )]
    NoList(PathBuf),
    #[error("client-auth: {}: a revocation list cannot be used: {source}", path.display())]
    List {
        path: PathBuf,
        source: VerifierBuilderError,
    },
}

/// The authorities and revocation lists of a site, as loaded from its files.
pub struct ClientAuthorities {
    /// The root certificates; at least one.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The revocation lists; empty if none are configured.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    mode: Mode,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthorities {
    /// Reads the files of a site.
    ///
    /// # Errors
    /// A file cannot be read, is too long, or cannot be used.
    pub fn load(config: &config::ClientAuth) -> Result<Self, ClientAuthError> {
        let ca = &config.ca;
        let authorities = read_authorities(ca)?;
        let mut roots = RootCertStore::empty();
        for (index, certificate) in authorities.iter().enumerate() {
            roots
                .add(certificate.clone())
                .map_err(|source| ClientAuthError::Authority {
                    path: ca.clone(),
                    number: index + 1,
                    source,
                })?;
        }
        let lists = match &config.crl {
            Some(path) => read_lists(path)?,
            None => Vec::new(),
        };
        let provider = Arc::new(provider::crypto());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(lists.iter().cloned())
            .enforce_revocation_expiration();
        // Most operators have the list of the issuing authority only. Without a root's list, an
        // intermediate certificate cannot be checked.
        if !has_list_of_root(&lists, &authorities) {
            builder = builder.only_check_end_entity_revocation();
        }
        let mode = match config.mode {
            config::ClientAuthMode::Required => Mode::Required,
            config::ClientAuthMode::Optional => {
                builder = builder.allow_unauthenticated();
                Mode::Optional
            }
        };
        let verifier = builder.build().map_err(|source| ClientAuthError::List {
            path: config.crl.clone().unwrap_or_default(),
            source,
        })?;
        Ok(Self {
            authorities,
            lists,
            mode,
            verifier,
        })
    }
}

/// True if a root issued one of the lists.
fn has_list_of_root(
    lists: &[CertificateRevocationListDer<'_>],
    authorities: &[CertificateDer<'_>],
) -> bool {
    lists
        .iter()
        .filter_map(|list| x509::revocation_list(list))
        .any(|list| {
            authorities
                .iter()
                .any(|authority| x509::subject(authority) == Some(list.issuer))
        })
}

fn read(path: &Path) -> Result<Vec<u8>, ClientAuthError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| ClientAuthError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ClientAuthError::TooLong(path.to_owned()));
    }
    Ok(bytes)
}

fn read_pem<T: PemObject>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, ClientAuthError> {
    let read: Result<Vec<_>, _> = T::pem_slice_iter(bytes).collect();
    read.map_err(|source| ClientAuthError::Pem {
        path: path.to_owned(),
        source,
    })
}

fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientAuthError> {
    let authorities: Vec<_> = read_pem(path, &read(path)?)?;
    if authorities.is_empty() {
        return Err(ClientAuthError::NoAuthority(path.to_owned()));
    }
    Ok(authorities)
}

fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ClientAuthError> {
    let bytes = read(path)?;
    if x509::revocation_list(&bytes).is_some() {
        return Ok(vec![bytes.into()]);
    }
    let lists: Vec<_> = read_pem(path, &bytes)?;
    if lists.is_empty() {
        return Err(ClientAuthError::NoList(path.to_owned()));
    }
    Ok(lists)
}

/// Verifies the client certificates of a site. Each worker thread has its own `ClientVerifier`.
pub(super) struct ClientVerifier {
    pub(super) mode: Mode,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The hashes of verified chains, with the time at which each entry ends.
    ///
    /// To verify a chain takes longer than the rest of a resumed handshake. A reload starts with an empty
    /// cache.
    verified: Mutex<HashMap<[u8; digest::SHA256_OUTPUT_LEN], Time>>,
}

impl ClientVerifier {
    pub(super) fn new(authorities: &ClientAuthorities) -> Self {
        Self {
            mode: authorities.mode,
            verifier: Arc::clone(&authorities.verifier),
            verified: Mutex::default(),
        }
    }

    /// Checks that the client of a session would be accepted in a full handshake now.
    ///
    /// # Errors
    /// [`Reason::OldFormat`] if the session cannot be read, and [`Reason::ClientAuth`] if its client is
    /// refused.
    pub(super) fn verify_again(&self, session: &[u8], now: Time) -> Result<(), Reason> {
        let chain = rustls_session::client_chain(session).ok_or(Reason::OldFormat)?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return match self.mode {
                Mode::Required => Err(Reason::ClientAuth),
                Mode::None | Mode::Optional => Ok(()),
            };
        };
        let hash = chain_hash(&chain);
        let mut verified = locked(&self.verified);
        if verified.get(&hash).is_some_and(|until| now < *until) {
            return Ok(());
        }
        let time = UnixTime::since_unix_epoch(Duration::from_millis(now.unix_millis()));
        self.verifier
            .verify_client_cert(leaf, intermediates, time)
            .map_err(|_| Reason::ClientAuth)?;
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, until| now < *until);
        }
        if verified.len() < MAX_VERIFIED {
            verified.insert(hash, chain_expiry(&chain).min(now.plus(VERIFIED_TTL)));
        }
        Ok(())
    }
}

/// The earliest notAfter of a chain; 1970 if a certificate cannot be read.
fn chain_expiry(chain: &[CertificateDer<'_>]) -> Time {
    let validities = chain.iter().map(|certificate| x509::validity(certificate));
    let ends = validities.map(|validity| validity.map(|validity| clock::at(validity.until)));
    ends.min().flatten().unwrap_or_default()
}

fn chain_hash(chain: &[CertificateDer<'_>]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut context = digest::Context::new(&digest::SHA256);
    for certificate in chain {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The subject of a client's certificate, for logs; its SHA-256 if it has no subject.
pub(super) fn identity(leaf: &CertificateDer<'_>) -> String {
    let subject = x509::subject(leaf).and_then(x509::name_text);
    subject.unwrap_or_else(|| {
        let hash = digest::digest(&digest::SHA256, leaf);
        let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        format!("sha256:{}", digits.collect::<String>())
    })
}

#[cfg(test)]
mod tests;
