//! Replays of a recorded first flight at every server, also after failures of servers and stores.

use std::path::Path;
use std::process::Command;

use super::visitor::{GET, Visit, Visitor, position_of_identity, send_flight};
use super::{ON, accepted, farm, outcomes, replay_and_wait, unfinished};
use crate::peers::eventually;
use crate::store::cluster::wait_until;
use crate::store::proxy::{Mode, Proxy};
use crate::store::setup::{Redis, Server};

fn ask(redis: &Redis, words: &[&str]) -> redis::Value {
    ask_for(redis, words)
}

fn ask_for<T: redis::FromRedisValue>(redis: &Redis, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query(&mut redis.connect()).unwrap()
}

fn info(redis: &Redis, line: &str) -> bool {
    let said: String = redis::cmd("INFO").query(&mut redis.connect()).unwrap();
    said.lines().any(|said| said == line)
}

#[test]
fn no_server_answers_a_replayed_request() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let servers = farm.serve_three();
    let servers = servers.each_ref();
    let visitor = Visitor::new(&farm);
    let first = visitor.visit(servers[0].address());
    assert_eq!(first.outcome(), "full/nothing-offered none");

    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(servers[1].address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    for server in servers {
        replay_and_wait(server, &recorded);
    }
    assert_eq!(accepted(&servers), 1);
    let requests = |server: &Server| server.metrics().sum("sessile_requests_total", &[]);
    assert_eq!(servers.map(requests), [1, 1, 0]);

    // Each connection gives the client a ticket for the next connection.
    for server in servers.iter().cycle().take(7) {
        let answer = visitor.visit_early(server.address());
        assert_eq!(answer.outcome(), "resumed/psk accepted");
    }
    // No session table contains a session that allows early data.
    for server in servers {
        assert_eq!(
            server.metrics().sum("sessile_session_table_entries", &[]),
            0
        );
    }
}

#[test]
fn a_request_is_answered_once_if_its_copy_arrives_first() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let flight = visitor.early(GET);
    replay_and_wait(&other, &flight.bytes);
    assert_eq!(accepted(&[&other]), 1);
    let mut late = Visit::to(one.address(), flight);
    late.send(GET);
    assert_eq!(late.answer().outcome(), "full/spent rejected/store");
    assert_eq!(accepted(&[&one, &other]), 1);
}

#[test]
fn only_one_of_two_servers_answers_simultaneous_copies() {
    const RACES: u64 = 50;
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    for _ in 0..RACES {
        let visitor = Visitor::new(&farm);
        visitor.visit(one.address());
        let flight = visitor.early(GET).bytes;
        std::thread::scope(|threads| {
            for server in [&one, &other] {
                let flight = &flight;
                threads.spawn(move || send_flight(server.address(), flight));
            }
        });
    }
    eventually("the servers give up the connections", || {
        unfinished(&one) + unfinished(&other) == 2 * RACES
    });
    assert_eq!(accepted(&[&one, &other]), RACES);
}

#[test]
fn replays_are_rejected_after_a_restart_or_kill_of_the_server() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(other.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    one.drain();
    other.peer.kill();
    for name in ["web1", "web2"] {
        let again = farm.serve(name);
        replay_and_wait(&again, &recorded);
        assert_eq!(accepted(&[&again]), 0);
    }
    // The client's other session is unused, so a server new to the client accepts early data.
    let answer = visitor.visit_early(farm.serve("web3").address());
    assert_eq!(answer.outcome(), "resumed/psk accepted");
}

#[test]
fn replays_are_rejected_after_a_restore_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let redis = Redis::with(&["--dir", path, "--dbfilename", "dump.rdb"]);
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    ask(&redis, &["SAVE"]);
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(one.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    // The dump was made before the session was spent, so the restored store has the session again.
    let port = redis.stop();
    let _redis = Redis::start_again_with(port, &["--dir", path, "--dbfilename", "dump.rdb"]);
    assert_returned_and_rejected(&one, &other, &recorded);
}

/// Checks that servers reject early data with a spent session that the store has again.
fn assert_returned_and_rejected(one: &Server, other: &Server, recorded: &[u8]) {
    // After a failed connection to the store, servers wait for seconds before the next attempt.
    wait_until(|| {
        replay_and_wait(one, recorded);
        spends(&[one], "ok") == 2
    });
    wait_until(|| {
        replay_and_wait(other, recorded);
        spends(&[other], "gone") == 1
    });
    assert_eq!(accepted(&[one, other]), 1);
}

/// The number of spend requests of these servers with this result.
fn spends(servers: &[&Server], result: &str) -> u64 {
    let labels = [("operation", "spend"), ("result", result)];
    let of = |server: &&Server| {
        let metrics = server.metrics();
        metrics.sum("sessile_store_requests_total", &labels)
    };
    servers.iter().map(of).sum()
}

#[test]
fn a_session_from_before_a_restore_still_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let redis = Redis::with(&["--dir", path, "--dbfilename", "dump.rdb"]);
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitors = [(); 200].map(|()| Visitor::new(&farm));
    for visitor in &visitors {
        visitor.visit(server.address());
    }
    ask(&redis, &["SAVE"]);
    let port = redis.stop();
    let _redis = Redis::start_again_with(port, &["--dir", path, "--dbfilename", "dump.rdb"]);
    let mut visitors = visitors.iter();
    eventually("the store is found again", || {
        let visitor = visitors.next().unwrap();
        let outcome = visitor.visit_early(server.address()).outcome();
        let found = outcome == "resumed/psk rejected/store";
        assert!(
            found || outcome == "full/store-down rejected/store",
            "{outcome}"
        );
        found
    });
}

#[test]
fn replays_are_rejected_after_a_failover_and_back() {
    let redis = Redis::start();
    let port = redis.address().port().to_string();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    // The first replica of a master changes the master's replication ID, so connect the replica
    // before the visit.
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &port]);
    eventually("the replica is in sync", || {
        info(&replica, "master_link_status:up")
    });
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let sessions = redis.entries().len();
    eventually("the sessions are replicated", || {
        replica.entries().len() == sessions
    });
    // The promoted replica receives no more changes.
    ask(&replica, &["REPLICAOF", "NO", "ONE"]);
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(one.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    // The old master copies the data of the promoted replica, where the session is unspent. Then
    // the old master becomes master again.
    let promoted = replica.address().port().to_string();
    ask(&redis, &["REPLICAOF", "127.0.0.1", &promoted]);
    eventually("the replica is in sync", || {
        info(&redis, "master_link_status:up")
    });
    ask(&redis, &["REPLICAOF", "NO", "ONE"]);
    assert_returned_and_rejected(&one, &other, &recorded);
}

#[test]
fn a_resumption_without_early_data_spends_the_session() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let path = |name: &str| farm.folder().join(name);
    let (session, request) = (path("session.pem"), path("request"));
    std::fs::write(&request, GET).unwrap();
    let [sess_in, sess_out, early] = ["-sess_in", "-sess_out", "-early_data"].map(Path::new);
    s_client(&one, &farm.root(), &[sess_out, &session]);
    let verdict = |server, arguments: &[&Path]| {
        let said = s_client(
            server,
            &farm.root(),
            &[&[sess_in, &session], arguments].concat(),
        );
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("sessile-verdict: "));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert_eq!(verdict(&one, &[]), "resumed/psk");
    assert_eq!(verdict(&other, &[]), "full/spent");
    s_client(&other, &farm.root(), &[sess_in, &session, early, &request]);
    assert_eq!(other.metrics().verdict("full/spent"), 2);
    assert_eq!(outcomes(&[&other], "rejected/store"), 1);
    assert_eq!(accepted(&[&one, &other]), 0);
}

fn s_client(server: &Server, root: &Path, arguments: &[&Path]) -> String {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-tls1_3",
        "-ign_eof",
        "-servername",
        "localhost",
    ]);
    command.args(["-alpn", "http/1.1", "-connect"]);
    command.arg(server.address().to_string());
    command.arg("-CAfile").arg(root).args(arguments);
    let request = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(request.path(), GET).unwrap();
    // The client repeats its request on standard input. After accepted early data, the server has
    // already closed the connection.
    let output = command.stdin(request.reopen().unwrap()).output();
    let output = output.expect("openssl is needed: install the package openssl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn openssl_gets_an_answer_to_early_data_once_for_each_session() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let servers = farm.serve_three();
    let path = |name: &str| farm.folder().join(name);
    let (session, next, request) = (path("session.pem"), path("next.pem"), path("request"));
    std::fs::write(&request, GET).unwrap();
    let [sess_in, sess_out, early] = ["-sess_in", "-sess_out", "-early_data"].map(Path::new);
    s_client(&servers[0], &farm.root(), &[sess_out, &session]);
    for server in &servers {
        let arguments = [sess_in, &session, sess_out, &next, early, &request];
        let said = s_client(server, &farm.root(), &arguments);
        assert!(said.contains("Early data was accepted"), "{said}");
        assert!(said.contains("sessile-early-data: accepted"), "{said}");
        // The server rejects early data with the spent session.
        let said = s_client(server, &farm.root(), &[sess_in, &session, early, &request]);
        assert!(said.contains("Early data was rejected"), "{said}");
        std::fs::rename(&next, &session).unwrap();
    }
}

#[test]
fn early_data_that_arrives_before_its_session_is_stored_stays_rejected() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    let farm = farm(&redis);
    // The timeout is long, so that a few held requests do not make the server give up the store.
    let slow_store = format!("store = \"{}\"\nstore-timeout = \"1s\"\n{ON}", proxy.url());
    let (one, other) = (farm.with(&slow_store).serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    proxy.set(Mode::Hold);
    visitor.visit(one.address());
    assert_eq!(sessions(&redis), 0);

    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let mut visit = Visit::to(other.address(), flight);
    visit.send(GET);
    assert_eq!(visit.answer().outcome(), "full/unknown-key rejected/store");
    assert_eq!(spends(&[&other], "missing"), 1);
    proxy.set(Mode::Pass);
    eventually("the sessions reach the store", || sessions(&redis) == 2);
    replay_and_wait(&other, &recorded);
    assert_eq!(spends(&[&other], "ok"), 1);
    assert_eq!(accepted(&[&one, &other]), 0);
}

/// The number of single-use sessions in a store.
fn sessions(redis: &Redis) -> usize {
    let entries = redis.entries();
    let parts = entries.iter().filter_map(|(name, _)| {
        let brace = name.iter().position(|&byte| byte == b'}')?;
        (brace + 1 < name.len()).then_some(())
    });
    parts.count()
}

#[test]
fn made_up_identities_leave_few_entries_in_the_store_and_harm_no_session() {
    const MADE_UP: usize = 400;
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let mut flight = visitor.early(GET).bytes;
    let identity = position_of_identity(&flight);
    let before = redis.entries();
    for _ in 0..MADE_UP {
        aws_lc_rs::rand::fill(&mut flight[identity..identity + 32]).unwrap();
        send_flight(server.address(), &flight);
    }
    eventually("the store has none of them", || {
        spends(&[&server], "missing") == MADE_UP as u64
    });
    let mut left = redis.entries();
    let is_claim = |name: &[u8]| name.windows(8).any(|part| part == b":server:");
    left.retain(|(name, _)| !is_claim(name) && before.iter().all(|(other, _)| other != name));
    // All made-up identities of one partition leave one entry. With 400 identities and 4,096
    // partitions, some identities almost certainly share a partition.
    assert!((1..MADE_UP).contains(&left.len()), "{}", left.len());
    for (name, value) in left {
        let name = String::from_utf8(name).unwrap();
        let (_, partition) = name.rsplit_once(':').unwrap();
        assert!(partition.len() == 5 && partition.starts_with('{'), "{name}");
        assert_eq!(value, b"");
        let life: i64 = ask_for(&redis, &["PTTL", &name]);
        assert!(life <= 20_000, "{life}");
    }
    // The session resumes. If the partition of the session has such an entry, the server rejects
    // early data for now.
    let outcome = visitor.visit_early(server.address()).outcome();
    let known = ["resumed/psk accepted", "resumed/psk rejected/store"];
    assert!(known.contains(&outcome.as_str()), "{outcome}");
}
