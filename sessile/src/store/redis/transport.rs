//! Connections to single nodes of a store, with and without TLS. Every connection is bounded.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::Connect;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, Value,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::bounded_stream::{BoundedStream, ByteStream, StoreLimits};

/// How long a new connection may take, with name resolution, TLS and login.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Most connections to nodes that one worker's client has. A cluster has at most 1,000 nodes.
///
/// Without this limit, a node could name so many others that the server has no files left for clients.
const MAX_NODES: usize = 1000;

thread_local! {
    /// The transport of this thread's cluster. A cluster's client opens connections, and cannot pass it on.
    static CLUSTER: RefCell<Option<Transport>> = const { RefCell::new(None) };
}

/// How connections to the nodes of a store are opened.
#[derive(Clone)]
pub(super) struct Transport {
    tls: Option<Arc<ClientConfig>>,
    limits: Arc<StoreLimits>,
    /// A permit for each connection.
    nodes: Arc<Semaphore>,
}

/// A connection to one node that many requests share. Clones are the same connection.
#[derive(Clone)]
pub(super) struct NodeConnection {
    connection: MultiplexedConnection,
    /// The last clone ends the task of the connection, even if the node still owes an answer.
    _task: Arc<(AbortOnDropHandle<()>, OwnedSemaphorePermit)>,
}

/// Sets the transport of this thread's cluster. Dropping it restores the earlier transport, except after `keep`.
pub(super) struct ClusterTransport {
    earlier: Option<Transport>,
    is_kept: bool,
}

impl Transport {
    pub(super) fn new(tls: Option<Arc<ClientConfig>>, limits: &Arc<StoreLimits>) -> Self {
        Self {
            tls,
            limits: Arc::clone(limits),
            nodes: Arc::new(Semaphore::new(MAX_NODES)),
        }
    }

    /// Connects to a node and logs in.
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
        login: &RedisConnectionInfo,
        settings: AsyncConnectionConfig,
    ) -> RedisResult<NodeConnection> {
        let permit = Arc::clone(&self.nodes).try_acquire_owned();
        let permit = permit.map_err(|_| {
            RedisError::from((
                ErrorKind::Client,
                "the cluster has more than 1000 nodes",
                format!("not connected: {host}:{port}"),
            ))
        })?;
        let opened = async {
            let stream = BoundedStream::new(self.open(host, port).await?, &self.limits);
            MultiplexedConnection::new_with_config(login, stream, settings).await
        };
        let (connection, task) = tokio::time::timeout(CONNECT_DEADLINE, opened)
            .await
            .map_err(io::Error::from)??;
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        Ok(NodeConnection {
            connection,
            _task: Arc::new((task, permit)),
        })
    }

    /// Connects to all addresses of a host at the same time, and returns the first stream.
    async fn open(&self, host: &str, port: u16) -> io::Result<Box<dyn ByteStream>> {
        let tls = match &self.tls {
            Some(config) => {
                let name = ServerName::try_from(host.to_owned());
                let name =
                    name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                Some((TlsConnector::from(Arc::clone(config)), name))
            }
            None => None,
        };
        let mut attempts = JoinSet::new();
        for address in lookup_host((host, port)).await? {
            attempts.spawn(open_at(address, tls.clone()));
        }
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        while let Some(attempt) = attempts.join_next().await {
            match attempt? {
                Ok(stream) => return Ok(stream),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }
}

async fn open_at(
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> io::Result<Box<dyn ByteStream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(match tls {
        Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
        None => Box::new(tcp),
    })
}

impl ClusterTransport {
    pub(super) fn set(transport: Transport) -> Self {
        Self {
            earlier: CLUSTER.replace(Some(transport)),
            is_kept: false,
        }
    }

    /// Keeps the transport, because a cluster's client uses it now.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for ClusterTransport {
    fn drop(&mut self) {
        if !self.is_kept {
            CLUSTER.set(self.earlier.take());
        }
    }
}

impl Connect for NodeConnection {
    /// Opens a further connection of this thread's cluster. The tasks of its client never change the thread.
    fn connect_with_config<'a, T>(info: T, settings: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        let transport = CLUSTER.with_borrow(Clone::clone);
        Box::pin(async move {
            let info = info.into_connection_info()?;
            let (Some(transport), ConnectionAddr::Tcp(host, port)) = (transport, info.addr())
            else {
                let problem = "this thread has no cluster, or the address is not TCP";
                return Err(RedisError::from((ErrorKind::Client, problem)));
            };
            let login = info.redis_settings();
            transport.connect(host, *port, login, settings).await
        })
    }
}

impl ConnectionLike for NodeConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.connection.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn connects_to_a_limited_number_of_nodes_at_once() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let transport = Transport {
            nodes: Arc::new(Semaphore::new(2)),
            ..Transport::new(None, &StoreLimits::new("redis://localhost".to_owned()))
        };
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let connect = || transport.connect("127.0.0.1", port, &login, AsyncConnectionConfig::new());
        let (one, two) = (connect().await.unwrap(), connect().await.unwrap());
        let refused = connect().await.err().unwrap().to_string();
        assert!(refused.contains("more than 1000 nodes"), "{refused}");
        let clone = two.clone();
        drop(two);
        assert!(connect().await.is_err());
        drop(clone);
        drop((one, connect().await.unwrap()));
    }
}
