//! The balancer forwards all bytes in order and in both directions, and passes on ends and resets. Idle
//! connections hold no pipe.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::peers::{Sessile, record};

/// A ClientHello as OpenSSL sends it.
const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

const PATIENCE: Duration = Duration::from_secs(30);

/// More bytes than the sockets and pipes can hold.
const STREAM: usize = 64 << 20;

/// A balancer with these lines in `[balance]`, in front of one server.
fn balancer(server: SocketAddr, settings: &str) -> (Sessile, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("balance.toml");
    let text = format!(
        "key.file = 'none'\n[[listener]]\naddress = '127.0.0.1:0'\nrole = 'balance'\n\
         [balance]\nhealth = 'off'\n{settings}\n[[balance.server]]\nname = 'a'\naddress = '{server}'\n"
    );
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_configured(&config, Path::new("/nonexistent"));
    (balancer, folder)
}

/// A balancer, a client that has sent a hello, and a server that has received this hello.
fn connected(settings: &str) -> (Sessile, TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (balancer, _folder) = balancer(listener.local_addr().unwrap(), settings);
    let (client, server) = connect(&balancer, &listener);
    (balancer, client, server)
}

fn connect(balancer: &Sessile, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(balancer.address()).unwrap();
    client.write_all(HELLO).unwrap();
    let (server, _) = listener.accept().unwrap();
    for io in [&client, &server] {
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    assert_eq!(record(&server).unwrap(), HELLO);
    (client, server)
}

/// Pseudorandom bytes, so that a test notices a lost or moved byte.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = (0..len / 8).flat_map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 7).to_le_bytes()
    });
    words.collect()
}

fn read(mut io: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    io.read_exact(&mut bytes).unwrap();
    bytes
}

/// The number of pipe ends that a process has open.
fn pipes(process: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs");
    // A file may be closed while its name is read.
    let names = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    names
        .filter(|name| name.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn streams_arrive_whole_in_both_directions_at_once() {
    let (balancer, client, server) = connected("");
    let (up, down) = (pattern(STREAM, 1), pattern(STREAM, 2));
    thread::scope(|scope| {
        for (mut from, bytes) in [(&client, &up), (&server, &down)] {
            scope.spawn(move || {
                // Send pieces of many sizes, so that the balancer copies, splices, and copies again.
                let sizes = [1, 100, 5_000, 40_000, 3 << 20, 17, 200_000];
                let mut rest = &bytes[..];
                for size in sizes.into_iter().cycle() {
                    let (piece, after) = rest.split_at(size.min(rest.len()));
                    from.write_all(piece).unwrap();
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                from.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (mut to, bytes) in [(&server, &up), (&client, &down)] {
            scope.spawn(move || {
                let mut arrived = Vec::with_capacity(STREAM);
                to.read_to_end(&mut arrived).unwrap();
                assert!(arrived == *bytes, "not what was sent");
            });
        }
    });
    let bytes = "sessile_balance_server_bytes_total";
    let metrics = balancer.await_metrics(|metrics| metrics.sum(bytes, &[]) > 0);
    assert_eq!(metrics.sum(bytes, &[("direction", "up")]), STREAM as u64);
    assert_eq!(metrics.sum(bytes, &[("direction", "down")]), STREAM as u64);
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_loses_nothing() {
    let (balancer, client, server) = connected("");
    let bytes = pattern(STREAM, 3);
    let half = Duration::from_millis(500);
    server.set_write_timeout(Some(half)).unwrap();
    let mut sent = 0;
    // The client reads nothing, so the sender must stop before all is sent.
    while sent < bytes.len() {
        match (&server).write(&bytes[sent..]) {
            Ok(len) => sent += len,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    assert!(sent < STREAM, "the balancer holds everything");
    assert!(resident(balancer.id()) < STREAM / 2, "it holds too much");
    server.set_write_timeout(Some(PATIENCE)).unwrap();
    let rest = &bytes[sent..];
    thread::scope(|scope| {
        scope.spawn(|| (&server).write_all(rest).unwrap());
        assert!(read(&client, STREAM) == bytes, "not what was sent");
    });
}

/// The resident memory of a process, in bytes.
fn resident(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        * 1024
}

#[test]
fn connections_that_are_idle_after_a_stream_hold_no_pipe() {
    const CONNECTIONS: usize = 40;
    const EACH: usize = 1 << 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (balancer, _folder) = balancer(listener.local_addr().unwrap(), "");
    let before = pipes(balancer.id());
    let bytes = pattern(EACH, 4);
    let kept: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (client, server) = connect(&balancer, &listener);
            thread::scope(|scope| {
                scope.spawn(|| (&server).write_all(&bytes).unwrap());
                assert!(read(&client, EACH) == bytes, "not what was sent");
            });
            (client, server)
        })
        .collect();
    // Streams that run one after the other need one pipe, which has two ends. Each worker may have its own
    // pipe.
    let workers = thread::available_parallelism().unwrap().get();
    let more = pipes(balancer.id()) - before;
    assert!((2..=2 * workers).contains(&more), "{more} ends of pipes");
    drop(kept);
}

#[test]
fn a_reset_in_a_stream_reaches_the_other_side_as_a_reset() {
    for by_client in [false, true] {
        let (_balancer, client, server) = connected("");
        let (cuts, sees) = if by_client {
            (client, server)
        } else {
            (server, client)
        };
        let bytes = pattern(8 << 20, 5);
        thread::scope(|scope| {
            scope.spawn(|| (&cuts).write_all(&bytes).unwrap());
            assert!(read(&sees, bytes.len()) == bytes, "not what was sent");
        });
        SockRef::from(&cuts)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(cuts);
        let cut = (&sees).read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(cut, Err(ErrorKind::ConnectionReset), "{by_client}");
    }
}

#[test]
fn a_connection_without_a_byte_ends_after_the_idle_timeout() {
    let (balancer, client, server) = connected("idle-timeout = '200ms'");
    for mut io in [&client, &server] {
        assert_eq!(io.read(&mut [0]).unwrap(), 0, "not ended");
    }
    let timed_out = |timeout: &str| {
        let name = "sessile_balance_timed_out_total";
        balancer.await_metrics(|metrics| metrics.sum(name, &[("timeout", timeout)]) == 1);
    };
    timed_out("idle");
}

#[test]
fn a_busy_connection_ends_only_at_the_total_timeout() {
    let (balancer, mut client, mut server) = connected("idle-timeout = '2s'\ntotal-timeout = '3s'");
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = server.read(&mut byte) {
            if server.write_all(&byte).is_err() {
                break;
            }
        }
    });
    // Exchange bytes until the balancer closes the connection.
    while client.write_all(&[7]).is_ok() && matches!(client.read(&mut [0]), Ok(1)) {}
    let name = "sessile_balance_timed_out_total";
    let metrics = balancer.await_metrics(|metrics| metrics.sum(name, &[]) == 1);
    assert_eq!(metrics.sum(name, &[("timeout", "total")]), 1, "{metrics}");
    echo.join().unwrap();
}

#[test]
fn a_client_that_ended_its_side_gets_a_long_answer() {
    let (_balancer, client, server) = connected("");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut [0]).unwrap(), 0, "the end is passed on");
    let bytes = pattern(STREAM, 6);
    thread::scope(|scope| {
        scope.spawn(|| {
            (&server).write_all(&bytes).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
        });
        let mut arrived = Vec::new();
        (&client).read_to_end(&mut arrived).unwrap();
        assert!(arrived == bytes, "not what was sent");
    });
}
