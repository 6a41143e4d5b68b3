use std::cell::Cell;
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A connection over loopback, both ends.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

const SHORT: Duration = Duration::from_millis(600);

#[tokio::test]
async fn what_the_server_ended_lasts_as_long_as_the_client_goes_on() {
    let (mut client, mut from_client) = connected().await;
    let (mut to_server, mut server) = connected().await;
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
    let relayed = run(&mut from_client, &mut to_server, patience, &report, |_| {
        ControlFlow::Break(())
    });
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
    let relayed = run(&mut from_client, &mut to_server, patience, &report, |_| {
        ControlFlow::Break(())
    });
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
