use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::Connection;
use crate::listener::{Admission, BufferLimit};

/// A connection over loopback, both ends.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

fn admission(max_held: BufferLimit) -> Arc<Admission> {
    Admission::new(&Connection::default(), 10, max_held)
}

fn stay(admission: &Arc<Admission>) -> Admitted {
    let mut hello = admission.begin_hello().unwrap();
    let source = Ipv4Addr::LOCALHOST.into();
    hello.admit(source, std::time::Instant::now()).unwrap()
}

const SHORT: Duration = Duration::from_millis(600);

#[tokio::test]
async fn what_the_server_ended_lasts_as_long_as_the_client_goes_on() {
    let (mut client, mut from_client) = connected().await;
    let (mut to_server, mut server) = connected().await;
    let stay = stay(&admission(BufferLimit::default()));
    let patience = Patience {
        half_closed: SHORT,
        ..Patience::default()
    };
    let moved = Cell::new(Moved::default());
    let report = |more: Moved| {
        let Moved { up, down } = moved.get();
        moved.set(Moved {
            up: up + more.up,
            down: down + more.down,
        });
    };
    let relayed = run(
        &mut from_client,
        &mut to_server,
        &stay,
        patience,
        &report,
        |_| ControlFlow::Break(()),
    );
    let peers = async {
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let ended = Instant::now();
        let mut pieces = 0;
        // Twice as long as silence would be borne.
        while ended.elapsed() < 2 * SHORT {
            client.write_all(b"piece").await.unwrap();
            server.read_exact(&mut [0; 5]).await.unwrap();
            pieces += 5;
            tokio::time::sleep(SHORT / 40).await;
        }
        pieces
    };
    let (ended, pieces) = tokio::join!(relayed, peers);
    assert!(matches!(ended.end, End::HalfClosed), "{:?}", ended.end);
    assert!(ended.by_server && ended.answered);
    let expected = Moved {
        up: pieces,
        down: 6,
    };
    assert_eq!(moved.get(), expected);
}

#[tokio::test]
async fn what_moves_is_reported_while_the_connection_is_open() {
    let (mut client, mut from_client) = connected().await;
    let (mut to_server, mut server) = connected().await;
    let stay = stay(&admission(BufferLimit::default()));
    let patience = Patience {
        report: Duration::from_millis(10),
        ..Patience::default()
    };
    let (told, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let report = |moved: Moved| {
        if moved != Moved::default() {
            told.send(moved).unwrap();
        }
    };
    let relayed = run(
        &mut from_client,
        &mut to_server,
        &stay,
        patience,
        &report,
        |_| ControlFlow::Break(()),
    );
    let peers = async {
        for piece in [&b"one"[..], b"three"] {
            client.write_all(piece).await.unwrap();
            server.read_exact(&mut vec![0; piece.len()]).await.unwrap();
            let up = piece.len() as u64;
            assert_eq!(reports.recv().await, Some(Moved { up, down: 0 }));
        }
        server.write_all(b"last").await.unwrap();
        drop(server);
        client.read_to_end(&mut Vec::new()).await.unwrap();
        drop(client);
    };
    tokio::join!(relayed, peers);
    let last = reports.try_recv();
    assert_eq!(last, Ok(Moved { up: 0, down: 4 }));
}

/// A stream to a client that reads nothing until the relay can do no more; what is held back then.
async fn stalled(max_held: BufferLimit) -> (usize, usize) {
    const STREAM: usize = 32 << 20;
    let (mut client, mut from_client) = connected().await;
    let (mut to_server, mut server) = connected().await;
    let admission = admission(max_held);
    let stay = stay(&admission);
    let sent: Vec<u8> = (0..STREAM as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let patience = Patience::default();
    let relayed = run(
        &mut from_client,
        &mut to_server,
        &stay,
        patience,
        &|_| {},
        |_| ControlFlow::Break(()),
    );
    let peers = async {
        let mut written = 0;
        // Until nothing moves any more: what is on its way is taken within a moment.
        while let Ok(more) = tokio::time::timeout(SHORT, server.write(&sent[written..])).await {
            written += more.unwrap();
        }
        let held = (admission.buffered_bytes(), admission.buffered_pipes());
        let rest = async {
            server.write_all(&sent[written..]).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut arrived = Vec::with_capacity(STREAM);
        let reading = client.read_to_end(&mut arrived);
        let ((), read) = tokio::join!(rest, reading);
        read.unwrap();
        assert!(arrived == sent, "not what was sent");
        drop(client);
        held
    };
    let (ended, held) = tokio::join!(relayed, peers);
    assert!(matches!(ended.end, End::Orderly), "{:?}", ended.end);
    let left = (admission.buffered_bytes(), admission.buffered_pipes());
    assert_eq!(left, (0, 0), "given back");
    held
}

#[tokio::test]
async fn what_a_reader_does_not_take_is_held_back_within_limits_and_nothing_is_lost() {
    let held = stalled(BufferLimit {
        bytes: 1 << 20,
        pipes: 0,
    });
    let (bytes, pipes) = held.await;
    assert!((1..=direction::CHUNK).contains(&bytes), "{bytes}");
    assert_eq!(pipes, 0);
    assert_eq!(stalled(BufferLimit::default()).await, (0, 0));
}
