//! A web farm in one process: servers, the balancer in front of them, the admin listener, and a
//! development certificate. What a farm of machines does, on one machine, to see it work.

mod authority;

pub use authority::{Authority, AuthorityError};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use sessile_proto::route::Policy;

use crate::admin::{self, Admin};
use crate::balance::{self, Balancer};
use crate::config::{
    Action, Balance, BalanceServer, Config, Health, Key, Listener, Role, Site, SiteRoute,
};
use crate::key::{KeyError, Keyring};
use crate::serve::{self, Server, Surroundings};

/// What a farm is to be like.
#[derive(Clone, Debug)]
pub struct FarmPlan {
    /// Where the balancer listens.
    pub listen: SocketAddr,
    /// How many servers, 1 to 99.
    pub servers: usize,
    /// Where the admin listener is; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Where certificates and the farm key are kept.
    pub data_dir: PathBuf,
    /// Every server has a key of its own, as farms commonly have today.
    pub isolated: bool,
    /// How new clients are placed.
    pub policy: Policy,
    /// What the servers have in common: sessions, connections.
    pub base: Config,
}

/// Why a farm does not start.
#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{name}: {source}")]
    Server {
        name: String,
        source: Box<serve::StartError>,
    },
    #[error("balancer: {0}")]
    Balancer(#[from] balance::StartError),
    #[error(transparent)]
    Admin(#[from] admin::StartError),
}

/// A running farm.
pub struct Farm {
    pub authority: Authority,
    pub servers: Vec<(String, Server)>,
    balancer: Balancer,
    admin: Option<Admin>,
}

impl Farm {
    /// Starts everything, servers before the balancer, so that it finds them.
    ///
    /// # Errors
    /// With what stands in the way. What was started stops with `around.stop`.
    pub fn start(plan: &FarmPlan, around: &Surroundings) -> Result<Self, FarmError> {
        let authority = Authority::open(&plan.data_dir)?;
        let lifetime = plan.base.session.lifetime;
        let shared = match plan.isolated {
            true => None,
            false => {
                let file = Key::File(plan.data_dir.join("farm.key"));
                Some(Arc::new(Keyring::open(&file, lifetime)?))
            }
        };
        let admin = plan
            .admin
            .map(|address| Admin::start(address, around.registry.clone(), around.stop.clone()))
            .transpose()?;
        let mut servers = Vec::with_capacity(plan.servers);
        for number in 1..=plan.servers {
            let name = format!("web{number}");
            let keys = match &shared {
                Some(keys) => Arc::clone(keys),
                None => Arc::new(Keyring::ephemeral(lifetime)?),
            };
            let mut config = server_config(&plan.base, &authority, &name);
            plan.data_dir.clone_into(&mut config.server.state_dir);
            match Server::start_with_key(&config, keys, around) {
                Ok(server) => servers.push((name, server)),
                Err(error) => {
                    stop(servers, around);
                    let source = Box::new(error);
                    return Err(FarmError::Server { name, source });
                }
            }
        }
        let config = balancer_config(&plan.base, plan.listen, plan.policy, &servers);
        let balancer = match Balancer::start(&config, around.stop.clone(), &around.registry) {
            Ok(balancer) => balancer,
            Err(error) => {
                stop(servers, around);
                return Err(error.into());
            }
        };
        Ok(Self {
            authority,
            servers,
            balancer,
            admin,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.balancer.addresses()[0]
    }

    /// Where the admin listener is.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Waits until everything has drained, after the order to stop.
    pub fn join(self) {
        self.balancer.join();
        for (_, server) in self.servers {
            server.join();
        }
        if let Some(admin) = self.admin {
            admin.join();
        }
    }
}

/// Drains servers of a farm that does not come about: what they have read they keep for its next start.
fn stop(servers: Vec<(String, Server)>, around: &Surroundings) {
    around.stop.cancel();
    for (_, server) in servers {
        server.join();
    }
}

/// One of a farm's servers: a listener on a free port of this machine, and a site that answers with
/// the verdict.
#[must_use]
pub fn server_config(base: &Config, authority: &Authority, name: &str) -> Config {
    let mut config = base.clone();
    name.clone_into(&mut config.server.name);
    // Servers share two or three cores here: more threads than servers would only get in the way.
    config.server.workers = 1;
    config.listeners = vec![Listener::new(
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        Role::Serve,
    )];
    config.sites = vec![Site {
        names: Vec::new(),
        certificates: vec![authority.certificate.clone()],
        client_auth: None,
        early_data: 0,
        routes: vec![SiteRoute {
            path: "/".to_owned(),
            action: Action::Verdict,
        }],
    }];
    config
}

/// The balancer in front of these servers. It has no key and reads no labels: clients that come to
/// another server show what servers with one key are worth.
#[must_use]
pub fn balancer_config(
    base: &Config,
    listen: SocketAddr,
    policy: Policy,
    servers: &[(String, Server)],
) -> Config {
    let mut config = base.clone();
    config.key = Key::Ephemeral;
    config.session.snapshot = false;
    config.server.workers = 1;
    config.listeners = vec![Listener::new(listen, Role::Balance)];
    config.balance = Balance {
        policy,
        // They live and die with it.
        health: Health::Off,
        servers: servers
            .iter()
            .map(|(name, server)| BalanceServer::new(name.clone(), server.addresses()[0]))
            .collect(),
        ..Balance::default()
    };
    config
}
