//! The sites of a worker: finds the site of a server name, and builds the handlers of routes.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::files::{FileResources, Folder};
use super::metrics::Metrics;
use super::proxy::Upstream;
use super::routes::Routes;
use super::site_files::LoadedSites;
use crate::config::{self, Action, Site as SiteConfig};
use crate::server_names::ServerNames;
use crate::tls::{self, Sessions, Template};

/// Makes the HTTP clients of a worker, one for each upstream. Several routes can share a client.
struct Upstreams<'m> {
    by_name: HashMap<String, Rc<Upstream>>,
    body_timeout: Duration,
    metrics: &'m Metrics,
}

/// A site: the TLS settings and routes of one or more server names.
pub(super) struct Site {
    pub(super) template: Template,
    pub(super) routes: Routes<Handler>,
}

/// The action of a route.
pub(super) enum Handler {
    Files(Rc<Folder>),
    Proxy(Rc<Upstream>),
    /// The target, without a final slash.
    Redirect(String),
    Respond {
        status: u16,
        body: bytes::Bytes,
    },
    Verdict,
}

/// The sites by server name. Each worker makes this value from the loaded sites.
pub(super) struct Sites {
    by_name: ServerNames<Rc<Site>>,
    default: Option<Rc<Site>>,
}

impl Sites {
    pub(super) fn new(
        loaded: &LoadedSites,
        sessions: &Rc<Sessions>,
        body_timeout: Duration,
        metrics: &Metrics,
        resources: &FileResources,
    ) -> Result<Self, rustls::Error> {
        let mut upstreams = Upstreams {
            by_name: HashMap::new(),
            body_timeout,
            metrics,
        };
        let mut sites = Self {
            by_name: ServerNames::default(),
            default: None,
        };
        for (config, files) in &loaded.0 {
            let id = tls::site_id(config.names.first().map_or("", String::as_str));
            let site = Rc::new(Site {
                template: Template::new(
                    id,
                    &files.certificates,
                    files.clients.as_ref(),
                    config.early_data,
                    Rc::clone(sessions),
                )?,
                routes: routes(config, &mut upstreams, resources),
            });
            if config.names.is_empty() {
                sites.default = Some(Rc::clone(&site));
            }
            for name in &config.names {
                sites.by_name.insert(name, Rc::clone(&site));
            }
        }
        Ok(sites)
    }

    /// Finds the site of a server name that the client sent. The default site serves all other names,
    /// and clients without a name.
    pub(super) fn find(&self, server_name: Option<&str>) -> Option<&Rc<Site>> {
        server_name
            .and_then(|name| self.by_name.find(name))
            .or(self.default.as_ref())
    }
}

impl Site {
    /// True if a route forwards requests to an upstream.
    pub(super) fn has_upstream(&self) -> bool {
        self.routes
            .values()
            .any(|handler| matches!(handler, Handler::Proxy(_)))
    }
}

impl Upstreams<'_> {
    fn get(&mut self, config: &config::Upstream) -> Rc<Upstream> {
        let new = || {
            let results = self.metrics.upstream(&config.name);
            Rc::new(Upstream::new(config, self.body_timeout, results))
        };
        Rc::clone(self.by_name.entry(config.name.clone()).or_insert_with(new))
    }
}

fn routes(
    config: &SiteConfig,
    upstreams: &mut Upstreams<'_>,
    resources: &FileResources,
) -> Routes<Handler> {
    config
        .routes
        .iter()
        .map(|route| {
            let prefix = route.path.trim_end_matches('/').to_owned();
            (prefix, handler(&route.action, upstreams, resources))
        })
        .collect()
}

fn handler(action: &Action, upstreams: &mut Upstreams<'_>, resources: &FileResources) -> Handler {
    match action {
        Action::Files(config) => {
            let metrics = Arc::clone(&upstreams.metrics.files);
            Handler::Files(Rc::new(Folder::new(config, resources, metrics)))
        }
        Action::Proxy(config) => Handler::Proxy(upstreams.get(config)),
        Action::Redirect(to) => Handler::Redirect(to.trim_end_matches('/').to_owned()),
        Action::Respond { status, body } => Handler::Respond {
            status: *status,
            body: body.clone().into(),
        },
        Action::Verdict => Handler::Verdict,
    }
}
