//! A web farm in one process: servers, the balancer in front of them, the admin listener, and a
//! development certificate.

mod authority;

pub use authority::{Authority, AuthorityError};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use sessile_proto::route::Policy;

use crate::admin::{self, Admin, Api, Token, TokenError};
use crate::balance::{self, Balancer};
use crate::config::{
    Action, Balance, BalanceServer, Config, Health, Key, Listener, Role, Site, SiteRoute,
};
use crate::key::{KeyError, Keyring};
use crate::serve::{self, Environment, Server};
use crate::state_file::folder_of;

/// The parameters of a farm.
#[derive(Clone, Debug)]
pub struct FarmPlan {
    /// The balancer's address.
    pub listen: SocketAddr,
    /// The number of servers, from 1 to 99.
    pub servers: usize,
    /// The address of the admin listener.
    pub admin: SocketAddr,
    /// The folder of the certificates, the farm key and the token of the API.
    pub data_dir: PathBuf,
    /// True if each server gets its own key, as in farms that share nothing.
    pub isolated: bool,
    /// The policy for clients without a known session.
    pub policy: Policy,
    /// The settings that all servers share.
    pub base: Config,
}

/// Why a farm does not start.
#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{0}{remedy}", remedy = token_remedy(.0))]
    Token(#[from] TokenError),
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

/// The remedy for a token file that cannot be used. The other errors have a remedy of their own.
fn token_remedy(error: &TokenError) -> String {
    match error {
        TokenError::Io { path, .. } | TokenError::Make { path, .. } => format!(
            "; give this user access to the folder {}, or choose another folder with --data-dir",
            folder_of(path).display()
        ),
        _ => String::new(),
    }
}

/// A running farm.
pub struct Farm {
    pub authority: Authority,
    pub servers: Vec<(String, Server)>,
    pub admin: Admin,
    balancer: Balancer,
}

impl Farm {
    /// Starts all parts. The servers start before the balancer, which needs their addresses.
    ///
    /// # Errors
    /// If a part cannot start. The other parts stop when `env.stop` is cancelled.
    pub fn start(plan: &FarmPlan, env: &Environment) -> Result<Self, FarmError> {
        let authority = Authority::open(&plan.data_dir)?;
        let lifetime = plan.base.session.lifetime;
        let file = Key::File(plan.data_dir.join("farm.key"));
        let shared = (!plan.isolated)
            .then(|| Keyring::open(&file, lifetime).map(Arc::new))
            .transpose()?;
        let token = Token::open(&plan.data_dir.join("admin.token"))?;
        let mut servers = Vec::with_capacity(plan.servers);
        for number in 1..=plan.servers {
            let name = format!("web{number}");
            let keys = match &shared {
                Some(keys) => Arc::clone(keys),
                None => Arc::new(Keyring::ephemeral(lifetime)?),
            };
            let mut config = server_config(&plan.base, &authority, &name);
            plan.data_dir.clone_into(&mut config.server.state_dir);
            match Server::start_with_key(&config, keys, env) {
                Ok(server) => servers.push((name, server)),
                Err(error) => {
                    stop(servers, env);
                    let source = Box::new(error);
                    return Err(FarmError::Server { name, source });
                }
            }
        }
        match start_front(plan, env, &servers, token) {
            Ok((balancer, admin)) => Ok(Self {
                authority,
                servers,
                admin,
                balancer,
            }),
            Err(error) => {
                stop(servers, env);
                Err(error)
            }
        }
    }

    /// The address where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.balancer.addresses()[0]
    }

    /// Waits until all parts have drained. Call this after `env.stop` was cancelled.
    pub fn join(self) {
        self.balancer.join();
        for (_, server) in self.servers {
            server.join();
        }
        self.admin.join();
    }
}

/// Starts the balancer, and the admin listener with the balancer's API.
fn start_front(
    plan: &FarmPlan,
    env: &Environment,
    servers: &[(String, Server)],
    token: Token,
) -> Result<(Balancer, Admin), FarmError> {
    let config = balancer_config(&plan.base, plan.listen, plan.policy, servers);
    let balancer = Balancer::start(&config, env.stop.clone(), &env.registry)?;
    let api = Api {
        commands: balancer.commands.clone(),
        token: Some(token),
    };
    let registry = env.registry.clone();
    let admin = Admin::start(plan.admin, registry, Some(api), env.stop.clone())?;
    Ok((balancer, admin))
}

/// Drains the servers of a farm that failed to start, so that their sessions survive.
fn stop(servers: Vec<(String, Server)>, env: &Environment) {
    env.stop.cancel();
    for (_, server) in servers {
        server.join();
    }
}

/// The configuration of one server: a free loopback port, and a site that answers with the verdict.
#[must_use]
pub fn server_config(base: &Config, authority: &Authority, name: &str) -> Config {
    let mut config = base.clone();
    name.clone_into(&mut config.server.name);
    // All servers share one machine, so one thread for each is enough.
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

/// The configuration of the balancer in front of these servers.
#[must_use]
pub fn balancer_config(
    base: &Config,
    listen: SocketAddr,
    policy: Policy,
    servers: &[(String, Server)],
) -> Config {
    let mut config = base.clone();
    // Without a key and without addresses, the balancer does not know which server made a ticket. Clients
    // then reach other servers with their sessions, which shows the effect of a shared farm key.
    config.key = Key::Ephemeral;
    config.session.snapshot = false;
    config.server.workers = 1;
    config.listeners = vec![Listener::new(listen, Role::Balance)];
    config.balance = Balance {
        policy,
        // The servers run in the same process, so checks are not necessary.
        health: Health::Off,
        ignores_addresses: true,
        servers: servers
            .iter()
            .map(|(name, server)| BalanceServer::new(name.clone(), server.addresses()[0]))
            .collect(),
        ..Balance::default()
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_the_token_names_the_folder_and_the_flag() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.token");
        // The file cannot be made, because the name is taken by a link without a target.
        std::os::unix::fs::symlink("missing", &path).unwrap();
        let error = FarmError::from(Token::open(&path).unwrap_err()).to_string();
        let expected = format!(
            "; give this user access to the folder {}, or choose another folder with --data-dir",
            folder.path().display()
        );
        assert!(error.ends_with(&expected), "{error}");
    }
}
