//! Loads the certificates and authorities of all sites. A reload loads them again.

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

/// All sites with the contents of their files. The workers share them.
pub(super) struct LoadedSites(pub(super) Vec<(Site, SiteFiles)>);

/// The contents of a site's files.
pub(super) struct SiteFiles {
    /// One certificate for each key type.
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
    /// The authorities of client certificates; `None` if the site asks for no client certificate.
    pub(super) clients: Option<ClientAuthorities>,
}

impl LoadedSites {
    /// Reads the files of all sites.
    pub(super) fn load(config: &Config) -> Result<Self, SiteError> {
        let mut loaded = Vec::with_capacity(config.sites.len());
        for site in &config.sites {
            loaded.push((site.clone(), SiteFiles::load(site)?));
        }
        Ok(Self(loaded))
    }
}

impl SiteFiles {
    fn load(site: &Site) -> Result<Self, SiteError> {
        let certificates = site
            .certificates
            .iter()
            .map(|pair| load_certificate(&pair.chain, &pair.key))
            .collect::<Result<_, _>>()?;
        let clients = site
            .client_auth
            .as_ref()
            .map(ClientAuthorities::load)
            .transpose()?;
        Ok(Self {
            certificates,
            clients,
        })
    }
}
