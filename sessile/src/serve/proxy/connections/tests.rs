use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;

pub(crate) async fn upstream() -> (TcpListener, Rc<Connections>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Rc::new(Connections {
        servers: [address.to_string()].into(),
        connect_timeout: Duration::from_secs(10),
        idle: RefCell::default(),
        has_reaper: Cell::new(false),
    });
    (listener, connections)
}

/// A new connection, and the upstream's end.
pub(crate) async fn connect(
    listener: &TcpListener,
    connections: &Rc<Connections>,
) -> (Connection, TcpStream) {
    let connection = connections.connect().await.expect("a connection");
    let (io, _) = listener.accept().await.expect("a connection");
    (connection, io)
}

/// Runs a test with two idle connections. The upstream has both ends of them.
async fn with_idle<F: Future<Output = ()>>(
    test: impl FnOnce(Rc<Connections>, [TcpStream; 2]) -> F,
) {
    let run = async {
        let (listener, connections) = upstream().await;
        let (first, first_end) = connect(&listener, &connections).await;
        let (second, second_end) = connect(&listener, &connections).await;
        connections.keep(first);
        connections.keep(second);
        test(connections, [first_end, second_end]).await;
    };
    LocalSet::new().run_until(run).await;
}

/// Waits until the system has bytes or an end for the newest connection. tokio gets no turn meanwhile.
fn await_event(connections: &Connections) {
    let idle = connections.idle.borrow();
    let newest = &idle.back().expect("an idle connection").connection;
    let mut events = [PollFd::new(newest.reader.io.as_ref(), PollFlags::IN)];
    poll(&mut events, None).expect("events");
}

#[tokio::test]
async fn the_idle_connection_that_was_used_last_takes_the_next_request() {
    with_idle(async |connections, [first, second]| {
        for end in [second, first] {
            let taken = connections.take_idle(Instant::now()).expect("a connection");
            assert_eq!(taken.writer.local_addr().ok(), end.peer_addr().ok());
        }
        assert!(connections.take_idle(Instant::now()).is_none());
    })
    .await;
}

#[tokio::test]
async fn a_closed_connection_takes_no_request() {
    with_idle(async |connections, [first, second]| {
        drop(second);
        await_event(&connections);
        let taken = connections.take_idle(Instant::now()).expect("the first");
        assert_eq!(taken.writer.local_addr().ok(), first.peer_addr().ok());
        assert!(connections.idle.borrow().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_connection_with_bytes_behind_its_response_takes_no_request() {
    with_idle(async |connections, [first, mut second]| {
        second
            .write_all(b"HTTP/1.1 ")
            .await
            .expect("an open connection");
        await_event(&connections);
        let mut taken = connections.take_idle(Instant::now()).expect("the first");
        assert_eq!(taken.writer.local_addr().ok(), first.peer_addr().ok());
        // Bytes that were already read.
        taken.reader.received.extend_from_slice(b"H");
        connections.keep(taken);
        assert!(connections.take_idle(Instant::now()).is_none());
    })
    .await;
}

#[tokio::test]
async fn an_expired_connection_takes_no_request() {
    with_idle(async |connections, _ends| {
        let later = Instant::now() + IDLE_TIMEOUT;
        assert!(connections.take_idle(later).is_none());
        assert!(connections.idle.borrow().is_empty());
    })
    .await;
}
