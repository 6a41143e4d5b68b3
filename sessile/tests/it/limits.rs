//! Limits on the resources that one source can take from other sources.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::balance_labels::{in_records, padded};
use crate::peers::{Certificates, NAME, Sessile, nginx, run};

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// The number of an attacker's connections. This process needs a limit of more than 11,000 open
/// files.
const STALLED: usize = 10_000;

const PATIENCE: Duration = Duration::from_secs(30);

/// An address in another /24 than 127.0.0.1.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9));

/// Raises the file limit of this process, for a test with [`STALLED`] connections.
///
/// The limit may be too low for two such tests at the same time, so keep the returned guard.
pub(crate) fn reserve_files() -> MutexGuard<'static, ()> {
    static ONE_TEST: Mutex<()> = Mutex::new(());
    let one_test = ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(sessile::lifecycle::file_limit() > STALLED as u64 + 1_000);
    one_test
}

/// Connections with ClientHellos that never become complete.
struct Stalled {
    connections: Vec<TcpStream>,
    _one_test: MutexGuard<'static, ()>,
}

fn stall(address: SocketAddr) -> Stalled {
    let one_test = reserve_files();
    let begun = &HELLO[..HELLO.len() - 1];
    let stalled = (0..STALLED).map(|_| {
        let mut io = TcpStream::connect(address).unwrap();
        // Reset the connection: other tests need the ports that TIME_WAIT would block.
        SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
        // The peer may refuse the connection before any byte is sent.
        let _ = io.write_all(begun);
        io
    });
    Stalled {
        connections: stalled.collect(),
        _one_test: one_test,
    }
}

/// Makes a complete visit from this source address.
fn visit(address: SocketAddr, from: IpAddr, certificates: &Certificates) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", NAME, "-verify_return_error"]);
    command.arg("-bind").arg(format!("{from}:0"));
    command.arg("-connect").arg(address.to_string());
    command.arg("-CAfile").arg(&certificates.ca);
    run("openssl", &mut command, "").succeeded();
}

/// The memory of a process in bytes.
fn resident(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        * 1024
}

#[test]
fn ten_thousand_stalled_hellos_of_one_source_do_not_affect_other_sources() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let balancer = Sessile::balance(&[server.address()], &[]);
    let before = resident(balancer.id());
    let stalled = stall(balancer.address());
    visit(balancer.address(), OTHER, &certificates);
    let more = resident(balancer.id()).saturating_sub(before);
    assert!(more < STALLED * 8192, "{more} bytes for {STALLED} hellos");
    let metrics = balancer.await_metrics(|it| it.all_routed() == 1);
    // New hellos displaced the oldest incomplete hellos.
    assert!(metrics.turned_away("displaced") > 0, "{metrics}");
    assert_eq!(metrics.turned_away("hello-limit"), 0, "{metrics}");
    drop(stalled);
    // After the attack, the source can connect again.
    balancer.await_metrics(|it| it.sum("sessile_balance_connections_open", &[]) == 0);
    visit(
        balancer.address(),
        Ipv4Addr::LOCALHOST.into(),
        &certificates,
    );
}

#[test]
fn ten_thousand_accepted_stalled_hellos_take_little_memory() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("serve.toml");
    let text = format!(
        "key.file = 'none'\nconnection.max-hellos = {}\n[[listener]]\naddress = '127.0.0.1:0'\n\
         [[site]]\ncertificates = [{{ chain = '{}', key = '{}' }}]\n",
        STALLED * 4,
        certificates.chain.display(),
        certificates.key.display(),
    );
    fs::write(&config, text).unwrap();
    let server = Sessile::serve_configured(&config, folder.path());
    let before = resident(server.id());
    let stalled = stall(server.address());
    visit(server.address(), OTHER, &certificates);
    let more = resident(server.id()).saturating_sub(before);
    assert!(
        more < STALLED * 16 * 1024,
        "{more} bytes for {STALLED} hellos"
    );
    // Each connection ends at its deadline, although its hello is incomplete.
    for mut io in stalled.connections {
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(!matches!(io.read(&mut [0]), Ok(1)), "an answer");
    }
    let failures = "sessile_handshake_failures_total";
    let metrics = server.await_metrics(|it| it.sum(failures, &[]) == STALLED as u64);
    let deadline = metrics.sum(failures, &[("cause", "deadline")]);
    assert_eq!(deadline, STALLED as u64, "{metrics}");
}

#[test]
fn a_source_that_connects_too_often_is_refused_and_others_are_not() {
    const TIMES: usize = 200;
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let text = format!(
        "key.file = 'none'\nconnection.rate-per-source = 2\n\
         [[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
         [[balance.server]]\nname = 'a'\naddress = '{}'\n",
        server.address()
    );
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_configured(&config, Path::new("/nonexistent"));
    for _ in 0..TIMES {
        drop(TcpStream::connect(balancer.address()).unwrap());
    }
    visit(balancer.address(), OTHER, &certificates);
    let metrics = balancer.await_metrics(|it| {
        it.turned_away("source-rate") + it.turned_away("no-hello") == TIMES as u64
    });
    assert!(metrics.turned_away("source-rate") > 0, "{metrics}");
}

/// Connects from an address, with a very small receive buffer.
fn slow_reader(address: SocketAddr, from: IpAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut io = TcpStream::from(socket);
    io.write_all(HELLO).unwrap();
    io
}

/// A server that sends without an end, and reports each connection that stalls.
fn endless() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (stalls, stalled) = mpsc::channel();
    thread::spawn(move || {
        for mut io in listener.incoming().map_while(Result::ok) {
            let stalls = stalls.clone();
            io.set_write_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            thread::spawn(move || {
                let chunk = vec![0; 256 * 1024];
                while io.write(&chunk).is_ok() {}
                let _ = stalls.send(io);
            });
        }
    });
    (address, stalled)
}

#[test]
fn a_source_that_reads_nothing_does_not_take_all_pipes() {
    const FILES: u32 = 512;
    const PIPES: u64 = FILES as u64 / 32;
    const READERS: usize = 40;
    let (server, stalled) = endless();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let text = format!(
        "key.file = 'none'\n[[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
         [balance]\nhealth = 'off'\n[[balance.server]]\nname = 'a'\naddress = '{server}'\n"
    );
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_with_files(FILES, &config, folder.path());
    let greedy = Ipv4Addr::LOCALHOST.into();
    let readers: Vec<_> = (0..READERS)
        .map(|_| slow_reader(balancer.address(), greedy))
        .collect();
    let held: Vec<_> = (0..READERS)
        .map(|_| stalled.recv_timeout(PATIENCE).expect("it takes no more"))
        .collect();
    let pipes = "sessile_balance_held_pipes";
    let metrics = balancer.metrics();
    let its_own = metrics.sum(pipes, &[]);
    // A source may have a quarter of the pipes. Each further worker may take one more pipe, if
    // several workers check at the same time.
    let workers = thread::available_parallelism().unwrap().get() as u64;
    assert!((1..PIPES / 4 + workers).contains(&its_own), "{metrics}");
    let bytes = metrics.sum("sessile_balance_held_bytes", &[]);
    assert!(
        (1..=READERS as u64 * 16 * 1024).contains(&bytes),
        "{metrics}"
    );

    let other = slow_reader(balancer.address(), OTHER);
    let of_other = stalled.recv_timeout(PATIENCE).expect("it takes no more");
    balancer.await_metrics(|metrics| metrics.sum(pipes, &[]) == its_own + 1);
    drop((readers, held, other, of_other));
    balancer.await_metrics(|metrics| metrics.sum(pipes, &[]) == 0);
    balancer.await_metrics(|it| it.sum("sessile_balance_held_bytes", &[]) == 0);
}

#[test]
fn the_maximum_hello_size_is_configurable() {
    const LONG: usize = 40 * 1024;
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let hello = in_records(&padded(HELLO, LONG), 16 * 1024);
    for (size, answer) in [("\"64KiB\"", true), ("40960", true), ("40959", false)] {
        let text = format!(
            "key.file = 'none'\nconnection.max-hello-size = {size}\n\
             [[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
             [balance]\nhealth = 'off'\n[[balance.server]]\nname = 'a'\naddress = '{}'\n",
            server.address()
        );
        fs::write(&config, text).unwrap();
        let balancer = Sessile::balance_configured(&config, folder.path());
        let mut io = TcpStream::connect(balancer.address()).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        // The balancer may refuse the ClientHello before all bytes are sent.
        let _ = io.write_all(&hello);
        let mut content = [0];
        io.read_exact(&mut content).unwrap();
        // The first byte is from the ServerHello, or from the balancer's alert.
        assert_eq!(content == [22], answer, "{size}: {content:?}");
        let turned_away = balancer.metrics().turned_away("bad-hello");
        assert_eq!(turned_away, u64::from(!answer), "{size}");
    }
}
