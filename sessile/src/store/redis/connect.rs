//! Connections to one server, to a cluster, or to the master that sentinels name; with and without TLS.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, TlsMode, Value,
};

use super::error::{RequestError, StoreError};
use super::tls_files::TlsFiles;
use crate::config::store::{Login, Node, Redis, Topology};

/// How long a new connection may take, with name resolution, TLS and login.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How often each worker tests its connection and reads the forget rules of the farm.
pub(in crate::store) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Most requests in the queue of a connection. More requests wait outside the queue.
///
/// A request waits for `session.store-timeout` at most, so this is enough for thousands of handshakes a second.
const QUEUE: usize = 1024;

/// How many times a cluster's client retries a request, for instance after a slot has moved to another node.
const CLUSTER_RETRIES: u32 = 3;

/// The shortest wait before a cluster's client tries again, in milliseconds.
const MIN_CLUSTER_RETRY_WAIT: u64 = 5;

/// The longest wait before a cluster's client tries again, in milliseconds.
const MAX_CLUSTER_RETRY_WAIT: u64 = 50;

/// Makes connections to the configured store.
pub(super) struct Connector {
    config: Redis,
    files: Option<Arc<TlsFiles>>,
}

/// A connection that many requests share. Clones are the same connection.
#[derive(Clone)]
pub(super) enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A connection, and the version of the certificates that it uses.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) connection: Connection,
    /// See [`super::tls_files::LoadedTls::version`].
    pub(super) tls_version: Option<u64>,
}

enum AnyClient {
    Single(Client),
    Cluster(ClusterClient),
    Sentinel(SentinelClient),
}

impl Connector {
    /// Reads the PEM files, and checks that the `redis` client accepts the configuration.
    pub(super) fn new(config: &Redis) -> Result<Self, StoreError> {
        let connector = Self {
            config: config.clone(),
            files: config.tls.as_ref().map(TlsFiles::open).transpose()?,
        };
        let loaded = connector.files.as_ref().map(|files| files.last());
        connector.client(loaded.as_ref().map(|loaded| &loaded.certificates))?;
        Ok(connector)
    }

    /// Connects and logs in, with the certificates that are in the files now.
    ///
    /// The tasks of the connection run on the runtime of this thread.
    pub(super) async fn connect(&self) -> RedisResult<OpenConnection> {
        let loaded = match &self.files {
            Some(files) => Some(files.reload().await),
            None => None,
        };
        let client = self.client(loaded.as_ref().map(|loaded| &loaded.certificates))?;
        // The callers have their own deadlines for requests.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let connection = match client {
            AnyClient::Single(client) => {
                let connection = client.get_multiplexed_async_connection_with_config(&settings);
                Connection::Node(connection.await?)
            }
            AnyClient::Sentinel(mut client) => {
                let connection = client.get_async_connection_with_config(&settings);
                Connection::Node(connection.await?)
            }
            AnyClient::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        };
        Ok(OpenConnection {
            connection,
            tls_version: loaded.map(|loaded| loaded.version),
        })
    }

    /// The version of renewed certificates, if the connection must be replaced to use them.
    ///
    /// Only a cluster's connection opens connections later. They use the certificates with which the first
    /// connection was made.
    pub(super) async fn renewed_tls(&self, open: &OpenConnection) -> Option<u64> {
        match (&self.files, &open.connection) {
            (Some(files), Connection::Cluster(_)) => {
                let version = files.reload().await.version;
                (open.tls_version != Some(version)).then_some(version)
            }
            _ => None,
        }
    }

    fn client(&self, certificates: Option<&TlsCertificates>) -> RedisResult<AnyClient> {
        Ok(match &self.config.topology {
            Topology::Single => {
                let info = self.info(&self.config.nodes[0])?;
                AnyClient::Single(match certificates {
                    Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
                    None => Client::open(info)?,
                })
            }
            Topology::Cluster => AnyClient::Cluster(self.cluster_client(certificates)?),
            Topology::Sentinel { service, login } => {
                AnyClient::Sentinel(self.sentinel_client(service, login, certificates)?)
            }
        })
    }

    fn cluster_client(&self, certificates: Option<&TlsCertificates>) -> RedisResult<ClusterClient> {
        let nodes = self.config.nodes.iter().map(|node| self.info(node));
        let mut builder = ClusterClient::builder(nodes.collect::<RedisResult<Vec<_>>>()?)
            .connection_timeout(CONNECT_DEADLINE)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(MIN_CLUSTER_RETRY_WAIT)
            .max_retry_wait(MAX_CLUSTER_RETRY_WAIT)
            .tcp_settings(tcp_settings());
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates.clone());
        }
        builder.build()
    }

    fn sentinel_client(
        &self,
        service: &str,
        sentinel_login: &Login,
        certificates: Option<&TlsCertificates>,
    ) -> RedisResult<SentinelClient> {
        let nodes = self.config.nodes.iter().map(|node| self.address(node));
        let mut builder = SentinelClientBuilder::new(nodes, service, SentinelServerType::Master)?
            .set_client_to_redis_db(self.config.database.into())
            .set_client_to_redis_tcp_settings(tcp_settings());
        let Login { user, password } = &self.config.login;
        if let Some(user) = user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_redis_password(password.expose());
        }
        if let Some(user) = &sentinel_login.user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &sentinel_login.password {
            builder = builder.set_client_to_sentinel_password(password.expose());
        }
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
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
        if self.config.tls.is_none() {
            return ConnectionAddr::Tcp(host.clone(), *port);
        }
        ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: false,
            tls_params: None,
        }
    }
}

impl Connection {
    pub(super) async fn query(
        &mut self,
        command: &Cmd,
        limit: Duration,
    ) -> Result<Value, RequestError> {
        match self {
            Self::Node(connection) => within(limit, command.query_async(connection)).await,
            Self::Cluster(connection) => within(limit, command.query_async(connection)).await,
        }
    }

    /// True if the connection cannot be used after this error.
    pub(super) fn is_broken_by(&self, error: &RedisError) -> bool {
        let is_no_master = [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown]
            .map(ErrorKind::Server)
            .contains(&error.kind());
        match self {
            Self::Node(_) => error.is_io_error() || error.is_unrecoverable_error() || is_no_master,
            // A cluster's client has a connection for each node, and repairs broken connections itself.
            Self::Cluster(_) => false,
        }
    }
}

/// Waits for a result of the client, for a limited time.
pub(super) async fn within<T>(
    limit: Duration,
    result: impl Future<Output = RedisResult<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(limit, result).await {
        Ok(result) => result.map_err(RequestError::Store),
        Err(_) => Err(RequestError::Timeout),
    }
}

/// True if the store answered in time and refused the request.
///
/// Other errors, such as LOADING or CLUSTERDOWN, mean that the store cannot be used for a while.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        // For example OOM, MISCONF and WRONGTYPE.
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
