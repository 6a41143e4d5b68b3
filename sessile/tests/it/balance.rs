//! `sessile balance` in front of servers that share nothing and do not know the balancer.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use sessile_proto::alert::AlertDescription;
use socket2::SockRef;

use crate::balance_labels::{in_records, padded};
use crate::peers::{
    Certificates, Cut, NAME, Peer, Proxy, Ran, Sessile, nginx, openssl as s_server, record, run,
    send,
};

/// A ClientHello as OpenSSL sends it.
const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");

const TLS13: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// An address without a listener. Only root can listen on this port.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

const PATIENCE: Duration = Duration::from_secs(15);

/// Servers of TLS 1.2 that share nothing.
fn servers(certificates: &Certificates, tickets: &str) -> [Peer; 2] {
    [(); 2].map(|()| {
        let directives = format!(
            "ssl_protocols TLSv1.2; ssl_session_cache shared:s:1m; ssl_session_tickets {tickets};"
        );
        nginx(certificates, &directives)
    })
}

fn addresses(servers: &[Peer]) -> Vec<SocketAddr> {
    servers.iter().map(Peer::address).collect()
}

fn openssl(address: SocketAddr, certificates: &Certificates) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", NAME, "-connect"]);
    command.arg(address.to_string()).arg("-verify_return_error");
    command.arg("-CAfile").arg(&certificates.ca);
    command
}

/// A visit that reads its session from a file, if the file exists, and writes the new session to it.
fn visit(address: SocketAddr, certificates: &Certificates, session: &Path) -> Ran {
    let mut command = openssl(address, certificates);
    // Use TLS 1.2. In a hello with TLS 1.3, the session ID may be random and never counts as refused.
    command.arg("-tls1_2");
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    run("openssl", &mut command, "").succeeded()
}

#[test]
fn new_clients_are_spread_and_every_returning_client_resumes() {
    const CLIENTS: u64 = 4;
    const RETURNS: u64 = 5;
    for (tickets, rule) in [("off", "session-id"), ("on", "ticket")] {
        let certificates = Certificates::new();
        let servers = servers(&certificates, tickets);
        let balancer = Sessile::balance(&addresses(&servers), &["--policy", "round-robin"]);
        for _ in 0..CLIENTS {
            let mut command = openssl(balancer.address(), &certificates);
            let ran = run("openssl", command.arg("-reconnect"), "").succeeded();
            assert_eq!(ran.count("New, TLSv1.2"), 1, "{}", ran.stdout);
            assert_eq!(
                ran.count("Reused, TLSv1.2"),
                RETURNS as usize,
                "{}",
                ran.stdout
            );
        }
        let all = CLIENTS * (1 + RETURNS);
        let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == all);
        assert_eq!(
            metrics.routed(rule, "resumed"),
            CLIENTS * RETURNS,
            "{metrics}"
        );
        assert_eq!(
            metrics.routed("policy", "not-offered"),
            CLIENTS,
            "{metrics}"
        );
        assert_eq!(metrics.learned(), CLIENTS, "{metrics}");
        for server in ["a", "b"] {
            let made = "sessile_balance_server_connections_total";
            assert_eq!(
                metrics.sum(made, &[("server", server)]),
                all / 2,
                "{metrics}"
            );
        }
    }
}

#[test]
fn a_hello_in_pieces_leads_to_the_same_server() {
    let certificates = Certificates::new();
    let servers = servers(&certificates, "off");
    let balancer = Sessile::balance(&addresses(&servers), &["--policy", "round-robin"]);
    let session = certificates.folder().join("session.pem");
    let whole = visit(balancer.address(), &certificates, &session);
    assert_eq!(whole.count("New, TLSv1.2"), 1, "{}", whole.stdout);
    let cuts = [Cut::Segments, Cut::Records, Cut::Whole];
    for cut in cuts {
        let proxy = Proxy::start(balancer.address(), cut);
        let ran = visit(proxy.address(), &certificates, &session);
        assert_eq!(ran.count("Reused, TLSv1.2"), 1, "{cut:?}: {}", ran.stdout);
    }
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 4);
    assert_eq!(
        metrics.routed("session-id", "resumed"),
        cuts.len() as u64,
        "{metrics}"
    );
}

#[test]
fn session_ids_of_tls_1_0_and_1_1_route_too() {
    let certificates = Certificates::new();
    for version in ["-tls1", "-tls1_1"] {
        // OpenSSL allows these versions only at security level 0.
        let arguments = [version, "-cipher", "DEFAULT@SECLEVEL=0"];
        let servers = [(); 2].map(|()| s_server(&certificates, &arguments));
        let balancer = Sessile::balance(&addresses(&servers), &["--policy", "round-robin"]);
        let mut command = openssl(balancer.address(), &certificates);
        command.args(arguments).args(["-no_ticket", "-reconnect"]);
        let ran = run("openssl", &mut command, "").succeeded();
        assert_eq!(ran.count("Reused, "), 5, "{}", ran.stdout);
        let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 6);
        assert_eq!(metrics.routed("session-id", "resumed"), 5, "{metrics}");
    }
}

#[test]
fn hellos_of_ssl_2_ssl_3_and_tls_1_0_are_forwarded_unchanged() {
    let old: [&[u8]; 3] = [
        include_bytes!("../../../proto/src/testdata/client-handmade-ssl2.bin"),
        include_bytes!("../../../proto/src/testdata/client-handmade-ssl3.bin"),
        include_bytes!("../../../proto/src/testdata/client-handmade-tls10.bin"),
    ];
    for hello in old {
        let (_balancer, mut client) = in_front_of(|mut io| {
            let mut heard = vec![0; hello.len()];
            io.read_exact(&mut heard).unwrap();
            io.write_all(&heard).unwrap();
        });
        client.write_all(hello).unwrap();
        assert_eq!(read_to_end(&client), hello);
    }
}

#[test]
fn a_dead_server_costs_no_connection() {
    const VISITS: u64 = 9;
    let certificates = Certificates::new();
    let [one, other] = servers(&certificates, "off");
    let addresses = [one.address(), NOBODY, other.address()];
    let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
    for visit in 0..VISITS {
        let mut command = openssl(balancer.address(), &certificates);
        let ran = run("openssl", &mut command, "");
        assert!(ran.status.success(), "visit {visit}: {}", ran.stderr);
    }
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == VISITS);
    let failures = "sessile_balance_server_failures_total";
    let failures = ["a", "b", "c"].map(|server| metrics.sum(failures, &[("server", server)]));
    // After a failure, the balancer skips the server for a while.
    assert!(matches!(failures, [0, 1..VISITS, 0]), "{metrics}");
    assert_eq!(metrics.turned_away("no-server"), 0, "{metrics}");
}

#[test]
fn a_client_whose_server_died_gets_another_server_and_a_full_handshake() {
    let certificates = Certificates::new();
    let [one, other] = servers(&certificates, "off");
    let addresses = [one.address(), other.address()];
    let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
    let session = certificates.folder().join("session.pem");
    let count =
        |beginning: &str| visit(balancer.address(), &certificates, &session).count(beginning);
    assert_eq!(count("New, "), 1);
    assert_eq!(count("Reused, "), 1);
    // Kill the first server, which has the session: round robin begins with this server.
    one.kill();
    assert_eq!(count("New, "), 1);
    assert_eq!(count("Reused, "), 1);
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 4);
    assert_eq!(metrics.routed("policy", "refused"), 1, "{metrics}");
    assert_eq!(metrics.routed("session-id", "resumed"), 2, "{metrics}");

    other.kill();
    let ran = run(
        "openssl",
        &mut openssl(balancer.address(), &certificates),
        "",
    );
    assert!(!ran.status.success());
    assert_eq!(balancer.metrics().turned_away("no-server"), 1);
}

#[test]
fn bytes_that_are_not_tls_are_turned_away_and_counted() {
    let certificates = Certificates::new();
    let servers = servers(&certificates, "off");
    let balancer = Sessile::balance(&addresses(&servers), &[]);
    let mut zero_length_fragment = HELLO[..5].to_vec();
    zero_length_fragment[3..].fill(0);
    let mut endless = HELLO.to_vec();
    // The header announces a message of 16 MiB, which never becomes complete.
    endless[6..9].fill(0xff);
    endless.extend([HELLO, HELLO].concat().repeat(50));
    let alert = |alert: AlertDescription| alert.record().to_vec();
    let garbage: [(&[u8], Vec<u8>); 7] = [
        (b"GET / HTTP/1.1\r\nhost: farm.test\r\n\r\n", vec![]),
        (b"SSH-2.0-OpenSSH_9.2\r\n", vec![]),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", vec![]),
        (&[0xff; 4096], vec![]),
        (
            &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01],
            alert(AlertDescription::RecordOverflow),
        ),
        (
            &zero_length_fragment,
            alert(AlertDescription::UnexpectedMessage),
        ),
        (&endless, alert(AlertDescription::IllegalParameter)),
    ];
    for (bytes, answer) in garbage {
        let sent = &bytes[..5];
        assert_eq!(send(balancer.address(), bytes), answer, "{sent:x?}");
    }
    for cut in [0, 1, 5, 6, 60, HELLO.len() - 1] {
        assert_eq!(send(balancer.address(), &HELLO[..cut]), b"", "{cut}");
    }
    // The gauge of open connections falls a moment after the counter rises.
    let metrics = balancer.await_metrics(|metrics| {
        metrics.sum("sessile_balance_turned_away_total", &[]) == 7 + 6
            && metrics.sum("sessile_balance_connections_open", &[]) == 0
    });
    assert_eq!(metrics.turned_away("bad-hello"), 7, "{metrics}");
    assert_eq!(metrics.turned_away("no-hello"), 6, "{metrics}");
    let reached = metrics.sum("sessile_balance_server_connections_total", &[]);
    assert_eq!(reached, 0, "{metrics}");
}

#[test]
fn stalled_hellos_end_at_their_deadline_and_delay_no_other_client() {
    const STALLED: usize = 300;
    let certificates = Certificates::new();
    let servers = servers(&certificates, "off");
    let balancer = Sessile::balance(&addresses(&servers), &[]);
    let mut stalled: Vec<_> = (0..STALLED)
        .map(|at| {
            let mut io = TcpStream::connect(balancer.address()).unwrap();
            io.set_read_timeout(Some(PATIENCE)).unwrap();
            io.write_all(&HELLO[..at % HELLO.len()]).unwrap();
            io
        })
        .collect();
    let open = "sessile_balance_connections_open";
    balancer.await_metrics(|metrics| metrics.sum(open, &[]) == STALLED as u64);
    run(
        "openssl",
        &mut openssl(balancer.address(), &certificates),
        "",
    )
    .succeeded();
    for io in &mut stalled {
        assert!(matches!(io.read(&mut [0]), Ok(0)), "not ended");
    }
    let metrics = balancer.await_metrics(|metrics| metrics.sum(open, &[]) == 0);
    assert_eq!(metrics.turned_away("deadline"), STALLED as u64, "{metrics}");
}

/// A balancer in front of a server without TLS that serves one connection.
fn in_front_of(serve: impl FnOnce(TcpStream) + Send + 'static) -> (Sessile, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let balancer = Sessile::balance(&[listener.local_addr().unwrap()], &[]);
    thread::spawn(move || {
        let (io, _) = listener.accept().unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        serve(io);
    });
    let client = TcpStream::connect(balancer.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (balancer, client)
}

fn read_to_end(mut io: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).expect("an orderly end");
    bytes
}

#[test]
fn a_client_that_ended_its_side_still_gets_the_answer() {
    let (_balancer, mut client) = in_front_of(|mut io| {
        // The server answers after the end of the client's bytes.
        let everything = read_to_end(&io);
        io.write_all(&everything).unwrap();
    });
    let more = vec![7; 1 << 20];
    client.write_all(HELLO).unwrap();
    client.write_all(&more).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(
        read_to_end(&client) == [HELLO, &more].concat(),
        "not what was sent"
    );
}

#[test]
fn a_server_that_ended_its_side_still_gets_the_clients_bytes() {
    let (sender, heard) = mpsc::channel();
    let (_balancer, mut client) = in_front_of(move |mut io| {
        let hello = record(&io).unwrap();
        io.write_all(b"that is all").unwrap();
        io.shutdown(Shutdown::Write).unwrap();
        sender.send([hello, read_to_end(&io)].concat()).unwrap();
    });
    client.write_all(HELLO).unwrap();
    assert_eq!(read_to_end(&client), b"that is all");
    client.write_all(b"and more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let heard = heard.recv_timeout(PATIENCE).unwrap();
    assert!(heard == [HELLO, b"and more"].concat(), "not what was sent");
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    let (balancer, mut client) = in_front_of(|io| {
        record(&io).unwrap();
        SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
    });
    client.write_all(HELLO).unwrap();
    let cut = client.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(cut, Err(ErrorKind::ConnectionReset));
    let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 1);
    assert_eq!(metrics.routed("policy", "failed"), 1, "{metrics}");
}

/// How a server ends an accepted connection.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// The server reads the hello and closes the connection.
    WithAnEnd,
    WithAReset,
    /// The server closes the connection without a read, as the kernel does with a closed listen queue.
    AtOnce,
}

/// A server that closes each connection without a reply. The channel returns the bytes that the server has
/// read.
fn mute(ends: Ends) -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        for io in listener.incoming().map_while(Result::ok) {
            let heard = match ends {
                Ends::AtOnce => Vec::new(),
                Ends::WithAnEnd | Ends::WithAReset => record(&io).unwrap(),
            };
            if let Ends::WithAReset = ends {
                SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
            }
            // Send this before the connection ends, because the test waits for the end.
            if sender.send(heard).is_err() {
                break;
            }
        }
    });
    (address, heard)
}

#[test]
fn a_server_that_closes_without_a_reply_costs_no_connection() {
    let certificates = Certificates::new();
    let [alive, _other] = servers(&certificates, "off");
    for ends in [Ends::WithAnEnd, Ends::WithAReset, Ends::AtOnce] {
        let (mute, _heard) = mute(ends);
        let policy = ["--policy", "round-robin"];
        let balancer = Sessile::balance(&[mute, alive.address()], &policy);
        let mut command = openssl(balancer.address(), &certificates);
        let ran = run("openssl", &mut command, "");
        assert!(ran.status.success(), "{ends:?}: {}", ran.stderr);
        let metrics = balancer.await_metrics(|metrics| metrics.all_routed() == 1);
        assert_eq!(metrics.routed("policy", "not-offered"), 1, "{metrics}");
        let failures = "sessile_balance_server_failures_total";
        assert_eq!(metrics.sum(failures, &[("server", "a")]), 1, "{metrics}");
        assert_eq!(metrics.sum(failures, &[("server", "b")]), 0, "{metrics}");
    }
}

#[test]
fn a_hello_that_fills_the_read_buffer_is_retried_at_another_server() {
    /// Bytes that the balancer reads at once.
    const CHUNK: usize = 4096;
    let certificates = Certificates::new();
    let [alive, _other] = servers(&certificates, "off");
    let (mute, _heard) = mute(Ends::WithAnEnd);
    let policy = ["--policy", "round-robin"];
    let balancer = Sessile::balance(&[mute, alive.address()], &policy);
    let hello = in_records(&padded(TLS13, CHUNK - 5), CHUNK);
    assert_eq!(hello.len(), CHUNK);
    let mut client = TcpStream::connect(balancer.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(&hello).unwrap();
    let mut head = [0; 5];
    client.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 22, "a handshake record: {head:?}");
}

#[test]
fn a_hello_goes_to_two_servers_at_most_and_early_data_to_one() {
    // An empty early_data extension, which follows the other extensions.
    const EARLY_DATA: [u8; 4] = [0, 42, 0, 0];
    let mut early = TLS13.to_vec();
    early.extend(EARLY_DATA);
    let extensions = extensions_at(TLS13);
    for length in [3, 7, extensions] {
        let grown = u16::from_be_bytes([early[length], early[length + 1]]) + 4;
        early[length..][..2].copy_from_slice(&grown.to_be_bytes());
    }
    for (hello, shown) in [(TLS13, 2), (&early, 1)] {
        let servers = [(); 3].map(|()| mute(Ends::WithAReset));
        let addresses = servers.each_ref().map(|(address, _)| *address);
        let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
        let mut client = TcpStream::connect(balancer.address()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(hello).unwrap();
        // The client sees the close that it would see without the balancer.
        let cut = client.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(cut, Err(ErrorKind::ConnectionReset));
        balancer.await_metrics(|metrics| metrics.routed("policy", "failed") == 1);
        let heard = servers.iter().map(|(_, heard)| heard.try_iter().collect());
        let heard: Vec<Vec<_>> = heard.collect();
        assert_eq!(heard.concat(), vec![hello; shown]);
    }
}

/// The position of the extensions' length in a ClientHello of one record with a session ID.
fn extensions_at(hello: &[u8]) -> usize {
    let suites = 5 + 4 + 2 + 32 + 1 + 32;
    let len = u16::from_be_bytes([hello[suites], hello[suites + 1]]);
    let compression = suites + 2 + usize::from(len);
    compression + 1 + usize::from(hello[compression])
}

#[test]
fn a_drain_lets_open_connections_finish_and_takes_no_new_ones() {
    let (sender, go_on) = mpsc::channel();
    let (mut balancer, mut client) = in_front_of(move |mut io| {
        record(&io).unwrap();
        go_on.recv_timeout(PATIENCE).unwrap();
        io.write_all(b"the end").unwrap();
    });
    client.write_all(HELLO).unwrap();
    let connected = "sessile_balance_server_connections_open";
    balancer.await_metrics(|metrics| metrics.sum(connected, &[]) == 1);
    balancer.terminate();
    balancer.await_line("draining");
    // The listeners close a moment after the announcement.
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(balancer.address()).is_ok() {
        assert!(Instant::now() < deadline, "it still takes connections");
        thread::yield_now();
    }
    sender.send(()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"the end");
    assert_eq!(balancer.ended().code(), Some(0));
}

#[test]
fn an_early_answer_to_an_upload_reaches_the_client() {
    const ANSWER: usize = 128_000;
    let (_balancer, mut client) = in_front_of(|mut io| {
        record(&io).unwrap();
        // The server closes with the upload unread, which resets the connection.
        io.write_all(&[1; ANSWER]).unwrap();
    });
    client.write_all(HELLO).unwrap();
    let upload = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        // Write until no buffer takes more.
        let chunk = [7; 1 << 16];
        (0..1024).all(|_| (&upload).write_all(&chunk).is_ok())
    });
    // The reset may reach the client, but only after the answer.
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert_eq!(answer.len(), ANSWER);
    let _ = client.shutdown(Shutdown::Both);
    sending.join().unwrap();
}

#[test]
fn a_server_that_does_not_answer_is_skipped_for_later_clients() {
    let certificates = Certificates::new();
    let [alive, _other] = servers(&certificates, "off");
    // The backlog of this socket is full, so connections to it hang.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let _queued = TcpStream::connect(address).unwrap();
    let policy = ["--policy", "round-robin"];
    let balancer = Sessile::balance(&[address, alive.address()], &policy);
    let folder = tempfile::tempdir().unwrap();
    for client in 0..4 {
        let session = folder.path().join(client.to_string());
        visit(balancer.address(), &certificates, &session).succeeded();
    }
    let metrics = balancer.metrics();
    let failed = metrics.sum("sessile_balance_server_failures_total", &[]);
    assert_eq!(failed, 1, "each client tries it anew: {metrics}");
}

#[test]
fn the_learned_table_survives_a_restart_of_the_balancer() {
    const CLIENTS: usize = 6;
    for tickets in ["off", "on"] {
        let certificates = Certificates::new();
        let servers = servers(&certificates, tickets);
        let config = certificates.folder().join("balance.toml");
        let mut text = "[balance]\npolicy = \"round-robin\"\nhealth = \"off\"\n\
            [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n"
            .to_owned();
        for (name, address) in ["a", "b"].iter().zip(addresses(&servers)) {
            text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        fs::write(&config, text).unwrap();
        let start = || Sessile::balance_configured(&config, certificates.folder());
        let mut balancer = start();
        let session = |n| certificates.folder().join(format!("session-{tickets}-{n}"));
        for n in 0..CLIENTS {
            let ran = visit(balancer.address(), &certificates, &session(n));
            assert_eq!(ran.count("New, "), 1, "{}", ran.stdout);
        }
        for restart in 1..3 {
            balancer.terminate();
            assert!(balancer.ended().success());
            balancer = start();
            for n in 0..CLIENTS {
                let ran = visit(balancer.address(), &certificates, &session(n));
                assert_eq!(ran.count("Reused, "), 1, "{restart}: {}", ran.stdout);
            }
        }
        // A starting balancer removes the file that it reads, so no old file remains after a crash.
        let left = fs::read_dir(certificates.folder().join("sessile")).unwrap();
        let left = left.filter(|it| {
            let name = it.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("learned-")
        });
        assert_eq!(left.count(), 0);
    }
}
