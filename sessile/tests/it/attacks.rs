//! Attackers who try to make a balancer learn false sessions, or to put false sessions into a
//! store.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::peers::{Cut, Farm, Proxy, record, run};
use crate::store::{self, setup::Redis};

const TLS13: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");
const TLS12: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-full.bin");
const TLS12_WITH_ID: &[u8] =
    include_bytes!("../../../proto/src/testdata/client-openssl-tls12-id-resumed.bin");

/// The position of the session ID's length in a ClientHello of one record. This length follows the record
/// header, message header, version and random.
const SESSION_ID: usize = 5 + 4 + 2 + 32;

/// Content types of records.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;

const PATIENCE: Duration = Duration::from_secs(15);

/// Number of concurrent attackers.
const ATTACKERS: usize = 4;

/// A recorded ClientHello with another session ID.
fn with_session_id(hello: &[u8], id: [u8; 32]) -> Vec<u8> {
    let mut hello = hello.to_vec();
    assert_eq!(hello[SESSION_ID], 32);
    hello[SESSION_ID + 1..][..32].copy_from_slice(&id);
    hello
}

/// A random session ID.
fn random_id() -> [u8; 32] {
    let mut id = [0; 32];
    aws_lc_rs::rand::fill(&mut id).expect("random bytes");
    id
}

/// Sends a ClientHello, reads up to the first record of this content type, and disconnects without an alert.
fn abandon(address: SocketAddr, hello: &[u8], content_type: u8) -> Vec<Vec<u8>> {
    let mut io = TcpStream::connect(address).expect("the balancer");
    io.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    // Reset the connection: other tests need the ports that TIME_WAIT would block.
    SockRef::from(&io)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
    io.write_all(hello).expect("sent");
    let mut records = Vec::new();
    loop {
        records.push(record(&io).expect("an answer"));
        if records.last().is_some_and(|last| last[0] == content_type) {
            return records;
        }
    }
}

/// Abandons many handshakes after the ServerHello.
fn attack(farm: &Farm, times: usize, hello: impl Fn() -> Vec<u8> + Sync) {
    thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                for _ in 0..times / ATTACKERS {
                    abandon(farm.address(), &hello(), HANDSHAKE);
                }
            });
        }
    });
}

fn openssl(address: SocketAddr, arguments: &[&str], session: &Path) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_2", "-connect"]);
    command.arg(address.to_string()).args(arguments);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    run("openssl", &mut command, "").succeeded();
}

#[test]
fn the_balancer_learns_no_random_session_ids_of_tls13_clients() {
    const TIMES: u64 = 10_000;
    let farm = Farm::start(&["--quiet"]);
    attack(&farm, TIMES as usize, || {
        with_session_id(TLS13, random_id())
    });
    let metrics = farm.await_metrics(|metrics| metrics.all_routed() == TIMES);
    assert_eq!(metrics.routed("policy", "not-offered"), TIMES, "{metrics}");
    assert_eq!(metrics.learned(), 0, "{metrics}");
    assert_eq!(
        metrics.sum("sessile_session_table_entries", &[]),
        0,
        "{metrics}"
    );
}

#[test]
fn the_balancer_learns_nothing_from_abandoned_handshakes() {
    const TIMES: u64 = 1_000;
    let farm = Farm::start(&["--quiet"]);
    // For an empty or unknown session ID, the server answers with a new session ID.
    attack(&farm, TIMES as usize / 2, || TLS12.to_vec());
    attack(&farm, TIMES as usize / 2, || {
        with_session_id(TLS12_WITH_ID, random_id())
    });
    let closed = "sessile_handshake_failures_total";
    let metrics = farm.await_metrics(|metrics| metrics.sum(closed, &[]) == TIMES);
    assert_eq!(metrics.routed("policy", "failed"), TIMES, "{metrics}");
    assert_eq!(metrics.learned(), 0, "{metrics}");
    assert_eq!(
        metrics.sum("sessile_session_table_entries", &[]),
        0,
        "{metrics}"
    );
    assert_eq!(metrics.handshakes(), 0, "{metrics}");
}

#[test]
fn the_balancer_learns_no_session_id_beside_a_ticket() {
    let farm = Farm::start(&["--isolated", "--policy", "round-robin"]);
    let proxy = Proxy::start(farm.address(), Cut::Whole);
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("session.pem");
    openssl(proxy.address(), &[], &session);
    openssl(proxy.address(), &[], &session);
    let [_, returning] = [proxy.hello(), proxy.hello()];
    let before = farm.await_metrics(|metrics| metrics.all_routed() == 2);
    assert_eq!(before.routed("ticket", "resumed"), 1, "{before}");

    // The server accepts the ticket and echoes the session ID of the client.
    let throwaway = random_id();
    let hello = with_session_id(&returning, throwaway);
    let records = abandon(farm.address(), &hello, CHANGE_CIPHER_SPEC);
    assert_eq!(records[0][SESSION_ID + 1..][..32], throwaway);
    let after = farm.await_metrics(|metrics| metrics.all_routed() == 3);
    assert_eq!(after.routed("ticket", "resumed"), 2, "{after}");

    // The echoed session ID routes no connection.
    let hello = with_session_id(TLS12_WITH_ID, throwaway);
    abandon(farm.address(), &hello, HANDSHAKE);
    let metrics = farm.await_metrics(|metrics| metrics.all_routed() == 4);
    for outcome in ["resumed", "refused", "not-offered", "failed"] {
        assert_eq!(metrics.routed("session-id", outcome), 0, "{metrics}");
    }
    // As a control, show that a session ID from a server routes a client. So this test would notice a learned
    // session ID.
    let session = folder.path().join("honest.pem");
    openssl(proxy.address(), &["-no_ticket"], &session);
    openssl(proxy.address(), &["-no_ticket"], &session);
    let metrics = farm.await_metrics(|metrics| metrics.all_routed() == 6);
    assert_eq!(metrics.routed("session-id", "resumed"), 1, "{metrics}");
}

#[tokio::test(flavor = "current_thread")]
async fn abandoned_handshakes_and_tls13_session_ids_do_not_reach_the_store() {
    const TIMES: u64 = 200;
    let redis = Redis::start();
    let farm = store::setup::Farm::sharing(&redis.url(), "");
    let server = farm.serve("web1");
    for _ in 0..TIMES {
        let noise = with_session_id(TLS13, random_id());
        abandon(server.address(), &noise, HANDSHAKE);
    }
    let requests = async |operation: &str, result: &str| {
        let labels = format!("operation=\"{operation}\",result=\"{result}\",server=\"web1\"");
        let line = format!("sessile_store_requests_total{{{labels}}}");
        server.metric(&line).await
    };
    assert_eq!(requests("fetch", "missing").await, 0);
    // A TLS 1.2 client may have its session ID from another server, so this server asks the store.
    for _ in 0..TIMES {
        let guess = with_session_id(TLS12_WITH_ID, random_id());
        abandon(server.address(), &guess, HANDSHAKE);
    }
    assert_eq!(requests("fetch", "missing").await, TIMES);
    assert_eq!(requests("put", "ok").await, 0);
    // Only the name of a session ends with a part of 64 bytes.
    let is_session = |name: &[u8]| name.rsplit(|byte| *byte == b':').next().unwrap().len() == 64;
    assert!(!redis.entries().iter().any(|(name, _)| is_session(name)));
}
