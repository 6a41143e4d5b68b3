//! A source that takes all places of a shared pool must give places to a source that comes later.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::peers::{Certificates, Peer, Sessile, nginx};

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

const PATIENCE: Duration = Duration::from_secs(30);

/// The content type of a TLS handshake record.
const HANDSHAKE: u8 = 22;

/// The address of a host in a /24 of its own.
fn host(prefix: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, prefix, 1).into()
}

fn connect(address: SocketAddr, from: IpAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    // Reset the connection at its end: other tests need the ports that TIME_WAIT would block.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// True if the server answers the hello; false if it has closed the connection.
fn is_answered(mut io: &TcpStream) -> bool {
    let mut first = [0];
    io.write_all(HELLO).is_ok() && matches!(io.read(&mut first), Ok(1)) && first[0] == HANDSHAKE
}

fn is_closed(mut io: &TcpStream) -> bool {
    matches!(io.read(&mut [0]), Ok(0) | Err(_))
}

/// nginx behind a balancer with one setting of the section `connection`.
fn behind_balancer(setting: &str) -> (Peer, Sessile) {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let text = format!(
        "key.file = 'none'\nconnection.{setting}\n\
         [[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
         [[balance.server]]\nname = 'a'\naddress = '{}'\n",
        server.address()
    );
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_configured(&config, Path::new("/nonexistent"));
    (server, balancer)
}

#[test]
fn stalled_hellos_of_64_prefixes_refuse_no_client_of_another_prefix() {
    const PREFIXES: u8 = 64;
    let (_server, balancer) = behind_balancer("max-hellos = 512");
    let begin = |from| {
        let mut io = connect(balancer.address(), from);
        // The connection may be closed already.
        let _ = io.write_all(&HELLO[..HELLO.len() - 1]);
        io
    };
    let stalled: Vec<TcpStream> = (0..640)
        .map(|at| begin(host(100 + (at % u16::from(PREFIXES)) as u8)))
        .collect();
    // The stalled clients are now more than a second old, and a healthy client is faster.
    thread::sleep(Duration::from_millis(1100));
    // All new clients connect before the first of them sends its hello.
    let fresh: Vec<TcpStream> = (0..240)
        .map(|_| connect(balancer.address(), host(9)))
        .collect();
    let answered = fresh.iter().filter(|io| is_answered(io)).count();
    assert_eq!(answered, fresh.len());
    let metrics = balancer.metrics();
    assert!(metrics.turned_away("displaced") >= 128, "{metrics}");
    drop(stalled);
}

#[test]
fn a_source_with_all_connections_gives_way_to_another_source() {
    const MAX: usize = 40;
    let (_server, balancer) = behind_balancer(&format!("max = {MAX}"));
    let greedy: Vec<TcpStream> = (0..MAX)
        .map(|_| {
            let io = connect(balancer.address(), host(1));
            assert!(is_answered(&io));
            io
        })
        .collect();
    // The balancer refuses a further connection of this source, which has all places.
    assert!(is_closed(&connect(balancer.address(), host(1))));
    let others: Vec<TcpStream> = (0..MAX / 2)
        .map(|_| {
            let io = connect(balancer.address(), host(2));
            assert!(is_answered(&io));
            io
        })
        .collect();
    // Now both sources have half of the places. Neither source can take a place of the other.
    assert!(is_closed(&connect(balancer.address(), host(2))));
    assert!(is_closed(&connect(balancer.address(), host(1))));
    let count = |name: &str| balancer.metrics().sum(name, &[]);
    assert_eq!(
        count("sessile_balance_connections_displaced_total"),
        MAX as u64 / 2
    );
    assert_eq!(count("sessile_balance_refused_total"), 3);
    balancer.await_line("connection.max is reached");
    drop((greedy, others));
}

#[test]
fn idle_connections_keep_no_health_check_out() {
    let (_server, balancer) = behind_balancer("max-hellos = 0");
    let idle: Vec<TcpStream> = (0..200)
        .map(|_| connect(balancer.admin(), host(1)))
        .collect();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let mut io = connect(balancer.admin(), host(1));
        write!(
            io,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        io.read_to_string(&mut response).expect("a response");
        assert!(response.starts_with("HTTP/1.1 200 "), "{path}: {response}");
    }
    drop(idle);
}
