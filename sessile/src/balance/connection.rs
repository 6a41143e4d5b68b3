//! One connection through the balancer: its hello is read, a server found and connected to, and
//! what the server shows in clear is learned from while bytes pass.

use std::net::SocketAddr;
use std::sync::Arc;

use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::{Kind, Watch};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::metrics::Open;
use super::servers::Connected;
use super::{Shared, relay};
use crate::clock;
use crate::detect::{self, DetectError};

pub(super) async fn run(shared: Arc<Shared>, mut client: TcpStream, peer: SocketAddr, open: Open) {
    let reader = match detect::read(&mut client, DEFAULT_LIMIT, &shared.stop).await {
        Ok(reader) => reader,
        Err(error) => {
            shared.metrics.count_turned_away(match error {
                DetectError::Invalid(_) => "bad-hello",
                DetectError::Deadline => "deadline",
                DetectError::Closed | DetectError::Io(_) => "no-hello",
            });
            return;
        }
    };
    match place(&shared, &reader, peer).await {
        Ok(placed) => {
            drop(reader);
            pass(&shared, client, placed, peer).await;
        }
        Err(cause) => shared.metrics.count_turned_away(cause),
    }
    drop(open);
}

/// A client with its server found.
struct Placed {
    by: RoutedBy,
    at: usize,
    server: TcpStream,
    connected: Connected,
    watch: Watch,
}

/// Finds a server that takes the connection and hands it the hello, verbatim.
async fn place(
    shared: &Shared,
    reader: &HelloReader,
    peer: SocketAddr,
) -> Result<Placed, &'static str> {
    let hello = reader.hello().map_err(|_| "bad-hello")?;
    let mut tried = Vec::new();
    for (by, at) in shared.choices(&hello, peer.ip(), clock::now()) {
        if tried.contains(&at) {
            continue;
        }
        tried.push(at);
        if let Some((server, connected)) = connect(shared, at, reader.bytes()).await {
            return Ok(Placed {
                by,
                at,
                server,
                connected,
                watch: Watch::new(&hello),
            });
        }
    }
    Err("no-server")
}

async fn connect(shared: &Shared, at: usize, hello: &[u8]) -> Option<(TcpStream, Connected)> {
    let server = &shared.servers[at];
    let attempt = async {
        let mut io = TcpStream::connect(server.address()).await?;
        io.set_nodelay(true)?;
        io.write_all(hello).await?;
        Ok::<_, std::io::Error>(io)
    };
    match tokio::time::timeout(shared.servers.connect_timeout, attempt).await {
        Ok(Ok(io)) => Some((io, server.connected())),
        failed => {
            let error = failed.map(|result| result.err());
            tracing::debug!(
                server = server.name(),
                ?error,
                "server does not take connections"
            );
            // Counted from now: the attempt may have taken its whole time.
            server.failed(clock::now());
            None
        }
    }
}

/// Moves bytes to the end, and learns.
async fn pass(shared: &Shared, mut client: TcpStream, placed: Placed, peer: SocketAddr) {
    let Placed {
        by,
        at,
        mut server,
        connected,
        mut watch,
    } = placed;
    relay::keep_alive(&client);
    relay::keep_alive(&server);
    let mut counted = false;
    let relayed = relay::run(&mut client, &mut server, |bytes| {
        if let Some(outcome) = watch.push(bytes) {
            shared.learn(&outcome.learned, at, peer.ip(), clock::now());
            let kind = match outcome.kind {
                // The session ID of a TLS 1.3 client is noise, unless it is one that we know.
                Kind::NotOffered if by != RoutedBy::Policy => Kind::Refused,
                kind => kind,
            };
            shared.metrics.count(by, Some(kind));
            counted = true;
            let resumed = matches!(outcome.kind, Kind::Resumed(_));
            let server = shared.servers[at].name();
            tracing::debug!(server, routed_by = by.as_str(), resumed, client = %peer, "handshake");
        }
    });
    let relayed = relayed.await;
    if !counted {
        shared.metrics.count(by, None);
    }
    if let Err(error) = relayed {
        tracing::trace!(%error, client = %peer, "connection cut");
    }
    drop(connected);
}
