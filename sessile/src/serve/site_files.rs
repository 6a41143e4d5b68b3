//! The sites of a configuration with the contents of their files. A reload loads them anew and replaces
//! nothing else.

use std::sync::Arc;

use rustls::sign::CertifiedKey;

use crate::config::{Config, Site};
use crate::tls::{CertificateError, ClientAuthError, ClientAuthorities, load_certificate};

/// Why a site cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    ClientAuth(#[from] ClientAuthError),
    #[error("the TLS library refuses the configuration: {0}")]
    Tls(#[from] rustls::Error),
}

/// Every site with its files. Loaded once and shared by the workers.
pub(super) struct LoadedSites(pub(super) Vec<(Site, SiteFiles)>);

/// The contents of a site's files.
pub(super) struct SiteFiles {
    /// One for each key type.
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
    /// The authorities of client certificates; `None` if no client is asked for one.
    pub(super) clients: Option<ClientAuthorities>,
}

impl LoadedSites {
    /// Reads the files of every site.
    pub(super) fn load(config: &Config) -> Result<Self, SiteError> {
        let load = |site: &Site| Ok((site.clone(), SiteFiles::load(site)?));
        let loaded = config.sites.iter().map(load);
        loaded.collect::<Result<_, SiteError>>().map(Self)
    }
}

impl SiteFiles {
    fn load(site: &Site) -> Result<Self, SiteError> {
        let pairs = site.certificates.iter();
        let certificates = pairs.map(|pair| load_certificate(&pair.chain, &pair.key));
        let clients = site.client_auth.as_ref().map(ClientAuthorities::load);
        Ok(Self {
            certificates: certificates.collect::<Result<_, _>>()?,
            clients: clients.transpose()?,
        })
    }
}
