//! Ways to the store: one server, a cluster, or the master that sentinels name; with and without TLS.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode, Value,
};

use super::tls::Files;
use crate::config::store::{Login, Node, Redis, Topology};

/// How long a connection may take to be made, name look-ups, TLS and log-in included.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Requests that may wait to be written, over which callers wait themselves. A request waits for
/// `session.store-timeout` at most, so that this holds for thousands of handshakes a second.
const QUEUE: usize = 1024;

/// How often a cluster's client follows a slot that has moved, and how long it waits in between, ms.
const REDIRECTS: (u32, u64, u64) = (3, 5, 50);

/// Why a store cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("session.store: {file}: {source}", file = .file.display())]
    File { file: PathBuf, source: io::Error },
    #[error(
        "session.store: the system has no certificate authorities; name one with ?ca=FILE, or install the package ca-certificates"
    )]
    NoAuthorities,
    #[error("session.store: {file} holds no certificate", file = .file.display())]
    NoCertificate { file: PathBuf },
    #[error("session.store: {file}: {source}", file = .file.display())]
    Pem {
        file: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error(
        "session.store: {certificate} and {key} are no pair: {source}",
        certificate = .certificate.display(),
        key = .key.display()
    )]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("session.store: {0}")]
    Client(#[from] redis::RedisError),
    #[error("session.store: metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Makes connections as configured.
pub(super) struct Dialer {
    config: Redis,
    files: Option<Arc<Files>>,
}

/// A connection that many requests share. Clones are the same connection.
#[derive(Clone)]
pub(super) enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// One that was made, and which certificates it was made with.
#[derive(Clone)]
pub(super) struct Dialed {
    pub(super) connection: Connection,
    pub(super) certificates: Option<u64>,
}

enum Way {
    Single(Client),
    Cluster(ClusterClient),
    Sentinel(SentinelClient),
}

impl Dialer {
    /// Reads the PEM files and finds out whether the client takes the configuration.
    pub(super) fn new(config: &Redis) -> Result<Self, StoreError> {
        let dialer = Self {
            config: config.clone(),
            files: config.tls.as_ref().map(Files::open).transpose()?,
        };
        let read = dialer.files.as_ref().map(|files| files.last());
        dialer.way(read.as_ref().map(|read| &read.certificates))?;
        Ok(dialer)
    }

    /// Connects and logs in, with the certificates as their files are now. Its tasks run on the runtime of
    /// this thread.
    pub(super) async fn dial(&self) -> RedisResult<Dialed> {
        let read = match &self.files {
            Some(files) => Some(files.current().await),
            None => None,
        };
        let certificates = read.as_ref().map(|read| &read.certificates);
        Ok(Dialed {
            connection: self.connect(self.way(certificates)?).await?,
            certificates: read.as_ref().map(|read| read.serial),
        })
    }

    /// The number of the certificates with which a connection has to be made anew, since they were renewed: a
    /// cluster's makes further ones by itself, with those that it began with.
    pub(super) async fn renewed(&self, dialed: &Dialed) -> Option<u64> {
        match (&self.files, &dialed.connection) {
            (Some(files), Connection::Cluster(_)) => {
                let now = files.current().await.serial;
                (dialed.certificates != Some(now)).then_some(now)
            }
            _ => None,
        }
    }

    async fn connect(&self, way: Way) -> RedisResult<Connection> {
        // Deadlines are the callers': they know how long a handshake may wait.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        Ok(match way {
            Way::Single(client) => {
                let connection = client.get_multiplexed_async_connection_with_config(&settings);
                Connection::Node(connection.await?)
            }
            Way::Sentinel(mut client) => {
                let connection = client.get_async_connection_with_config(&settings);
                Connection::Node(connection.await?)
            }
            Way::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }

    fn way(&self, certificates: Option<&TlsCertificates>) -> RedisResult<Way> {
        Ok(match &self.config.topology {
            Topology::Single => Way::Single(self.client(&self.config.nodes[0], certificates)?),
            Topology::Cluster => {
                let (redirects, least, most) = REDIRECTS;
                let nodes: RedisResult<Vec<_>> =
                    self.config.nodes.iter().map(|n| self.info(n)).collect();
                let builder = ClusterClient::builder(nodes?)
                    .connection_timeout(CONNECT_DEADLINE)
                    .retries(redirects)
                    .min_retry_wait(least)
                    .max_retry_wait(most)
                    .tcp_settings(tcp_settings());
                let builder = match certificates {
                    Some(certificates) => builder.certs(certificates.clone()),
                    None => builder,
                };
                Way::Cluster(builder.build()?)
            }
            Topology::Sentinel { service, login } => {
                let nodes = self.config.nodes.iter().map(|node| self.address(node));
                let master = SentinelServerType::Master;
                let mut builder = SentinelClientBuilder::new(nodes, service, master)?
                    .set_client_to_redis_db(self.config.database.into())
                    .set_client_to_redis_tcp_settings(tcp_settings());
                let Login { user, password } = &self.config.login;
                if let Some(user) = user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password.expose());
                }
                if let Some(user) = &login.user {
                    builder = builder.set_client_to_sentinel_username(user);
                }
                if let Some(password) = &login.password {
                    builder = builder.set_client_to_sentinel_password(password.expose());
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates.clone());
                }
                Way::Sentinel(builder.build()?)
            }
        })
    }

    fn client(&self, node: &Node, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
        let info = self.info(node)?;
        match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        }
    }

    fn info(&self, node: &Node) -> RedisResult<ConnectionInfo> {
        let Login { user, password } = &self.config.login;
        let mut login = RedisConnectionInfo::default()
            .set_db(self.config.database.into())
            .set_skip_set_lib_name();
        if let Some(user) = user {
            login = login.set_username(user);
        }
        if let Some(password) = password {
            login = login.set_password(password.expose());
        }
        let info = self.address(node).into_connection_info()?;
        Ok(info
            .set_redis_settings(login)
            .set_tcp_settings(tcp_settings()))
    }

    fn address(&self, Node { host, port }: &Node) -> ConnectionAddr {
        match self.config.tls {
            Some(_) => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
            None => ConnectionAddr::Tcp(host.clone(), *port),
        }
    }
}

impl Connection {
    pub(super) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Node(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// Whether what went wrong with one request goes for the connection as a whole. A cluster's
    /// connection is several, of which the others may be well.
    pub(super) fn is_ended_by(&self, error: &redis::RedisError) -> bool {
        use redis::{ErrorKind, ServerErrorKind};
        let moved_on = [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown]
            .map(ErrorKind::Server)
            .contains(&error.kind());
        match self {
            Self::Node(_) => error.is_io_error() || error.is_unrecoverable_error() || moved_on,
            Self::Cluster(_) => false,
        }
    }
}

/// Whether the store has answered, and the answer is no: it is there, and keeps nobody waiting. Others,
/// as that it is loading or that a cluster is down, pass with the state that it is in.
pub(super) fn is_refusal(error: &redis::RedisError) -> bool {
    use redis::{ErrorKind, ServerErrorKind};
    match error.kind() {
        // OOM, MISCONF, WRONGTYPE: what has a word of its own.
        ErrorKind::Extension => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::NoPerm | ServerErrorKind::ResponseError | ServerErrorKind::NoScript
        ),
        _ => false,
    }
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}
