//! Connects to a server and sends the first bytes with as few system calls as possible.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Connects to a server and sends the first bytes. The caller limits the time.
///
/// The runtime learns of the socket only after the first attempt to send.
pub(super) async fn connect_and_send(address: SocketAddr, bytes: &[u8]) -> io::Result<TcpStream> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        _ => {}
    }
    // The kernel connects to a server on the same host at once. Then nothing has to wait for an event.
    let sent = match socket.send_with_flags(bytes, libc::MSG_NOSIGNAL) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        sent => sent?,
    };
    let mut io = TcpStream::from_std(socket.into())?;
    // This also returns the error of a connection that failed.
    io.write_all(&bytes[sent..]).await?;
    Ok(io)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use tokio::io::AsyncReadExt;

    use super::*;

    const HELLO: &[u8] = b"the first bytes";

    /// A listener with room for one connection that is not accepted yet.
    fn listen() -> (TcpListener, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn first_bytes(listener: TcpListener) -> Vec<u8> {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (mut io, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; HELLO.len()];
        io.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_server_gets_the_first_bytes() {
        let (listener, address) = listen();
        let io = connect_and_send(address, HELLO).await.unwrap();
        assert_eq!(first_bytes(listener).await, HELLO);
        assert!(io.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_server_that_takes_no_connection_at_first_gets_the_first_bytes_later() {
        let (listener, address) = listen();
        // The kernel completes a connection only if the queue of the listener has room.
        let waiting = std::net::TcpStream::connect(address).unwrap();
        let mut connecting = std::pin::pin!(connect_and_send(address, HELLO));
        let first_poll = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(connecting.as_mut().poll(cx).is_pending())
        });
        assert!(first_poll.await, "the queue is full");
        drop(listener.accept().unwrap());
        drop(waiting);
        let (io, bytes) = tokio::join!(connecting, first_bytes(listener));
        io.unwrap();
        assert_eq!(bytes, HELLO);
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_error() {
        let (listener, address) = listen();
        drop(listener);
        let error = connect_and_send(address, HELLO).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
