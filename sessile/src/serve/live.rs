//! What a reload replaces: the sites, with the files that they name and the upstreams that they hand
//! requests to. Everything else that a server is made of stays until it is restarted.

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

/// The part of a configuration that can change while a server runs, with what its files hold. Read once,
/// shared by the workers, each of which makes its own [`Sites`] of it.
pub(super) struct Live {
    pub(super) sites: Vec<(Site, Files)>,
}

/// What the files of a site hold.
pub(super) struct Files {
    /// One for each key type.
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
    /// Whose certificates its clients show; `None`: nobody is asked for one.
    pub(super) clients: Option<ClientAuthorities>,
}

impl Live {
    /// Reads the files of every site.
    pub(super) fn load(config: &Config) -> Result<Self, SiteError> {
        let sites = config.sites.iter();
        let sites = sites.map(|site| Ok((site.clone(), Files::load(site)?)));
        Ok(Self {
            sites: sites.collect::<Result<_, SiteError>>()?,
        })
    }

    /// A worker's sites.
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
