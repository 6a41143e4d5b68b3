use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::Connection;
use crate::listener::{Admission, BufferLimit};

/// Both ends of a connection over loopback.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

fn admission(limit: BufferLimit) -> Arc<Admission> {
    Admission::new(&Connection::default(), 10, limit)
}

fn admitted(admission: &Arc<Admission>) -> Admitted {
    let source = Ipv4Addr::LOCALHOST.into();
    let mut hello = admission.begin_hello(source);
    hello.admit(source, std::time::Instant::now).unwrap()
}

/// Short for a test, and long enough for a busy machine.
const SHORT: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_half_closed_connection_lasts_while_the_client_sends() {
    let (mut client, from_client) = connected().await;
    let (to_server, mut server) = connected().await;
    let admitted = admitted(&admission(BufferLimit::default()));
    let timeouts = Timeouts {
        half_closed: SHORT,
        ..Timeouts::default()
    };
    let moved = Cell::new(ByteCounts::default());
    let report = |more: ByteCounts| {
        let ByteCounts { up, down } = moved.get();
        moved.set(ByteCounts {
            up: up + more.up,
            down: down + more.down,
        });
    };
    let relayed = run(
        &from_client,
        &to_server,
        &admitted,
        timeouts,
        &report,
        no_watches(),
        std::future::pending(),
    );
    let peers = async {
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let ended = Instant::now();
        let mut pieces = 0;
        // Send for twice as long as a silent client may stay.
        while ended.elapsed() < 2 * SHORT {
            client.write_all(b"piece").await.unwrap();
            server.read_exact(&mut [0; 5]).await.unwrap();
            pieces += 5;
            tokio::time::sleep(SHORT / 40).await;
        }
        pieces
    };
    let (end, pieces) = tokio::join!(relayed, peers);
    assert!(
        matches!(end.reason, EndReason::HalfClosed),
        "{:?}",
        end.reason
    );
    assert!(end.by_server && end.answered);
    let expected = ByteCounts {
        up: pieces,
        down: 6,
    };
    assert_eq!(moved.get(), expected);
}

#[tokio::test]
async fn byte_counts_are_reported_while_the_connection_is_open() {
    let (mut client, from_client) = connected().await;
    let (to_server, mut server) = connected().await;
    let admitted = admitted(&admission(BufferLimit::default()));
    let timeouts = Timeouts {
        report: Duration::from_millis(10),
        ..Timeouts::default()
    };
    let (told, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let report = |moved: ByteCounts| {
        if moved != ByteCounts::default() {
            told.send(moved).unwrap();
        }
    };
    let relayed = run(
        &from_client,
        &to_server,
        &admitted,
        timeouts,
        &report,
        no_watches(),
        std::future::pending(),
    );
    let peers = async {
        for piece in [&b"one"[..], b"three"] {
            client.write_all(piece).await.unwrap();
            server.read_exact(&mut vec![0; piece.len()]).await.unwrap();
            let up = piece.len() as u64;
            assert_eq!(reports.recv().await, Some(ByteCounts { up, down: 0 }));
        }
        server.write_all(b"last").await.unwrap();
        drop(server);
        client.read_to_end(&mut Vec::new()).await.unwrap();
        drop(client);
    };
    tokio::join!(relayed, peers);
    let last = reports.try_recv();
    assert_eq!(last, Ok(ByteCounts { up: 0, down: 4 }));
}

/// Watches that need no bytes.
fn no_watches() -> Watches<Watch, Watch> {
    Watches {
        client: |_| ControlFlow::Break(()),
        server: |_| ControlFlow::Break(()),
    }
}

type Watch = fn(&[u8]) -> ControlFlow<()>;

/// Streams to a client that reads nothing until the relay takes no more bytes. Returns the numbers of buffered
/// bytes and pipes at that time.
async fn stalled(limit: BufferLimit) -> (usize, usize) {
    const STREAM: usize = 32 << 20;
    let (mut client, from_client) = connected().await;
    let (to_server, mut server) = connected().await;
    let admission = admission(limit);
    let admitted = admitted(&admission);
    let sent: Vec<u8> = (0..STREAM as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let timeouts = Timeouts::default();
    let relayed = run(
        &from_client,
        &to_server,
        &admitted,
        timeouts,
        &|_| {},
        no_watches(),
        std::future::pending(),
    );
    let peers = async {
        let mut written = 0;
        // Write until nothing moves any more.
        while let Ok(more) = tokio::time::timeout(SHORT, server.write(&sent[written..])).await {
            written += more.unwrap();
        }
        let buffered = (admission.buffered_bytes(), admission.buffered_pipes());
        let rest = async {
            server.write_all(&sent[written..]).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut arrived = Vec::with_capacity(STREAM);
        let reading = client.read_to_end(&mut arrived);
        let ((), read) = tokio::join!(rest, reading);
        read.unwrap();
        assert!(arrived == sent, "other bytes arrived");
        drop(client);
        buffered
    };
    let (end, buffered) = tokio::join!(relayed, peers);
    assert!(matches!(end.reason, EndReason::Closed), "{:?}", end.reason);
    let left = (admission.buffered_bytes(), admission.buffered_pipes());
    assert_eq!(left, (0, 0), "nothing counts any more");
    buffered
}

#[tokio::test]
async fn bytes_for_a_slow_reader_are_buffered_within_limits_and_nothing_is_lost() {
    let bytes_only = BufferLimit {
        bytes: 1 << 20,
        pipes: 0,
    };
    let (bytes, pipes) = stalled(bytes_only).await;
    assert!((1..=direction::CHUNK).contains(&bytes), "{bytes}");
    assert_eq!(pipes, 0);
    assert_eq!(stalled(BufferLimit::default()).await, (0, 0));
}
