//! Whom a TLS connection to the store trusts, and as whom it presents itself: the PEM files that are named,
//! read again when they have changed, so that who renews a certificate has nothing else to do.
//!
//! Authorities are always handed to the client crate. Left to itself it reads the system's store at
//! every connection, on the thread that makes it, which takes tens of milliseconds that a worker's clients
//! would wait, and fails as a whole where one of the system's files cannot be read. It does so even where it
//! is given others; so `Cargo.toml` has it built with authorities of its own, which then nobody uses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pem::{EncodeConfig, LineEnding, Pem};
use redis::{ClientTlsConfig, TlsCertificates};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs as provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::StoreError;
use crate::config::store::RedisTls;
use crate::locks::locked;

/// The files of one store, shared by the threads of a server.
pub(super) struct Files {
    names: RedisTls,
    /// The system's authorities, as they were at the start; where no others are named.
    system: Option<Vec<u8>>,
    read: Mutex<Read>,
}

/// What they said.
#[derive(Clone)]
pub(super) struct Read {
    pub(super) certificates: TlsCertificates,
    /// How often something else was taken over.
    pub(super) serial: u64,
    /// The files as they were looked at last.
    seen: Vec<Seen>,
}

/// What is different of a file that was replaced or written.
type Seen = Option<(u64, i64, i64, u64)>;

impl Files {
    /// Reads the files that are named, and the system's authorities where no others are.
    pub(super) fn open(names: &RedisTls) -> Result<Arc<Self>, StoreError> {
        let seen = seen(names);
        let system = match &names.ca {
            Some(_) => None,
            None => Some(system()?),
        };
        Ok(Arc::new(Self {
            read: Mutex::new(Read {
                certificates: certificates(names, system.clone())?,
                serial: 0,
                seen,
            }),
            names: names.clone(),
            system,
        }))
    }

    /// What they say now. Where that is of no use, as in the middle of a renewal, what they said before.
    pub(super) async fn current(self: &Arc<Self>) -> Read {
        let files = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || files.look());
        match read.await {
            Ok(read) => read,
            // The runtime ends, and so does what it is read for.
            Err(_) => self.last(),
        }
    }

    /// What they said last.
    pub(super) fn last(&self) -> Read {
        self.lock().clone()
    }

    fn look(&self) -> Read {
        let mut read = self.lock();
        // Before they are read: what changes in between is seen the next time.
        let now = seen(&self.names);
        if now == read.seen {
            return read.clone();
        }
        read.seen = now;
        match certificates(&self.names, self.system.clone()) {
            Ok(certificates) => {
                read.certificates = certificates;
                read.serial += 1;
                tracing::info!("the certificates for the session store are read again");
            }
            Err(error) => {
                tracing::warn!(%error, "the certificates for the session store stay as they were");
            }
        }
        read.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Read> {
        locked(&self.read)
    }
}

fn seen(names: &RedisTls) -> Vec<Seen> {
    let client = names.client.iter();
    let client = client.flat_map(|(certificate, key)| [certificate, key]);
    let files = names.ca.iter().chain(client);
    files
        .map(|file| {
            let file = fs::metadata(file).ok()?;
            Some((file.ino(), file.ctime(), file.ctime_nsec(), file.size()))
        })
        .collect()
}

/// Reads what is named, and finds out whether it belongs together.
fn certificates(names: &RedisTls, system: Option<Vec<u8>>) -> Result<TlsCertificates, StoreError> {
    let root_cert = match (&names.ca, system) {
        (Some(file), _) => {
            let authorities = read(file)?;
            if chain(file, &authorities)?.is_empty() {
                return Err(StoreError::NoCertificate { file: file.clone() });
            }
            Some(authorities)
        }
        (None, system) => system,
    };
    let client_tls = match &names.client {
        Some((certificate, key)) => {
            let (client_cert, client_key) = (read(certificate)?, read(key)?);
            check_pair((certificate, &client_cert), (key, &client_key))?;
            Some(ClientTlsConfig {
                client_cert,
                client_key,
            })
        }
        None => None,
    };
    Ok(TlsCertificates {
        client_tls,
        root_cert,
    })
}

fn read(file: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(file).map_err(|source| StoreError::File {
        file: file.to_owned(),
        source,
    })
}

fn chain(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.map_err(|source| StoreError::Pem {
        file: file.to_owned(),
        source,
    })
}

fn check_pair(
    (certificate, its_pem): (&Path, &[u8]),
    (key, key_pem): (&Path, &[u8]),
) -> Result<(), StoreError> {
    let chain = chain(certificate, its_pem)?;
    let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(|source| StoreError::Pem {
        file: key.to_owned(),
        source,
    })?;
    let pair = CertifiedKey::from_der(chain, private, &provider::default_provider());
    pair.map(drop).map_err(|source| StoreError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

/// The system's authorities. It may hold certificates that are no anchors and files that cannot be read; the
/// others count.
fn system() -> Result<Vec<u8>, StoreError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs().certs.into_iter();
    let anchors: Vec<Pem> = found
        .filter(|certificate| roots.add(certificate.clone()).is_ok())
        .map(|certificate| Pem::new("CERTIFICATE", certificate.as_ref()))
        .collect();
    if anchors.is_empty() {
        return Err(StoreError::NoAuthorities);
    }
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(pem::encode_many_config(&anchors, lines).into_bytes())
}
