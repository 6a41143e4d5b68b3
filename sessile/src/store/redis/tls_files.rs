//! The PEM files for TLS to the store: authorities, client certificate and key. Changed files are read again,
//! so a renewed certificate needs no restart.
//!
//! By default, the `redis` crate reads the system's authorities at every connection, even if sessile names
//! others. This takes tens of milliseconds on a worker's thread, and fails if one file cannot be read.
//! Therefore `Cargo.toml` builds the crate with built-in authorities, and this module always replaces the
//! built-in ones.

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

use super::error::StoreError;
use crate::config::store::RedisTls;
use crate::locks::locked;

/// The files of one store, shared by the threads of a server.
pub(super) struct TlsFiles {
    paths: RedisTls,
    /// The system's authorities at the start, if the configuration names none.
    system_authorities: Option<Vec<u8>>,
    loaded: Mutex<LoadedTls>,
}

/// The content of the files.
#[derive(Clone)]
pub(super) struct LoadedTls {
    pub(super) certificates: TlsCertificates,
    /// Rises with each change of the certificates.
    pub(super) version: u64,
    /// The stamps of the files at the last reading; `None` for a missing file.
    stamps: Vec<Option<FileStamp>>,
}

/// A value that changes if a file is written or replaced.
#[derive(Clone, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    changed_secs: i64,
    changed_nanos: i64,
    len: u64,
}

impl TlsFiles {
    /// Reads the named files, and the system's authorities if none are named.
    pub(super) fn open(paths: &RedisTls) -> Result<Arc<Self>, StoreError> {
        let stamps = stamps(paths);
        let system_authorities = if paths.ca.is_none() {
            Some(system_authorities()?)
        } else {
            None
        };
        Ok(Arc::new(Self {
            loaded: Mutex::new(LoadedTls {
                certificates: certificates(paths, system_authorities.clone())?,
                version: 0,
                stamps,
            }),
            paths: paths.clone(),
            system_authorities,
        }))
    }

    /// The content of the files now, or the last content that was valid.
    pub(super) async fn reload(self: &Arc<Self>) -> LoadedTls {
        let files = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || files.reload_blocking());
        // The only error is that the runtime ends.
        read.await.unwrap_or_else(|_| self.last())
    }

    /// The content when it was last read.
    pub(super) fn last(&self) -> LoadedTls {
        locked(&self.loaded).clone()
    }

    fn reload_blocking(&self) -> LoadedTls {
        let mut loaded = locked(&self.loaded);
        // The stamps are taken before the files are read, so that the next call notices a change during the
        // reading.
        let stamps = stamps(&self.paths);
        if stamps == loaded.stamps {
            return loaded.clone();
        }
        loaded.stamps = stamps;
        match certificates(&self.paths, self.system_authorities.clone()) {
            Ok(certificates) => {
                loaded.certificates = certificates;
                loaded.version += 1;
                tracing::info!("read the certificates for the session store again");
            }
            // This happens for example if the certificate is replaced already, but the key is not.
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot use the new certificates for the session store: the old ones stay in use"
                );
            }
        }
        loaded.clone()
    }
}

fn stamps(paths: &RedisTls) -> Vec<Option<FileStamp>> {
    let client = paths.client.iter().flat_map(|(chain, key)| [chain, key]);
    let files = paths.ca.iter().chain(client);
    files
        .map(|file| {
            let metadata = fs::metadata(file).ok()?;
            Some(FileStamp {
                inode: metadata.ino(),
                changed_secs: metadata.ctime(),
                changed_nanos: metadata.ctime_nsec(),
                len: metadata.size(),
            })
        })
        .collect()
}

/// Reads the named files.
fn certificates(
    paths: &RedisTls,
    system_authorities: Option<Vec<u8>>,
) -> Result<TlsCertificates, StoreError> {
    let mut root_cert = system_authorities;
    if let Some(file) = &paths.ca {
        let authorities = read(file)?;
        if chain(file, &authorities)?.is_empty() {
            return Err(StoreError::NoCertificate { file: file.clone() });
        }
        root_cert = Some(authorities);
    }
    let client = paths.client.as_ref();
    Ok(TlsCertificates {
        client_tls: client
            .map(|(certificate, key)| client_tls(certificate, key))
            .transpose()?,
        root_cert,
    })
}

fn read(file: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(file).map_err(|error| StoreError::file(file, error))
}

fn chain(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.map_err(|error| StoreError::file(file, error))
}

/// Reads a client certificate and its key, and checks that they are a pair.
fn client_tls(certificate: &Path, key: &Path) -> Result<ClientTlsConfig, StoreError> {
    let (client_cert, client_key) = (read(certificate)?, read(key)?);
    let chain = chain(certificate, &client_cert)?;
    let private =
        PrivateKeyDer::from_pem_slice(&client_key).map_err(|error| StoreError::file(key, error))?;
    CertifiedKey::from_der(chain, private, &provider::default_provider()).map_err(|source| {
        StoreError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        }
    })?;
    Ok(ClientTlsConfig {
        client_cert,
        client_key,
    })
}

/// The system's authorities in PEM. Unreadable files, and certificates that cannot be trust anchors, are left
/// out.
fn system_authorities() -> Result<Vec<u8>, StoreError> {
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
