//! The PEM files for TLS to the store: authorities, client certificate and key. Changed files are read again,
//! so a renewed certificate needs no restart. The system's authorities are read once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::aws_lc_rs as provider;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::StoreError;
use crate::config::store::RedisTls;
use crate::locks::locked;

/// The files of one store, shared by the threads of a server.
pub(super) struct TlsFiles {
    paths: RedisTls,
    /// The system's authorities at the start, if the configuration names none.
    system_authorities: Option<Arc<RootCertStore>>,
    loaded: Mutex<LoadedTls>,
}

/// The content of the files.
#[derive(Clone)]
pub(super) struct LoadedTls {
    /// The configuration of TLS clients with the files' certificates.
    pub(super) client: Arc<ClientConfig>,
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
                client: client(paths, system_authorities.clone())?,
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
        match client(&self.paths, self.system_authorities.clone()) {
            Ok(client) => {
                loaded.client = client;
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
fn client(
    paths: &RedisTls,
    system_authorities: Option<Arc<RootCertStore>>,
) -> Result<Arc<ClientConfig>, StoreError> {
    let authorities = match &paths.ca {
        Some(file) => Arc::new(authorities(file)?),
        None => system_authorities.ok_or(StoreError::NoAuthorities)?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities);
    let mut config = match &paths.client {
        Some((certificate, key)) => with_client_certificate(builder, certificate, key)?,
        None => builder.with_no_client_auth(),
    };
    // Connections are rare, and a renewed certificate must be shown to the store.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn authorities(file: &Path) -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file)? {
        roots
            .add(certificate)
            .map_err(|error| StoreError::file(file, error))?;
    }
    if roots.is_empty() {
        return Err(StoreError::NoCertificate {
            file: file.to_owned(),
        });
    }
    Ok(roots)
}

fn read(file: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(file).map_err(|error| StoreError::file(file, error))
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    chain.map_err(|error| StoreError::file(file, error))
}

/// Reads a client certificate and its key, and checks that they are a pair.
fn with_client_certificate(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    certificate: &Path,
    key: &Path,
) -> Result<ClientConfig, StoreError> {
    let chain = chain(certificate)?;
    let private =
        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| StoreError::file(key, error))?;
    builder
        .with_client_auth_cert(chain, private)
        .map_err(|source| StoreError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        })
}

/// The system's authorities, without unreadable files and certificates that are no trust anchors.
fn system_authorities() -> Result<Arc<RootCertStore>, StoreError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(StoreError::NoAuthorities);
    }
    Ok(Arc::new(roots))
}
