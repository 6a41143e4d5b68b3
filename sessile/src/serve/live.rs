//! The part of a server that a reload replaces: the sites with their files and upstreams. The other parts stay
//! until a restart.

use std::rc::Rc;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::metrics::Metrics;
use super::sites::Sites;
use crate::config::{Config, Site};
use crate::tls::{
    CertificateError, ClientAuthError, ClientAuthorities, Sessions, load_certificate,
};

/// Why sites cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    ClientAuth(#[from] ClientAuthError),
    #[error("the TLS library refuses the configuration: {0}")]
    Tls(#[from] rustls::Error),
}

/// The sites of a configuration, with their files. Read once; each worker makes [`Sites`] from it.
pub(super) struct Live {
    pub(super) sites: Vec<(Site, Files)>,
}

/// The contents of the files of a site.
pub(super) struct Files {
    /// One for each key type.
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
    /// The authorities of client certificates; `None`: no client is asked for one.
    pub(super) clients: Option<ClientAuthorities>,
}

impl Live {
    /// Reads the files of every site.
    pub(super) fn load(config: &Config) -> Result<Self, SiteError> {
        let mut sites = Vec::with_capacity(config.sites.len());
        for site in &config.sites {
            sites.push((site.clone(), Files::load(site)?));
        }
        Ok(Self { sites })
    }

    /// The sites of one worker.
    pub(super) fn sites(
        &self,
        sessions: &Rc<Sessions>,
        metrics: &Metrics,
    ) -> Result<Rc<Sites>, SiteError> {
        Ok(Rc::new(Sites::new(&self.sites, sessions, metrics)?))
    }
}

impl Files {
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
