//! One connection through the balancer: its hello is read, a server found and connected to, and
//! bytes pass. What the server shows in clear is reported as it passes.

use std::net::SocketAddr;
use std::sync::Arc;

use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};
use sessile_proto::watch::Watch;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::follow::{Offered, Request};
use super::metrics::Open;
use super::report::Passage;
use super::roster::Roster;
use super::server::{Connected, Server};
use super::{Shared, relay};
use crate::clock;
use crate::detect::{self, DetectError};

/// A fatal alert, unrecognized_name (RFC 6066, 3), in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

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
            pass(&shared, client, placed).await;
        }
        Err(cause) => {
            if cause == UNKNOWN_NAME {
                // Whoever does not take it will not miss it.
                let _ = client.write_all(&UNRECOGNIZED_NAME).await;
            }
            shared.metrics.count_turned_away(cause);
        }
    }
    drop(open);
}

/// Turned away for the server name, and told so.
const UNKNOWN_NAME: &str = "unknown-name";

/// A client with its server found.
struct Placed {
    passage: Passage,
    server: TcpStream,
    connected: Connected,
    watch: Watch,
}

/// Finds a server that takes the connection and hands it the hello, verbatim.
async fn place(
    shared: &Shared,
    reader: &HelloReader,
    client: SocketAddr,
) -> Result<Placed, &'static str> {
    let hello = reader.hello().map_err(|_| "bad-hello")?;
    let roster = shared.roster();
    let pool = roster.pool(hello.server_name).ok_or(UNKNOWN_NAME)?;
    let offered = Offered::new(&hello);
    let request = Request {
        hello: &hello,
        offered: &offered,
        source: client.ip(),
        now: clock::now(),
    };
    let mut tried: Vec<&Arc<Server>> = Vec::new();
    let mut found = None;
    for (by, server) in shared.choices(&roster, pool, &request) {
        if tried.iter().any(|other| Arc::ptr_eq(other, server)) {
            continue;
        }
        tried.push(server);
        if let Some(made) = connect(&roster, server, reader.bytes()).await {
            found = Some((by, Arc::clone(server), made));
            break;
        }
    }
    let (by, server, (io, connected)) = found.ok_or("no-server")?;
    Ok(Placed {
        server: io,
        connected,
        watch: Watch::new(&hello),
        passage: Passage {
            server,
            by,
            client,
            offered,
        },
    })
}

async fn connect(roster: &Roster, server: &Server, hello: &[u8]) -> Option<(TcpStream, Connected)> {
    let connected = server.reserve()?;
    let attempt = async {
        let mut io = TcpStream::connect(server.address()).await?;
        io.set_nodelay(true)?;
        io.write_all(hello).await?;
        Ok::<_, std::io::Error>(io)
    };
    match timeout(roster.balance.connect_timeout, attempt).await {
        Ok(Ok(io)) => {
            server.live.metrics.connections.inc();
            Some((io, connected))
        }
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

/// Moves bytes to the end.
async fn pass(shared: &Shared, mut client: TcpStream, placed: Placed) {
    let Placed {
        passage,
        mut server,
        connected,
        mut watch,
    } = placed;
    relay::keep_alive(&client);
    relay::keep_alive(&server);
    let (mut answered, mut told) = (false, false);
    let relayed = relay::run(&mut client, &mut server, |bytes| {
        if !answered {
            answered = true;
            passage.server.answered(clock::now());
        }
        if let Some(outcome) = watch.push(bytes) {
            shared.report_handshake(&passage, &outcome, watch.selected_identity());
            told = true;
        }
    });
    let ended = relayed.await;
    shared.report_end(&passage, &ended, told);
    drop(connected);
}
