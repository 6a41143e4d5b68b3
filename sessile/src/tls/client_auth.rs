//! Clients that show a certificate: whose are accepted, and whether the one that a session was made
//! with still is. rustls verifies a chain in full handshakes only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

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
use crate::config;
use crate::locks::locked;

/// Most bytes of a file with authorities or revocation lists: longer lists are hashed for too long in
/// every full handshake.
const MAX_BYTES: u64 = (1 << 24) - 1;

/// How long a chain that was verified counts as verified.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Most chains that are known at a time, by site and worker thread.
const MAX_KNOWN: usize = 4096;

/// Why the certificates of clients cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum ClientAuthError {
    #[error("client-auth: {}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("client-auth: {}: longer than {MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("client-auth: {}: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("client-auth: {}: holds no PEM certificate; `ca` names the authorities that issue the clients' certificates", .0.display())]
    NoAuthority(PathBuf),
    #[error("client-auth: {}: certificate {number} cannot be used as an authority: {source}", path.display())]
    Authority {
        path: PathBuf,
        number: usize,
        source: rustls::Error,
    },
    #[error("client-auth: {}: holds no revocation list; `crl` is a file of BEGIN X509 CRL blocks, or one list in DER", .0.display())]
    NoList(PathBuf),
    #[error("client-auth: {}: a revocation list cannot be used: {source}", path.display())]
    List {
        path: PathBuf,
        source: VerifierBuilderError,
    },
}

/// Whose certificates are accepted at a site: what its files hold.
pub struct ClientAuthorities {
    /// The certificates of the authorities, at least one.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Their revocation lists.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    mode: Mode,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthorities {
    /// Reads the files of a site.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
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
        // A file with the issuing authority's list alone is what most people have.
        if !any_is_from(&lists, &authorities) {
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

/// Whether a list is from an authority that is trusted by itself.
fn any_is_from(
    lists: &[CertificateRevocationListDer<'_>],
    authorities: &[CertificateDer<'_>],
) -> bool {
    lists.iter().any(|list| {
        let issuer = x509::revocation_list(list).map(|list| list.issuer);
        let mut subjects = authorities.iter().map(|authority| x509::subject(authority));
        issuer.is_some() && subjects.any(|subject| subject == issuer)
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

/// The clients of a site, as one worker thread knows them.
pub(super) struct Clients {
    pub(super) mode: Mode,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Chains that were found good a moment ago, by their hash, and until when that counts: verifying
    /// one takes longer than all the rest of a resumed handshake, with a long revocation list several
    /// times as long. A reload begins with none.
    known: Mutex<HashMap<[u8; digest::SHA256_OUTPUT_LEN], Time>>,
}

impl Clients {
    pub(super) fn new(authorities: &ClientAuthorities) -> Self {
        Self {
            mode: authorities.mode,
            verifier: Arc::clone(&authorities.verifier),
            known: Mutex::default(),
        }
    }

    /// Whether the client that a session was made with would be accepted in a full handshake now.
    pub(super) fn verify_again(&self, session: &[u8], now: Time) -> Result<(), Reason> {
        let chain = rustls_session::client_chain(session).ok_or(Reason::OldFormat)?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return match self.mode {
                Mode::Required => Err(Reason::ClientAuth),
                Mode::None | Mode::Optional => Ok(()),
            };
        };
        let hash = hash(&chain);
        let mut known = locked(&self.known);
        if known.get(&hash).is_some_and(|until| now < *until) {
            return Ok(());
        }
        let time = UnixTime::since_unix_epoch(Duration::from_millis(now.unix_millis()));
        self.verifier
            .verify_client_cert(leaf, intermediates, time)
            .map_err(|_| Reason::ClientAuth)?;
        if known.len() >= MAX_KNOWN {
            known.retain(|_, until| now < *until);
        }
        if known.len() < MAX_KNOWN {
            known.insert(hash, end(&chain).min(now.plus(KNOWN_FOR)));
        }
        Ok(())
    }
}

/// When the first certificate of a chain ends.
fn end(chain: &[CertificateDer<'_>]) -> Time {
    let ends = chain.iter().map(|certificate| {
        let until = x509::validity(certificate).map(|validity| validity.until);
        let since = until.and_then(|until| until.duration_since(SystemTime::UNIX_EPOCH).ok());
        let millis = since.and_then(|since| u64::try_from(since.as_millis()).ok());
        Time::from_unix_millis(millis.unwrap_or(0))
    });
    ends.min().unwrap_or(Time::from_unix_millis(0))
}

fn hash(chain: &[CertificateDer<'_>]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut context = digest::Context::new(&digest::SHA256);
    for certificate in chain {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Whose certificate it is, for people: its subject, or the hash of a certificate that has none.
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
