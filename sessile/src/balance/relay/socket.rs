//! The system calls of a relay on one socket. The runtime only tells when a socket is ready.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

/// Receives bytes. Zero bytes are the end of the source.
pub(super) fn poll_recv(
    from: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        let received = transfer(from, Interest::READABLE, buffer.len(), || {
            Ok(recv(from, &mut *buffer, RecvFlags::empty())?.0)
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(from.poll_read_ready(cx))?;
            }
            received => return Poll::Ready(received),
        }
    }
}

/// Sends at least one byte.
pub(super) fn poll_send(
    to: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        match try_send(to, bytes, SendFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(to.poll_write_ready(cx))?;
            }
            sent => return Poll::Ready(sent),
        }
    }
}

/// Sends as many bytes as the sink takes now.
pub(super) fn try_send(to: &TcpStream, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    transfer(to, Interest::WRITABLE, bytes.len(), || {
        Ok(send(to, bytes, flags | SendFlags::NOSIGNAL)?)
    })
}

/// Makes a system call that moves at most `wanted` bytes, if the socket is ready.
///
/// If fewer bytes move, the socket is empty or full (epoll(7)). The runtime then waits for the next event.
fn transfer(
    io: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut moved = 0;
    let result = io.try_io(interest, || {
        moved = call()?;
        if moved == 0 || moved == wanted {
            Ok(moved)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    if moved > 0 { Ok(moved) } else { result }
}

/// Ends our side of a connection.
pub(super) fn end(to: &TcpStream) -> io::Result<()> {
    match shutdown(to, Shutdown::Write) {
        // The peer has reset the connection. The other direction reports the reset.
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes peeked bytes from a socket. The kernel copies nothing (tcp(7), MSG_TRUNC).
///
/// This does not use the runtime's read, because the runtime could suspend the task when only some bytes are
/// removed. The task would then send the other bytes again.
pub(super) fn remove_peeked(from: &TcpStream, mut peeked: &mut [u8]) -> io::Result<()> {
    while !peeked.is_empty() {
        let (_, removed) = from.try_io(Interest::READABLE, || {
            Ok(recv(from, &mut *peeked, RecvFlags::TRUNC)?)
        })?;
        if removed == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = peeked.len().saturating_sub(removed);
        peeked = &mut peeked[..left];
    }
    Ok(())
}

/// True if the source is known to have ended, so that the bytes of a short read were its last.
///
/// Most clients send their last record and the end together. This knowledge saves one read, and one segment
/// to the sink.
///
/// The runtime must learn nothing between the read and this check. A worker is one thread, so no event arrives
/// before the next await. With several threads, more bytes and the end could arrive in between, and the bytes
/// would be lost.
pub(super) fn is_known_to_have_ended(from: &TcpStream) -> bool {
    let readiness = readiness(from);
    // A reset closes the socket too. The next read must return the reset as an error.
    readiness.is_read_closed() && !readiness.is_error()
}

/// The readiness of a socket as the runtime knows it. This makes no system call.
pub(in crate::balance) fn readiness(io: &TcpStream) -> Ready {
    // Without readiness, the future below would queue a waker, which costs more than these questions.
    let is_idle = |interest| io.try_io(interest, || Ok(())).is_err();
    if is_idle(Interest::READABLE) && is_idle(Interest::ERROR) {
        return Ready::EMPTY;
    }
    let ready = pin!(io.ready(Interest::READABLE | Interest::ERROR));
    match ready.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) => ready,
        Poll::Ready(Err(_)) | Poll::Pending => Ready::EMPTY,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection over loopback.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), accepted.unwrap().0)
    }

    async fn receive(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| poll_recv(from, cx, buffer)).await
    }

    #[tokio::test]
    async fn a_source_that_ended_is_known_to_have_ended_after_a_short_read() {
        let (mut client, relay) = connected().await;
        let mut buffer = [0; 64];
        client.write_all(b"first").await.unwrap();
        assert_eq!(receive(&relay, &mut buffer).await.unwrap(), 5);
        assert!(!is_known_to_have_ended(&relay));
        client.write_all(b"last").await.unwrap();
        client.shutdown().await.unwrap();
        while !relay
            .ready(Interest::READABLE)
            .await
            .unwrap()
            .is_read_closed()
        {
            tokio::task::yield_now().await;
        }
        assert_eq!(receive(&relay, &mut buffer).await.unwrap(), 4);
        assert!(is_known_to_have_ended(&relay));
        assert_eq!(receive(&relay, &mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reset_is_not_taken_for_an_end() {
        let (client, relay) = connected().await;
        client.set_zero_linger().unwrap();
        drop(client);
        let mut buffer = [0; 64];
        let error = receive(&relay, &mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(!is_known_to_have_ended(&relay));
    }

    #[tokio::test]
    async fn every_byte_arrives_although_the_sink_is_full_at_times() {
        const LEN: usize = 8 << 20;
        let (source, sink) = connected().await;
        let sending = async {
            let bytes = vec![7; LEN];
            let mut sent = 0;
            while sent < LEN {
                let rest = &bytes[sent..];
                sent += std::future::poll_fn(|cx| poll_send(&source, cx, rest))
                    .await
                    .unwrap();
            }
            end(&source).unwrap();
        };
        let receiving = async {
            let mut buffer = [0; 5000];
            let mut received = 0;
            loop {
                match receive(&sink, &mut buffer).await.unwrap() {
                    0 => return received,
                    len => received += len,
                }
            }
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert_eq!(received, LEN);
    }
}
