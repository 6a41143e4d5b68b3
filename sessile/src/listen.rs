//! Listening sockets: one for each worker thread on the same address, so that the kernel spreads
//! connections and no thread wakes another.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::systemd;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Pause after a failure to accept that is ours (no file descriptors left), not the peer's.
const PAUSE: Duration = Duration::from_millis(100);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", remedy(source))]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program has it: stop that one or choose another",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose another or grant it"
        }
        io::ErrorKind::AddrNotAvailable => "; this host does not have that address",
        _ => "",
    }
}

/// A listening socket for one worker.
#[derive(Debug)]
pub struct Socket {
    listener: std::net::TcpListener,
    /// It outlives this process, and whoever waits in its queue waits for the next one.
    inherited: bool,
}

impl Socket {
    /// Where it listens.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Takes over the inherited socket with this address, or binds it, once for each worker. Port 0
/// becomes one free port, the same for all.
///
/// # Errors
/// Where the address cannot be had, another program's listening on it included.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Vec<Socket>, ListenError> {
    let failed = |source| ListenError { address, source };
    if let Some(listener) = systemd::claim(address) {
        return share(listener, workers).map_err(failed);
    }
    if address.port() != 0 {
        // SO_REUSEPORT would let us share the port with another process of the same user, and
        // every other connection would go there. A bind without it finds that out.
        socket(address, false).map_err(failed)?;
    }
    let mut listeners = Vec::with_capacity(workers);
    let mut bound = address;
    for _ in 0..workers.max(1) {
        let socket = socket(bound, true).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let listener = std::net::TcpListener::from(socket);
        bound = listener.local_addr().map_err(failed)?;
        listeners.push(Socket {
            listener,
            inherited: false,
        });
    }
    Ok(listeners)
}

/// One socket for all workers, each of which takes what it can get. Others with the same address
/// beside it would have queues of their own, which nobody reads after this process has ended.
fn share(listener: std::net::TcpListener, workers: usize) -> io::Result<Vec<Socket>> {
    prepare(SockRef::from(&listener))?;
    let again = || {
        Ok(Socket {
            listener: listener.try_clone()?,
            inherited: true,
        })
    };
    (0..workers.max(1)).map(|_| again()).collect()
}

/// What a listening socket needs, and what is accepted from it inherits.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Every flight is written whole; Nagle's algorithm could only delay the last one.
    socket.set_tcp_nodelay(true)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    prepare(SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts connections until `stop` is ready, then those that the kernel has already accepted for
/// us: closing the socket would reset them. (Not where it is not closed by that.)
///
/// # Errors
/// Where the listener cannot be used on this thread.
pub async fn accept(
    socket: Socket,
    stop: impl Future<Output = ()>,
    mut connected: impl FnMut(TcpStream, SocketAddr),
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket.listener)?;
    let mut accepted = |result: io::Result<(TcpStream, SocketAddr)>| match result {
        Ok((io, peer)) => {
            connected(io, peer);
            true
        }
        Err(error) => is_peers_fault(&error),
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            result = listener.accept() => if !accepted(result) {
                tracing::warn!("cannot accept connections: out of file descriptors or memory");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    if socket.inherited {
        return Ok(());
    }
    // On the plain socket: the runtime's view of it may lag behind.
    let listener = listener.into_std()?;
    while let Ok((io, peer)) = listener.accept() {
        io.set_nonblocking(true)?;
        accepted(TcpStream::from_std(io).map(|io| (io, peer)));
    }
    Ok(())
}

/// A connection that ended before it was accepted says nothing about the listener.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn workers_share_one_free_port() {
        let listeners = bind(ANY, 3).unwrap();
        let port = |listener: &Socket| listener.local_addr().unwrap().port();
        assert_eq!(listeners.len(), 3);
        assert!(
            listeners
                .iter()
                .all(|other| port(other) == port(&listeners[0]))
        );
    }

    #[test]
    fn an_address_in_use_is_refused_with_a_remedy() {
        let taken = bind(ANY, 1).unwrap();
        let error = bind(taken[0].local_addr().unwrap(), 1).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
    }
}
