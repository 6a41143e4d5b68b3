//! Listening sockets: one for each worker on the same address. The kernel spreads the connections over the
//! sockets, so no thread has to pass them on.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::inherited;

/// Most connections that may wait to be accepted. The kernel allows at most `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The pause after an error of this host, such as a lack of file descriptors, when a connection is accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", remedy(source, *address, *setting))]
pub struct ListenError {
    address: SocketAddr,
    setting: AddressSetting,
    source: io::Error,
}

/// Where users set an address.
#[derive(Clone, Copy, Debug)]
pub enum AddressSetting {
    Listener,
    Admin,
}

impl AddressSetting {
    /// The flag, and the key in a configuration file.
    const fn names(self) -> &'static str {
        match self {
            Self::Listener => "--listen (in a file: `address` of the [[listener]])",
            Self::Admin => "--admin (in a file: admin.listen)",
        }
    }
}

fn remedy(error: &io::Error, address: SocketAddr, setting: AddressSetting) -> String {
    let names = setting.names();
    if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) {
        let port = address.port();
        return format!("; this host has no IPv6: write 0.0.0.0:{port} in {names}");
    }
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "; another program has this port: stop that program (`ss -ltnp` names it), or change {names}"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("; ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or change {names}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("; this host does not have that address: change {names}")
        }
        _ => String::new(),
    }
}

/// A listening socket for one worker.
#[derive(Debug)]
pub struct Socket {
    listener: TcpListener,
    address: SocketAddr,
    /// True if the service manager keeps the socket open, with the connections in its queue.
    is_inherited: bool,
}

impl Socket {
    /// The address. If port 0 was given, this has the port that the kernel chose.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Takes over the inherited socket with this address, or binds the address, once for each worker. Port 0
/// becomes one free port, which all workers share.
///
/// # Errors
/// If the address is not available, or another program listens on it.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    setting: AddressSetting,
) -> Result<Vec<Socket>, ListenError> {
    let sockets = match inherited::claim(address) {
        Some(listener) => share_inherited(&listener, workers.max(1)),
        None => bind_new(address, workers.max(1)),
    };
    sockets.map_err(|source| ListenError {
        address,
        setting,
        source,
    })
}

fn bind_new(address: SocketAddr, workers: usize) -> io::Result<Vec<Socket>> {
    if address.port() != 0 {
        // With SO_REUSEPORT, another process of the same user could share the port and take connections. A
        // bind without the option fails if another process has the port.
        bind_socket(address, false)?;
    }
    let mut sockets = Vec::with_capacity(workers);
    let mut bound = address;
    for _ in 0..workers {
        let socket = bind_socket(bound, true)?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        bound = listener.local_addr()?;
        sockets.push(Socket {
            listener,
            address: bound,
            is_inherited: false,
        });
    }
    Ok(sockets)
}

fn bind_socket(address: SocketAddr, reuse_port: bool) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    set_options(SockRef::from(&socket))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // The system's setting net.ipv6.bindv6only would keep IPv4 clients out.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Shares one socket among all workers. If each worker had a socket, the queues of the other sockets would be
/// lost when this process ends.
fn share_inherited(listener: &TcpListener, workers: usize) -> io::Result<Vec<Socket>> {
    set_options(SockRef::from(listener))?;
    let address = listener.local_addr()?;
    (0..workers)
        .map(|_| {
            Ok(Socket {
                listener: listener.try_clone()?,
                address,
                is_inherited: true,
            })
        })
        .collect()
}

/// Sets the options of a listening socket. Accepted connections inherit TCP_NODELAY.
fn set_options(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Every flight is written whole, so Nagle's algorithm could only delay the last segment of a flight.
    socket.set_tcp_nodelay(true)
}

/// Accepts connections until `stop` is ready. Then it accepts the connections that already wait, because
/// closing the socket would reset them. An inherited socket stays open, so its connections wait for the next
/// process.
///
/// # Errors
/// If this thread cannot use the socket.
pub async fn accept(
    socket: Socket,
    stop: impl Future<Output = ()>,
    mut connected: impl FnMut(TcpStream, SocketAddr),
) -> io::Result<()> {
    let listener = WatchedListener::new(socket.listener)?;
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            ready = listener.readable() => ready?,
        }
        match listener.accept() {
            Ok((io, peer)) => connected(io, peer),
            Err(error) if is_harmless(&error) => {}
            Err(_) => {
                tracing::warn!(
                    "cannot accept connections: out of file descriptors or memory; raise the limit on open \
                     files, or lower connection.max"
                );
                tokio::time::sleep(PAUSE).await;
            }
        }
        // Let the accepted connections run, even if more connections wait.
        tokio::task::consume_budget().await;
    }
    if socket.is_inherited {
        return Ok(());
    }
    // The runtime may not know yet that a connection waits, so ask the socket itself.
    let listener = listener.into_std()?;
    while let Ok((io, peer)) = accept_one(&listener) {
        connected(io, peer);
    }
    Ok(())
}

/// A listening socket that the runtime watches.
///
/// The runtime's type for listeners accepts until an accept finds no connection. Such an accept costs as much
/// as eight other system calls. The runtime's type for streams waits without a system call.
struct WatchedListener(TcpStream);

impl WatchedListener {
    fn new(listener: TcpListener) -> io::Result<Self> {
        let socket = OwnedFd::from(listener);
        TcpStream::from_std(socket.into()).map(Self)
    }

    /// Waits until a connection waits.
    async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Accepts a connection, and asks whether another connection waits.
    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = accept_one(&self.0);
        // After an error, assume that a connection waits: the next accept handles the error.
        if !has_event(&self.0, PollFlags::IN).unwrap_or(true) {
            expect_next_event(&self.0);
        }
        accepted
    }

    fn into_std(self) -> io::Result<TcpListener> {
        Ok(OwnedFd::from(self.0.into_std()?).into())
    }
}

/// Accepts a waiting connection. The system call also makes the connection non-blocking.
fn accept_one(listener: &impl AsFd) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (io, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.ok_or(io::ErrorKind::ConnectionAborted)?;
    let io = TcpStream::from_std(io.into())?;
    Ok((io, canonical(SocketAddr::try_from(peer)?)))
}

/// The address of a client in its own family. A socket on `[::]` sees IPv4 clients in IPv6 form.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// True if a socket has an event now.
pub(crate) fn has_event(socket: &impl AsFd, event: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, event)];
    let at_once = Timespec::default();
    Ok(poll(&mut polled, Some(&at_once))? > 0)
}

/// Makes the runtime wait for the next event of a socket, because the socket was found to be empty.
pub(super) fn expect_next_event(io: &TcpStream) {
    // The runtime concludes from an operation that would block that the socket is empty.
    let _ = io.try_io(Interest::READABLE, || {
        Err::<(), _>(io::ErrorKind::WouldBlock.into())
    });
}

/// True if no connection waits, or the connection ended before it was accepted. The listener still works.
fn is_harmless(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
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
    fn an_ipv4_client_of_an_ipv6_socket_has_its_ipv4_address() {
        for (seen, shown) in [
            ("[::ffff:192.0.2.1]:5", "192.0.2.1:5"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
            ("192.0.2.1:5", "192.0.2.1:5"),
        ] {
            assert_eq!(canonical(seen.parse().unwrap()).to_string(), shown);
        }
    }

    #[test]
    fn a_host_without_ipv6_gets_the_address_to_write() {
        let error = ListenError {
            address: "[::]:8443".parse().unwrap(),
            setting: AddressSetting::Admin,
            source: Errno::AFNOSUPPORT.into(),
        };
        let text = error.to_string();
        let remedy =
            "; this host has no IPv6: write 0.0.0.0:8443 in --admin (in a file: admin.listen)";
        assert!(text.ends_with(remedy), "{text}");
    }

    #[test]
    fn workers_share_one_free_port() {
        let sockets = bind(ANY, 3, AddressSetting::Listener).unwrap();
        assert_eq!(sockets.len(), 3);
        let first = sockets[0].address();
        assert!(sockets.iter().all(|socket| socket.address() == first));
    }

    #[test]
    fn an_address_in_use_is_refused_with_a_remedy() {
        let taken = bind(ANY, 1, AddressSetting::Listener).unwrap();
        for (setting, name) in [
            (AddressSetting::Listener, "--listen"),
            (AddressSetting::Admin, "admin.listen"),
        ] {
            let error = bind(taken[0].address(), 1, setting)
                .unwrap_err()
                .to_string();
            assert!(error.contains("another program"), "{error}");
            assert!(error.contains(name), "{error}");
        }
    }
}
