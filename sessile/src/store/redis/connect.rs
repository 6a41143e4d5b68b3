//! Connections to one server, to a cluster, or to the master that sentinels name; with and without TLS.

use std::sync::Arc;
use std::time::Duration;

use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, Value,
};

use super::bounded_stream::StoreLimits;
use super::error::{RequestError, StoreError};
use super::sentinel::MasterLookup;
use super::tls_files::TlsFiles;
use super::transport::{CONNECT_DEADLINE, ClusterTransport, NodeConnection, Transport};
use crate::config::store::{Login, Node, Redis, Topology};

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
    limits: Arc<StoreLimits>,
}

/// A connection that many requests share. Clones are the same connection.
#[derive(Clone)]
pub(super) enum Connection {
    Node(NodeConnection),
    Cluster(ClusterConnection<NodeConnection>),
}

/// A connection, and the version of the certificates that it uses.
#[derive(Clone)]
pub(super) struct OpenConnection {
    pub(super) connection: Connection,
    /// See [`super::tls_files::LoadedTls::version`].
    pub(super) tls_version: Option<u64>,
}

impl Connector {
    /// Reads the PEM files, and checks that the `redis` client accepts the configuration.
    pub(super) fn new(config: &Redis) -> Result<Self, StoreError> {
        let connector = Self {
            config: config.clone(),
            files: config.tls.as_ref().map(TlsFiles::open).transpose()?,
            limits: StoreLimits::new(config.to_string()),
        };
        if config.topology == Topology::Cluster {
            connector.cluster_client()?;
        }
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
        let tls_version = loaded.as_ref().map(|loaded| loaded.version);
        let transport = Transport::new(loaded.map(|loaded| loaded.client), &self.limits);
        // The callers have their own deadlines for requests.
        let settings = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let login = login(&self.config.login).set_db(self.config.database.into());
        let connection = match &self.config.topology {
            Topology::Single => {
                let Node { host, port } = &self.config.nodes[0];
                Connection::Node(transport.connect(host, *port, &login, settings).await?)
            }
            Topology::Cluster => {
                let client = self.cluster_client()?;
                let transport = ClusterTransport::set(transport);
                let connection = client.get_async_generic_connection().await?;
                transport.keep();
                Connection::Cluster(connection)
            }
            Topology::Sentinel {
                service,
                login: sentinel_login,
            } => {
                let lookup = MasterLookup {
                    transport,
                    service: service.clone(),
                    sentinel_login: self::login(sentinel_login),
                    login,
                    settings,
                };
                Connection::Node(lookup.connect(&self.config.nodes).await?)
            }
        };
        Ok(OpenConnection {
            connection,
            tls_version,
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

    fn cluster_client(&self) -> RedisResult<ClusterClient> {
        let login = login(&self.config.login);
        let nodes: RedisResult<Vec<_>> = self
            .config
            .nodes
            .iter()
            .map(|node| info(node, &login))
            .collect();
        ClusterClient::builder(nodes?)
            .connection_timeout(CONNECT_DEADLINE)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(MIN_CLUSTER_RETRY_WAIT)
            .max_retry_wait(MAX_CLUSTER_RETRY_WAIT)
            .build()
    }
}

/// The address of a cluster's node. The client does not know about TLS, which [`Transport`] adds.
fn info(Node { host, port }: &Node, login: &RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
    let address = ConnectionAddr::Tcp(host.clone(), *port);
    let info = address.into_connection_info()?;
    Ok(info.set_redis_settings(login.clone()))
}

fn login(Login { user, password }: &Login) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    login
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
